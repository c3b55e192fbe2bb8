"""A log that grows: only new files are read, and the prepared data is that of reading the whole log."""

from __future__ import annotations

import copy
import json
import logging
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepared_logs import START, histories, rejected, write_csv, write_spec

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.kept_log import from_json, to_json
from ctxrec.ingest.log_facts import LogFacts, NumberSums
from ctxrec.ingest.pipeline import prepare

SPEC = """[events]
path = "events"
action = "kind"
value = "much"
[events.context]
categorical = ["device"]
numeric = ["price"]
text = ["words"]
[items]
path = "items.csv"
categorical = ["colour"]
"""
HEADER = "user_id,item_id,timestamp,kind,much,device,price,words"


def rows_of(period: int, num: int = 60) -> list[tuple]:
    """Events of a period, with rows that are rejected, a duplicate of the period before, and items that come with it."""
    rng = random.Random(period)
    rows = []
    for n in range(num):
        time = START + period * 1000 + n
        rows.append((f"u{rng.randrange(9)}", f"i{rng.randrange(5 + 3 * period)}", time, rng.choice(["view", "buy", ""]),
                     rng.random(), rng.choice(["tv", "phone", f"new{period}"]), rng.choice([1.5, "x", ""]), "a word"))  # fmt: skip
    rows.append(("", "i1", START, "view", 1, "tv", 1, ""))
    rows.append(("u1", f"i{period}", "never", "view", 1, "tv", 1, ""))
    rows.append(("u1", "i1", START - 5, "view", 1, "tv", 1, "the same in each period"))
    return rows


def arrive(folder: Path, period: int) -> None:
    (folder / "events").mkdir(exist_ok=True)
    write_csv(folder / "events", rows_of(period), header=HEADER, name=f"{period}.csv")
    items = [(f"i{n}", ["red", "blue"][n % 2]) for n in range(4 + 2 * period)]
    write_csv(folder, items, header="item_id,colour", name="items.csv")


def grown(folder: Path, out: str, spec: str = SPEC, *overrides: str) -> PreparedData:
    config = load_config(None, list(overrides))
    return prepare(load_spec(write_spec(folder, spec)), str(folder / out), config, kept=str(folder / "kept"))


def whole(folder: Path, out: str = "out", spec: str = SPEC, *overrides: str) -> PreparedData:
    return prepare(load_spec(write_spec(folder, spec)), str(folder / out), load_config(None, list(overrides)))


def assert_same(grown: PreparedData, whole: PreparedData) -> None:
    ours, theirs = copy.deepcopy(grown.meta), copy.deepcopy(whole.meta)
    features, expected = ours.pop("features"), theirs.pop("features")
    for kind in ("item_numbers", "context_numbers"):
        for name, scale in expected.pop(kind).items():
            assert features[kind][name] == pytest.approx(scale)
        features.pop(kind)
    assert features == expected and ours == theirs
    assert grown.items.equals(whole.items)
    assert str(histories(grown)) == str(histories(whole)), "NaN stands for itself"
    assert json.loads((Path(grown.path) / schema.REPORT).read_text()) == json.loads(
        (Path(whole.path) / schema.REPORT).read_text()
    )


def rejects_of(data: PreparedData) -> list[dict]:
    files = sorted((Path(data.path) / schema.REJECTS).glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=str)


@pytest.mark.parametrize("buckets", [2, 5])
def test_a_grown_log_is_prepared_as_a_whole_one(ray_cluster, tmp_path, caplog, buckets):
    caplog.set_level(logging.INFO)
    options = f"prepare.buckets={buckets}"
    for period in range(3):
        arrive(tmp_path, period)
        found = grown(tmp_path, f"data{period}", SPEC, options)
    assert "1 of 3 files of the log are new" in caplog.text and caplog.text.count("the whole log is read") == 1
    expected = whole(tmp_path, "out", SPEC, options)
    assert_same(found, expected)
    assert rejects_of(found) == rejects_of(expected) and len(rejected(tmp_path)) >= 3 * 2
    caplog.clear()
    again = grown(tmp_path, "other", SPEC, options)
    assert "are new" not in caplog.text and "whole log" not in caplog.text, "no file is new"
    assert_same(again, expected)


def change_a_file(folder: Path) -> str:
    write_csv(folder / "events", rows_of(7), header=HEADER, name="0.csv")
    return "0.csv was changed"


def come_first(folder: Path) -> str:
    write_csv(folder / "events", rows_of(7), header=HEADER, name="00.csv")
    return "new files must come last"


def lose_a_file(folder: Path) -> str:
    (folder / "events" / "1.csv").unlink()
    return "nothing stands in the place of"


def damage_the_index(folder: Path) -> str:
    (folder / "kept" / "index.json").write_text('{"files": []}')
    return "is damaged"


def lose_a_shard(folder: Path) -> str:
    next((folder / "kept").glob("shards-*/*.arrow")).unlink()
    return "is missing"


@pytest.mark.parametrize("change", [change_a_file, come_first, lose_a_file, damage_the_index, lose_a_shard])
def test_what_is_kept_is_not_used_where_it_does_not_fit(ray_cluster, tmp_path, caplog, change):
    caplog.set_level(logging.INFO)
    for period in range(2):
        arrive(tmp_path, period)
        grown(tmp_path, f"data{period}")
    says = change(tmp_path)
    if change is not lose_a_file:
        arrive(tmp_path, 2)
    assert_same(grown(tmp_path, "last"), whole(tmp_path))
    assert says in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [('action = "kind"\n', ""), ('categorical = ["device"]\n', ""), ('path = "items.csv"', 'path = "items.csv"')],
)
def test_another_spec_reads_the_whole_log(ray_cluster, tmp_path, caplog, old, new):
    """Where only the item table is another one, the log is not read again."""
    caplog.set_level(logging.INFO)
    arrive(tmp_path, 0)
    grown(tmp_path, "data")
    write_csv(tmp_path, [("i1", "green"), ("brand new", "red")], header="item_id,colour", name="items.csv")
    spec = SPEC.replace(old, new)
    assert_same(grown(tmp_path, "last", spec), whole(tmp_path, "out", spec))
    assert caplog.text.count("the whole log is read") == (1 if old == new else 2)


def test_facts_are_kept_whole():
    facts = to_json(LogFacts(numbers={"price": NumberSums.of(np.array([1.5, np.nan], np.float32), 1)}))
    assert to_json(from_json(json.loads(json.dumps(facts)))) == facts
