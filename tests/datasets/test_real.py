"""The public data sets themselves, where a copy of their own files lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from paths import SHARED_DATA

from ctxrec.core.dataset_spec import load_spec
from ctxrec.datasets import DATASETS

COPIES = SHARED_DATA


def write(name: str, source: str, out: Path) -> tuple[pa.Table, pa.Table]:
    """Events and items that a data set's writer makes of its own files."""
    if not (COPIES / source).is_dir():
        pytest.skip(f"no copy of {source} at {COPIES / source}")
    assert DATASETS[name](str(out), str(COPIES / source))
    assert load_spec(str(out / "dataset.toml")).name == name
    return pq.read_table(out / "events.parquet"), pq.read_table(out / "items.parquet")


@pytest.mark.parametrize(
    ("name", "source", "events", "users", "items", "catalogue"),
    [
        ("ml-latest-small", "ml-latest-small", 100_836, 610, 9_724, 9_742),
        ("online-retail", "online-retail", 386_250, 4_334, 3_659, 3_659),
        ("online-retail-repeats", "online-retail", 386_250, 4_334, 3_659, 3_659),
        ("amazon-industrial", "amazon-industrial", 22_174, 3_285, 3_538, 3_686),
    ],
)
def test_counts(tmp_path, name, source, events, users, items, catalogue):
    log, table = write(name, source, tmp_path)
    assert len(log) == events and pc.count_distinct(log["user_id"]).as_py() == users
    assert pc.count_distinct(log["item_id"]).as_py() == items and len(table) == catalogue
    assert pc.count_distinct(table["item_id"]).as_py() == catalogue
    assert all(log[column].null_count == 0 for column in log.column_names)


def test_trivago_sessions(tmp_path):
    """The log's own 100,003 rows hold every kind of search; what is kept is checked row by row against them."""
    log, table = write("trivago", "trivago", tmp_path)
    raw = pq.read_table(COPIES / "trivago" / "trivago_100k.parquet")
    assert len(raw) == 100_003 and pc.count_distinct(raw["user_id"]).as_py() == 6_593
    clickouts = raw.filter(pc.equal(raw["action_type"], "clickout item"))
    sessions = set(clickouts["session_id"].to_pylist())
    assert set(log["user_id"].to_pylist()) == sessions
    last = dict(zip(log["user_id"].to_pylist(), log["action"].to_pylist(), strict=True))  # the last of each remains
    assert set(last.values()) == {"clickout item"}
    found = pc.sum(pc.equal(log["action"], "clickout item")).as_py()
    key = ["session_id", "timestamp", "action_type", "reference"]
    assert found == len(clickouts.group_by(key).aggregate([]))  # every click-out once
    assert set(log["item_id"].to_pylist()) == set(table["item_id"].to_pylist()) and len(table) == 13_618
    assert table["city"].null_count == 0


def test_the_years_of_real_titles(tmp_path):
    _, items = write("ml-latest-small", "ml-latest-small", tmp_path)
    years = items["year"].drop_null()
    assert len(years) > 0.99 * len(items) and pc.min(years).as_py() >= 1900 and pc.max(years).as_py() <= 2018
