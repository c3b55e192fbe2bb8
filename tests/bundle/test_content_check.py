"""A bundle whose hashes fit and whose content cannot be used is one line when it is loaded.

These tests take the model that an earlier version published, so they need no training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from ctxrec.bundle.format import BUNDLE
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import hash_files, version_of, write_manifest
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.retriever import load_retriever

(VERSION,) = (Path(__file__).parent / "published_v1" / "versions").iterdir()
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VERSION, tmp_path / "bundle"))


def refused(bundle: Path, load: Any = load_recommender) -> str:
    """The one line that loading it gives, after all its hashes were made right."""
    files = hash_files(str(bundle))
    facts = {key: json.loads((bundle / "manifest.json").read_text())[key] for key in ("encoder", "data_fingerprint")}
    write_manifest(str(bundle), BUNDLE, files=files, model_version=version_of(files), **facts)
    with pytest.raises(UserError, match=r"train again|prepare again") as found:
        load(str(bundle))
    assert str(bundle) in str(found.value) and "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("name", ["vectors", "towers", "blend"])
def test_each_tensor_is_finite(bundle, name, number):
    path = bundle / f"{name}.safetensors"
    whole = load_file(path)
    for key in [key for key, array in whole.items() if array.dtype.kind == "f" and array.size]:
        other = whole[key].copy()
        other.reshape(-1)[other.size // 2] = number
        save_file(whole | {key: other}, path)
        assert f"{name}.safetensors has a number in {key!r} that is not finite" in refused(bundle)


@pytest.mark.parametrize(
    "scale", [{"std": 0.0}, {"std": -1.0}, *({"std": n} for n in NOT_FINITE), {"mean": NOT_FINITE[0]}]
)
@pytest.mark.parametrize("kind", ["item_numbers", "user_numbers", "context_numbers"])
def test_scales_are_numbers_by_which_one_can_divide(bundle, kind, scale):
    about = json.loads((bundle / "data.json").read_text())
    (name,) = about["features"][kind]
    about["features"][kind][name] |= scale
    (bundle / "data.json").write_text(json.dumps(about))
    assert f"data.json is damaged: the scale of feature {name!r} is" in refused(bundle)


@pytest.mark.parametrize("kind", ["item_categories", "user_categories", "context_categories", "actions"])
def test_a_vocabulary_has_each_value_once(bundle, kind):
    about = json.loads((bundle / "data.json").read_text())
    part = about["features"] if kind == "actions" else about["features"][kind]
    (name,) = ["actions"] if kind == "actions" else part
    part[name][-1] = part[name][0]
    (bundle / "data.json").write_text(json.dumps(about))
    assert f"the values of feature {name!r} have {part[name][0]!r} more than once" in refused(bundle)


def put(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_items_are_distinct_and_their_numbers_finite(bundle):
    whole = pq.read_table(bundle / "items.parquet")
    ids = whole["item_id"].to_pylist()
    for name, values, told in (
        ("item_id", [ids[1], *ids[1:]], f"40 rows and 39 ids; item {ids[1]!r} stands more than once"),
        ("num_price", [float("inf")] * 40, "a number in 'num_price' that is not finite"),
    ):
        pq.write_table(put(whole, name, values), bundle / "items.parquet")
        assert f"items.parquet has {told}" in refused(bundle)


def changed_lists(lists: list[list[Any]], value: Any) -> list[list[Any]]:
    return [[*lists[0][:-1], value], *lists[1:]]


def test_histories_are_of_known_items_codes_and_users(bundle):
    with pa.memory_map(str(bundle / "histories.arrow")) as source:
        whole = pa.ipc.open_file(source).read_all().combine_chunks()
    whole = pa.Table.from_batches([whole.to_batches()[0]])
    lists = {name: whole[name].to_pylist() for name in whole.column_names}
    assert len(lists["items"][0]) > 1
    users = lists["user_id"]
    changes = [
        ("items", changed_lists(lists["items"], 40), "items from 0 to 40; expected 0 to 39"),
        ("items", changed_lists(lists["items"], -1), "items from -1 to"),
        ("items", changed_lists(lists["items"], None), "lists of 'items' that do not have one value for each event"),
        ("actions", changed_lists(lists["actions"], 3), "actions from"),
        ("split", changed_lists(lists["split"], 3), "split from"),
        ("hour", changed_lists(lists["hour"], 24), "hour from"),
        ("ctx_device", changed_lists(lists["ctx_device"], 4), "device from"),
        ("ctx_basket_value", changed_lists(lists["ctx_basket_value"], float("inf")), "a number in 'basket_value'"),
        ("times", changed_lists(lists["times"], 0), "a user whose events are not in the order of their times"),
        ("times", [lists["times"][0][:-1], *lists["times"][1:]], "lists of 'times' that do not have one value"),
        ("times", [None, *lists["times"][1:]], "lists of 'times' that do not have one value"),
        ("user_gender", [4, *lists["user_gender"][1:]], "gender from"),
        ("user_age", [float("inf"), *lists["user_age"][1:]], "a number in 'age'"),
        ("user_id", [users[1], *users[1:]], f"60 rows and 59 ids; user {users[1]!r} stands more"),
        ("user_id", [None, *users[1:]], "1 rows without the id of the user"),
    ]
    for name, values, told in changes:
        other = put(whole, name, values)
        with pa.OSFile(str(bundle / "histories.arrow"), "wb") as sink, pa.ipc.new_file(sink, other.schema) as writer:
            writer.write_table(other)
        assert f"histories.arrow has {told}" in refused(bundle), name
    other = whole.drop_columns(["hour"])
    with pa.OSFile(str(bundle / "histories.arrow"), "wb") as sink, pa.ipc.new_file(sink, other.schema) as writer:
        writer.write_table(other)
    assert "histories.arrow: column 'hour' is missing" in refused(bundle)


@pytest.mark.parametrize("part", ["items", "offsets"])
def test_pairs_of_items_are_of_known_items(bundle, part):
    path = bundle / "blend.safetensors"
    whole = load_file(path)
    for name in ("together", "next"):
        for value in (40, -1):
            other = whole[f"{name}.{part}"].copy()
            other[1] = value if part == "items" else len(whole[f"{name}.items"]) + value
            save_file(whole | {f"{name}.{part}": other}, path)
            assert "damaged" in refused(bundle)


def test_sizes_fit_together(bundle):
    whole = load_file(bundle / "vectors.safetensors")
    save_file(whole | {"items": np.pad(whole["items"], ((0, 0), (0, 1)))}, bundle / "vectors.safetensors")
    assert "vectors.safetensors has vectors of shape (40, " in refused(bundle)
    save_file(whole, bundle / "vectors.safetensors")
    blend = load_file(bundle / "blend.safetensors")
    save_file(blend | {"weights": blend["weights"][:, :-1]}, bundle / "blend.safetensors")
    assert "blend.safetensors has weights of shape (2, " in refused(bundle)
    save_file(blend | {"widths": blend["widths"] + 1}, bundle / "blend.safetensors")
    assert "blend.safetensors has heads of" in refused(bundle)
    save_file(blend, bundle / "blend.safetensors")
    other = faiss.IndexFlatIP(3)
    other.add(np.zeros((40, 3), np.float32))
    faiss.write_index(other, str(bundle / "index.faiss"))
    assert "index.faiss has vectors of 3 numbers, and the model of" in refused(bundle, load_retriever)
