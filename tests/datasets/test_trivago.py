from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.datasets.trivago import WEIGHTS, write_trivago

COLUMNS = ["user_id", "session_id", "timestamp", "step", "action_type", "reference", "platform", "city", "device"]
COLUMNS += ["current_filters", "impressions", "prices"]
PARIS, ROME = "Paris, France", "Rome, Italy"
LOG = [
    # Session a: a filter is chosen between two looks, the click-out shows three hotels; what follows it is cut off.
    ("U", "a", 100, 1, "search for poi", "Louvre", "FR", PARIS, "mobile", None, None, None),
    ("U", "a", 101, 2, "interaction item image", "11", "FR", PARIS, "mobile", None, None, None),
    ("U", "a", 101, 3, "interaction item image", "11", "FR", PARIS, "mobile", None, None, None),
    ("U", "a", 105, 4, "filter selection", "4 Star", "FR", PARIS, "mobile", "4 Star|Wifi", None, None),
    ("U", "a", 109, 5, "interaction item info", "12", "FR", PARIS, "mobile", None, None, None),
    ("U", "a", 120, 6, "clickout item", "12", "FR", PARIS, "mobile", "4 Star|Wifi", "11|12|13", "80|100|70"),
    ("U", "a", 130, 7, "interaction item image", "13", "FR", PARIS, "mobile", None, None, None),
    # Session b, interleaved: the filters of another session are not its own; a search by name refers to no hotel.
    ("V", "b", 110, 1, "search for item", "Hotel Roma", "IT", ROME, "desktop", None, None, None),
    ("V", "b", 111, 2, "search for item", "21", "IT", ROME, "desktop", None, None, None),
    ("V", "b", 115, 3, "clickout item", "12", "IT", ROME, "desktop", None, "12|21", "140|90"),
    ("V", "b", 119, 4, "clickout item", "21", "IT", ROME, "desktop", None, "21", "91"),
    # Session c: no click-out, no session.
    ("U", "c", 200, 1, "interaction item deals", "11", "FR", PARIS, "tablet", None, None, None),
]


def write(folder: Path, rows=LOG, name: str = "train.csv") -> str:
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.to_csv(folder / name, index=False) if name.endswith("csv") else frame.to_parquet(folder / name)
    return str(folder)


@pytest.mark.parametrize("name", ["train.csv", "trivago_100k.parquet"])
def test_sessions_become_histories_that_end_with_a_clickout(tmp_path, name):
    out = tmp_path / "out"
    assert write_trivago(str(out), write(tmp_path / "own", name=name))
    events = pq.read_table(out / "events.parquet").to_pylist()
    keys = ["user_id", "item_id", "timestamp", "action", "filters"]
    assert [tuple(event[key] for key in keys) for event in events] == [
        ("a", "11", 101, "interaction item image", None),
        ("a", "12", 109, "interaction item info", "4 Star, Wifi"),
        ("a", "12", 120, "clickout item", "4 Star, Wifi"),
        ("b", "21", 111, "search for item", None),
        ("b", "12", 115, "clickout item", None),
        ("b", "21", 119, "clickout item", None),
    ]
    assert {(e["user_id"], e["platform"], e["city"], e["device"]) for e in events} == {
        ("a", "FR", PARIS, "mobile"), ("b", "IT", ROME, "desktop")
    }  # fmt: skip
    # Hotel 12 was shown or looked at three times in Paris, once shown and once clicked in Rome; prices are medians.
    assert pq.read_table(out / "items.parquet").to_pylist() == [
        {"item_id": "11", "city": PARIS, "price": 80.0},
        {"item_id": "12", "city": PARIS, "price": 120.0},
        {"item_id": "21", "city": ROME, "price": 90.5},
    ]


def test_the_spec_weighs_the_actions(tmp_path):
    out = tmp_path / "out"
    write_trivago(str(out), write(tmp_path / "own"))
    spec = load_spec(str(out / "dataset.toml"))
    assert spec.events.actions == WEIGHTS and max(WEIGHTS, key=WEIGHTS.__getitem__) == "clickout item"
    assert spec.split.repeats and spec.split.strategy == "last" and spec.events.action == "action"
    assert spec.events.context.categorical == ("device", "platform", "city")
    assert spec.events.context.text == ("filters",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(*LOG[5][:10], "11|12", "80"), *LOG[6:]], r"lists 2 impressions with 1 prices \('11\|12'\)"),
        ([(*LOG[5][:10], "11|12", None), *LOG[6:]], "lists 2 impressions with 1 prices"),
        ([(*LOG[5][:10], "12", "cheap")], "the lists of prices has 'cheap' as price in row 1; expected a number"),
        ([(*LOG[0][:2], "noon", *LOG[0][3:])], "'noon' as timestamp in row 1; expected a whole number"),
        (LOG[:4], "found no event in train.csv in own"),
    ],
)
def test_damaged_logs(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        write_trivago(str(tmp_path / "out"), write(tmp_path / "own", rows))
    assert not (tmp_path / "out").exists()


def test_missing_sources(tmp_path):
    with pytest.raises(UserError, match=r"handed out on the challenge's site after registration; give its train.csv"):
        write_trivago(str(tmp_path / "out"))
    folder = Path(write(tmp_path / "own", name="test.csv"))
    with pytest.raises(UserError, match=r"found test.csv in .*; expected trivago\*.parquet or .* of trivago"):
        write_trivago(str(tmp_path / "out"), str(folder))
    write(folder)
    path = folder / "train.csv"
    path.write_text(path.read_text().replace("prices", "cost"))
    with pytest.raises(UserError, match="expected also prices"):
        write_trivago(str(tmp_path / "out"), str(folder))
