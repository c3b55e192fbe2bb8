"""Posted rows: what is refused, and tables and features equal to those that prepare makes of the same rows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.features import item_features
from ctxrec.data.item_rows import items_table
from ctxrec.data.posted_rows import BadRow, check_rows, file_table, fitting, posted_table
from ctxrec.data.prepared import FeatureMeta
from ctxrec.ingest.entities import read_entities
from ctxrec.ingest.readers import inspect

SPEC = DatasetSpec.from_dict(
    {
        "name": "shop",
        "events": {"path": "e"},
        "items": {
            "path": "i", "id": "sku", "text": ["title", "tags"], "categorical": ["brand", "tags"], "numeric": ["price"],
            "image": "photo",
        },
    }
)  # fmt: skip


def test_rows_become_the_table_that_prepare_makes():
    rows = [
        {"item_id": "a", "title": " red \n shoe", "tags": ["x", "", "y"], "brand": 7.0, "price": 3, "photo": "a.png"},
        {"item_id": "b", "tags": "z", "brand": True, "price": None},
        {"item_id": "c"},
    ]
    table = posted_table(rows, SPEC)
    assert table.schema == schema.items_schema(SPEC)
    assert table.to_pylist() == [
        {"item_id": "a", "title": "red shoe", "text": "red shoe. x, y", "train_events": 0,
         "cat_brand": ["7"], "cat_tags": ["x", "y"], "num_price": 3.0},
        {"item_id": "b", "title": "", "text": "z", "train_events": 0,
         "cat_brand": ["true"], "cat_tags": ["z"], "num_price": None},
        {"item_id": "c", "title": "", "text": "", "train_events": 0, "cat_brand": [], "cat_tags": [], "num_price": None},
    ]  # fmt: skip


def test_a_text_with_a_separator_is_several_values():
    spec = DatasetSpec.from_dict(SPEC.to_dict() | {"items": SPEC.to_dict()["items"] | {"separators": {"tags": "|"}}})
    table = posted_table([{"item_id": "a", "tags": "x| y|"}, {"item_id": "b", "tags": ["x|y"]}], spec)
    assert table.column("cat_tags").to_pylist() == [["x", "y"], ["x", "y"]]
    assert table.column("text").to_pylist() == ["x, y", "x, y"]


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ({"colour": "red"}, "colour", "unknown column 'colour'; valid columns are item_id, title, tags, brand, price, photo"),
        ({"price": "3"}, "price", "price is '3'; expected a number"),
        ({"price": True}, "price", "expected a number"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_column(row, column, says):
    with pytest.raises(BadRow, match=says) as caught:
        check_rows([{"item_id": "a"}, {"item_id": "b", **row}], SPEC)
    assert (caught.value.place, caught.value.column) == (1, column)


def test_a_data_set_without_item_file_takes_bare_ids():
    spec = DatasetSpec.from_dict({"name": "log", "events": {"path": "e"}})
    assert posted_table([{"item_id": "a"}], spec).to_pylist()[0]["text"] == ""
    with pytest.raises(BadRow, match="valid columns are item_id"):
        check_rows([{"item_id": "a", "title": "x"}], spec)


def test_a_row_of_another_version_loses_what_this_one_does_not_know():
    row = {"item_id": "a", "title": "x", "colour": "red", "price": "cheap", "brand": ["b"]}
    assert fitting(row, SPEC) == {"item_id": "a", "title": "x", "brand": ["b"]}


def test_rows_of_users_have_the_columns_of_the_user_file():
    users = {"path": "u", "id": "who", "categorical": ["gender"], "numeric": ["age"]}
    spec = DatasetSpec.from_dict(SPEC.to_dict() | {"users": users})
    rows = [{"user_id": "a", "gender": "F", "age": 3}, {"user_id": "b"}]
    check_rows(rows, spec, "users")
    assert spec.users is not None
    assert file_table(rows, spec.users, "users").to_pylist() == [
        {"who": "a", "gender": "F", "age": 3.0},
        {"who": "b", "gender": None, "age": None},
    ]
    several = file_table([*rows, {"user_id": "c", "gender": ["F", "M"]}], spec.users, "users")
    assert several.column("gender").to_pylist() == [["F"], [], ["F", "M"]]
    assert fitting({"user_id": "a", "age": "old", "gender": "F"}, spec, "users") == {"user_id": "a", "gender": "F"}
    with pytest.raises(BadRow, match="unknown column 'title'; valid columns are user_id, gender, age"):
        check_rows([{"user_id": "a", "title": "x"}], spec, "users")
    with pytest.raises(BadRow, match="unknown column 'item_id'"):
        check_rows([{"user_id": "a", "item_id": "x"}], spec, "users")


ROWS = [
    {"item_id": "a", "title": " red \n shoe ", "tags": ["x", "", "y y"], "brand": "7", "price": 3.5, "photo": "a.png"},
    {"item_id": "b", "title": "", "tags": [], "brand": " ", "price": None},
    {"item_id": "c", "title": None, "tags": None, "brand": "Ünï", "price": -0.0},
    {"item_id": "d", "title": "3.0", "tags": ["x"], "brand": "true", "price": 1e30},
    {"item_id": "e"},
]
FEATURES = FeatureMeta({"brand": ["7", "true"], "tags": ["x", "y y"]}, {"price": {"mean": 0.3, "std": 0.5}}, {}, {}, {}, {}, [], [])  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_same_rows_prepared_and_posted_give_the_same_table_and_features(tmp_path, kind):
    """The rows are once in a file that prepare reads, and once posted to a service."""
    assert SPEC.items is not None
    path = tmp_path / f"items.{kind}"
    named = [{SPEC.items.id: row["item_id"], **{k: v for k, v in row.items() if k != "item_id"}} for row in ROWS]
    if kind == "parquet":
        types = {"sku": pa.string(), "title": pa.string(), "tags": pa.list_(pa.string()), "brand": pa.string(), "price": pa.float64(), "photo": pa.string()}  # fmt: skip
        pq.write_table(pa.Table.from_pylist(named, pa.schema(list(types.items()))), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
    columns = [*SPEC.items.text, *SPEC.items.categorical, *SPEC.items.numeric]
    files = inspect(str(path), [SPEC.items.id, *columns], section="items")
    given = read_entities(files, SPEC.items.id, columns, what="item", max_id_bytes=100, rejects=str(tmp_path / "no"))
    prepared = items_table(SPEC, given, pa.array([], pa.string()), np.zeros(len(ROWS), np.int64))
    check_rows(ROWS, SPEC)
    posted = posted_table(ROWS, SPEC)
    assert posted.schema == prepared.schema and posted.to_pylist() == prepared.to_pylist()
    one_by_one = pa.concat_tables([posted_table([row], SPEC) for row in ROWS])
    assert one_by_one.to_pylist() == prepared.to_pylist(), "an item does not depend on what is posted with it"
    a, b = item_features(prepared, FEATURES), item_features(posted, FEATURES)
    assert (a.ids, a.texts) == (b.ids, b.texts) and set(a.cat) == set(b.cat) == {"brand", "tags"}
    np.testing.assert_array_equal(a.num, b.num)
    np.testing.assert_array_equal(a.num_present, b.num_present)
    assert a.num_present[:, 0].tolist() == [1, 0, 1, 1, 0]
    for name in a.cat:
        np.testing.assert_array_equal(a.cat[name], b.cat[name])


def test_no_rows_and_a_graph_make_tables_of_the_same_columns():
    graph = DatasetSpec.from_dict({**SPEC.to_dict(), "graph": {"path": "kg.tsv"}})
    for spec in (SPEC, graph, dataclasses.replace(graph, items=None)):
        assert (
            posted_table([], spec).schema == posted_table([{"item_id": "a"}], spec).schema == schema.items_schema(spec)
        )
    assert posted_table([{"item_id": "a"}], graph).column(schema.category_column(schema.GRAPH)).to_pylist() == [[]]
