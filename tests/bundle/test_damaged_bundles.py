"""Damage to a bundle or to the files beside it: the same answers or one line of ours, and a way to heal it.

These tests take the model that an earlier version published, so they need no training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import assert_users_mistake, call
from safetensors.numpy import load_file, save_file
from tolerance import assert_same_scores

from ctxrec.bundle import publish_lock, registry
from ctxrec.bundle.format import BUNDLE, check_bundle
from ctxrec.bundle.item_order import DIGEST, digest_of
from ctxrec.bundle.registry import Published, publish, read_published, roll_back
from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import hash_files, version_of, write_manifest
from ctxrec.experiments import ab_test
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import load_retriever

EARLIER = Path(__file__).parent / "published_v1"
NOW = 1_700_000_000
WRONG: tuple[Any, ...] = (None, 3, 1.5, True, "x", "", [], ["x"], {}, {"x": 1})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (version,) = (EARLIER / "versions").iterdir()
    return Path(shutil.copytree(version, tmp_path / "bundle"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "models"))


def seal(bundle: Path, **facts: Any) -> str:
    """Write the manifest of what lies there now, with all hashes right."""
    files = hash_files(str(bundle))
    kept = json.loads((EARLIER / "versions" / "63c60e9a2b40" / "manifest.json").read_text())
    facts = {key: kept[key] for key in ("encoder", "data_fingerprint")} | facts
    write_manifest(str(bundle), BUNDLE, files=files, model_version=version_of(files), **facts)
    return version_of(files)


def with_digests(bundle: Path) -> str:
    """Make it a bundle as it is written today; returns its version."""
    digest = digest_of(pq.read_table(bundle / "items.parquet").column(schema.ITEM_ID))
    for name in ("vectors.safetensors", "blend.safetensors"):
        save_file(load_file(bundle / name), bundle / name, metadata={DIGEST: digest})
    return seal(bundle, **{DIGEST: digest})


def answers(bundle: Path) -> list[tuple[list[str], Any]]:
    retriever = load_retriever(str(bundle))
    requests, _ = retriever.recommender.make_requests([RawRequest(user_id=u, timestamp=NOW) for u in ("u1", "new")])
    return [(retriever.item_ids(items), scores) for items, scores in retriever.top_k(requests, 5)]


def same_or_one_line(bundle: Path, wanted: list, *, of_any_content: bool = False) -> bool:
    """Whether it was refused; fails for other answers, and for any other exception."""
    try:
        found = answers(bundle)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return True
    for (items, scores), (wanted_items, wanted_scores) in zip(found, wanted, strict=True):
        if not of_any_content:
            assert items == wanted_items
            assert_same_scores(scores, wanted_scores)
    return False


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all keys, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple, to: Any) -> Any:
    if not path:
        return to
    return value | {path[0]: changed(value[path[0]], path[1:], to)}


@pytest.mark.parametrize("change", ["reversed", "a row less", "two swapped", "one renamed"])
@pytest.mark.parametrize("known_by", ["all files", "the arrays", "the manifest"])
def test_items_in_another_order_than_vectors_are_refused_though_all_hashes_fit(bundle, change, known_by):
    with_digests(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert not same_or_one_line(bundle, answers(EARLIER / "versions" / "63c60e9a2b40"))
    items = pq.read_table(bundle / "items.parquet")
    order = list(range(items.num_rows))
    order = {"reversed": order[::-1], "a row less": order[:-1], "two swapped": [1, 0, *order[2:]]}.get(change, order)
    other = items.take(order)
    if change == "one renamed":
        ids = ["other", *other.column(schema.ITEM_ID).to_pylist()[1:]]
        other = other.set_column(other.schema.get_field_index(schema.ITEM_ID), schema.ITEM_ID, [ids])
    pq.write_table(other, bundle / "items.parquet")
    if known_by == "the manifest":
        for name in ("vectors.safetensors", "blend.safetensors"):
            save_file(load_file(bundle / name), bundle / name)
    seal(bundle, **({} if known_by == "the arrays" else {DIGEST: manifest[DIGEST]}))
    says = (
        r"items\.parquet has \d+ rows and" if change == "a row less" else r"items\.parquet has other items than .*order"
    )
    for look in (lambda: check_bundle(str(bundle), scratch="unused"), lambda: load_retriever(str(bundle))):
        with pytest.raises(UserError, match=says):
            look()


@pytest.mark.parametrize("rehashed", [False, True], ids=["as it is", "with its own hash"])
def test_any_wrong_value_in_a_manifest_is_one_line_or_changes_nothing(bundle, rehashed):
    with_digests(bundle)
    wanted, whole = answers(bundle), json.loads((bundle / "manifest.json").read_text())
    refused = 0
    for path in places(whole):
        for wrong in WRONG:
            made = changed(whole, path, wrong)
            if rehashed:
                content = {key: value for key, value in made.items() if key != "sha256"}
                made = content | {"sha256": storage.sha256_json(content)}
            (bundle / "manifest.json").write_text(json.dumps(made))
            refused += same_or_one_line(bundle, wanted)
    assert refused > 60
    for text in ("", "null", "3", "[]", "{}", "[" * 100_000, "9" * 5000, '{"files": null}', "\ufeff{}", "{" * 9):
        (bundle / "manifest.json").write_text(text)
        assert same_or_one_line(bundle, wanted)
    (bundle / "manifest.json").write_bytes(b"\xff\xfe")
    assert same_or_one_line(bundle, wanted)


def test_a_manifest_names_no_file_outside_and_no_folder(bundle):
    files = hash_files(str(bundle))
    for name in ("../other", "/etc/hostname", "a/../../b"):
        write_manifest(str(bundle), BUNDLE, files={**files, name: "0"}, model_version="x")
        with pytest.raises(UserError, match="outside of it"):
            check_bundle(str(bundle), scratch="unused")
    (bundle / "folder").mkdir()
    write_manifest(str(bundle), BUNDLE, files={**files, "folder": "0"}, model_version="x")
    with pytest.raises(UserError, match="folder is missing"):
        check_bundle(str(bundle), scratch="unused")
    for version in ("../x", "a/b", "", "..", None, 3):
        write_manifest(str(bundle), BUNDLE, files=files, model_version=version)
        with pytest.raises(UserError, match=r"model_version .* expected a word"):
            check_bundle(str(bundle), scratch="unused")


def test_any_wrong_value_in_data_json_is_one_line(bundle):
    whole = json.loads((bundle / "data.json").read_text())
    wanted, refused = answers(bundle), 0
    for path in places(whole):
        if path[-1] in ("mean", "std") or len(path) > 4:
            continue
        for wrong in (None, 3, "x", ["x"], {"x": 1}):
            (bundle / "data.json").write_text(json.dumps(changed(whole, path, wrong)))
            seal(bundle)
            refused += same_or_one_line(bundle, wanted, of_any_content=True)
    assert refused > 60


def test_any_wrong_value_in_the_options_is_one_line(bundle):
    lines = (bundle / "config.toml").read_text().splitlines()
    wanted, refused = answers(bundle), 0
    for place, line in enumerate(lines):
        if " = " in line and place % 4 == 0:
            for wrong in ("3", '"x"', "[]", "{}"):
                other = [*lines[:place], f"{line.split(' = ')[0]} = {wrong}", *lines[place + 1 :]]
                (bundle / "config.toml").write_text("\n".join(other))
                seal(bundle)
                refused += same_or_one_line(bundle, wanted, of_any_content=True)
    assert refused > 20


def test_numbers_of_items_as_texts_are_one_line(bundle):
    """They would load, and each filter by that number would fail later."""
    items = pq.read_table(bundle / "items.parquet")
    place, name = items.column_names.index("num_price"), "num_price"
    pq.write_table(items.set_column(place, name, items.column(name).cast("string")), bundle / "items.parquet")
    seal(bundle)
    with pytest.raises(UserError, match=r"items.parquet: column 'num_price' is string; expected double"):
        load_retriever(str(bundle))


@pytest.mark.parametrize("name", ["items.parquet", "histories.arrow", "towers.safetensors", "vectors.safetensors",
                                  "blend.safetensors", "index.faiss", "data.json", "config.toml"])  # fmt: skip
@pytest.mark.parametrize("damage", ["emptied", "in half", "other"])
def test_a_file_of_other_content_is_one_line_though_its_hash_fits(bundle, name, damage):
    whole = (bundle / name).read_bytes()
    made = {"emptied": b"", "in half": whole[: len(whole) // 2], "other": b"hello, world\n" * 20}[damage]
    (bundle / name).write_bytes(made)
    seal(bundle)
    refused = (
        same_or_one_line(bundle, [], of_any_content=True) if (name, damage) != ("config.toml", "emptied") else True
    )
    assert refused


def test_any_wrong_current_json_is_one_line(models):
    path, whole = models / "current.json", json.loads((models / "current.json").read_text())
    wrong = [json.dumps(whole | {"version": w}) for w in (*WRONG, "../x", "a/b", "..")]
    wrong += [json.dumps(whole | {"previous": w}) for w in WRONG if w not in ([], ["x"])]
    wrong += [json.dumps(whole | {"previous": [w]}) for w in WRONG if w != "x"]
    for text in [*wrong, "", "null", "[]", "[" * 100_000, path.read_text()[:-9], "9" * 5000]:
        path.write_text(text)
        with pytest.raises(UserError, match=r"current\.json is damaged.*--repair|found|no bundle") as refused:
            load_retriever(str(models))
        assert "\n" not in str(refused.value)


def test_a_damaged_current_json_is_healed_by_publishing_under_a_flag(models, bundle, make_variant, tmp_path):
    first = read_published(str(models)).version
    second = make_variant(str(bundle), tmp_path / "second")
    third = make_variant(str(tmp_path / "second"), tmp_path / "third")
    publish(str(tmp_path / "second"), str(models))
    os.utime(models / "versions" / first / "manifest.json", (1, 1))
    (models / "current.json").write_text("")
    with pytest.raises(UserError, match="--repair"):
        publish(str(tmp_path / "third"), str(models))
    (models / "versions" / "broken").mkdir()
    assert publish(str(tmp_path / "third"), str(models), repair=True) == Published(third, (first, second))
    assert roll_back(str(models)) == Published(second, (first,))
    (models / "current.json").write_text("{}")
    done = call("ctxrec.publish", "--run", str(tmp_path / "third"), "--to", str(models), "--repair")
    assert done.returncode == 0 and f"serves {third}" in done.stdout
    assert_users_mistake(call("ctxrec.publish", "--to", str(models), "--rollback", "--repair"), "--repair needs --run")


@pytest.mark.parametrize("damage", ["a byte", "no manifest", "a lost file", "emptied"])
def test_a_damaged_version_is_healed_by_publishing_the_good_one(models, bundle, damage):
    version = read_published(str(models)).version
    wanted, lying = answers(bundle), models / "versions" / version
    if damage == "a byte":
        content = bytearray((lying / "index.faiss").read_bytes())
        content[-1] ^= 1
        (lying / "index.faiss").write_bytes(bytes(content))
    elif damage == "emptied":
        (lying / "manifest.json").write_text("")
    else:
        (lying / ("manifest.json" if damage == "no manifest" else "items.parquet")).unlink()
    assert same_or_one_line(models, wanted)
    assert publish(str(bundle), str(models)).version == version
    assert not same_or_one_line(models, wanted)
    assert [p.name for p in (models / "versions").iterdir()] == [version]


def test_a_bundle_that_lies_about_its_version_is_not_published(models, bundle):
    files = hash_files(str(bundle))
    write_manifest(str(bundle), BUNDLE, files=files, model_version="other")
    with pytest.raises(UserError, match="its version other is not the one of its files"):
        publish(str(bundle), str(models))
    assert "other" not in os.listdir(models / "versions")


def test_what_a_killed_publish_left_is_removed_by_the_next_one(models, bundle):
    left = [models / "versions" / "63c60e9a2b40.0a1b2c3d.tmp", models / "versions" / "x.0a1b2c3d.old"]
    for folder in left:
        shutil.copytree(bundle, folder)
    (models / "current.json.0a1b2c3d.tmp").write_text("{")
    kept = models / "versions" / "notes.tmp"
    kept.write_text("somebody else's")
    publish(str(bundle), str(models))
    assert not any(folder.exists() for folder in left) and kept.exists()
    assert not (models / "current.json.0a1b2c3d.tmp").exists()


def _hold(models: str, held: Any, go_on: Any) -> None:
    with publish_lock.publishing(models):
        held.set()
        go_on.wait(60)


def test_two_publishes_at_once_wait_for_each_other(models, bundle, monkeypatch, caplog):
    spawn = multiprocessing.get_context("spawn")
    held, go_on = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(str(models), held, go_on))
    other.start()
    assert held.wait(60)
    monkeypatch.setattr(publish_lock, "_WAIT_S", 0.2)
    with caplog.at_level("INFO"), pytest.raises(UserError, match=rf"process {other.pid} on .* has been changing"):
        publish(str(bundle), str(models))
    assert caplog.text.count(f"waiting for process {other.pid}") == 1
    with pytest.raises(UserError, match="has been changing"):
        roll_back(str(models))
    other.kill()  # and with it the lock
    other.join()
    publish(str(bundle), str(models))


def test_a_claim_on_an_object_store_refuses_others_until_it_ends_or_is_old(models, bundle, monkeypatch):
    """The way of an object store, on a local folder."""
    claims = models / ".publishing"

    def publishing(place: str):
        return publish_lock._claimed(place)

    monkeypatch.setattr(registry, "publishing", publishing)
    with publish_lock._claimed(str(models)):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* changes {models}.*or remove"):
            publish(str(bundle), str(models))
        (claim,) = claims.iterdir()
        old = time.time() - publish_lock._CLAIM_S - 100
        os.utime(claim, (old, old))
        publish(str(bundle), str(models))
        assert not claim.exists()
    assert list(claims.iterdir()) == []


def test_any_wrong_experiment_json_is_one_line_and_can_be_ended(models):
    path = models / "experiment.json"
    whole = {"name": "t", "arms": [{"name": "b", "version": "v", "share": 0.1}]}
    path.write_text(json.dumps(whole))
    assert ab_test.read_experiment(str(models)).arms[0].version == "v"
    arm = whole["arms"][0]
    wrong = [whole | {key: w} for key in whole for w in WRONG if not (key == "name" and w == "x")]
    wrong += [whole | {"arms": [arm | {key: w}]} for key in arm for w in WRONG if not (isinstance(w, str) and w)]
    wrong += [whole | {"arms": [arm | {"version": "../x"}]}]
    for text in [*map(json.dumps, wrong), "", "null", "[]", "[" * 100_000, json.dumps(whole)[:-4]]:
        path.write_text(text)
        with pytest.raises(UserError, match=r"experiment\.json.*--end-test") as refused:
            ab_test.read_experiment(str(models))
        assert "\n" not in str(refused.value)
        with pytest.raises(UserError, match="a damaged test was removed"):
            ab_test.end(str(models))
        assert not path.exists()
