from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.datasets.amazon_industrial import write_amazon_industrial

EVENTS = pd.DataFrame({"user_id": ["A1", "A1", "A2"], "item_id": ["10", "7", "10"], "timestamp": [0, 1, 0]})
ITEMS = pd.DataFrame(
    {
        "item_id": ["7", "10", "3"],
        "title": ["Tape &amp; Glue", " Relay ", None],
        "brand": ["3M", "", None],
        "categories": ["x", "y", "z"],
        "description": ["'Strong tape.', \"Ten' rolls\"", "5' of pipe", ""],
    }
)


def write(folder: Path, events: pd.DataFrame = EVENTS, items: pd.DataFrame = ITEMS, *, ending: str = "parquet") -> str:
    folder.mkdir(exist_ok=True)
    for name, frame in (("events", events), ("items", items)):
        getattr(frame, "to_csv" if ending == "csv" else "to_parquet")(folder / f"{name}.{ending}", index=False)
    return str(folder)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_tables_and_spec(tmp_path, ending):
    out = tmp_path / "out"
    assert write_amazon_industrial(str(out), write(tmp_path / "own", ending=ending))
    assert pq.read_table(out / "events.parquet").to_pylist() == [
        {"user_id": "A1", "item_id": "10", "timestamp": 0},
        {"user_id": "A1", "item_id": "7", "timestamp": 1},
        {"user_id": "A2", "item_id": "10", "timestamp": 0},
    ]
    assert pq.read_table(out / "items.parquet").to_pylist() == [
        {"item_id": "7", "title": "Tape & Glue", "brand": "3M", "description": "Strong tape. Ten' rolls"},
        {"item_id": "10", "title": "Relay", "brand": None, "description": "5' of pipe"},
        {"item_id": "3", "title": "", "brand": None, "description": None},
    ]
    spec = load_spec(str(out / "dataset.toml"))
    assert spec.split.strategy == "last" and spec.items.text == ("title", "brand", "description")
    assert not write_amazon_industrial(str(out))  # what is there will do


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        (EVENTS.assign(timestamp="first"), ITEMS, "'first' as timestamp in row 1; expected a whole number"),
        (EVENTS.drop(columns="item_id"), ITEMS, "events.parquet has the columns user_id, timestamp; expected also item_id"),
        (EVENTS, ITEMS.drop(columns="brand"), "expected also brand"),
        (EVENTS[:0], ITEMS, "found no event in events.parquet and items.parquet in own"),
    ],
)  # fmt: skip
def test_damaged_tables(tmp_path, events, items, message):
    with pytest.raises(UserError, match=message):
        write_amazon_industrial(str(tmp_path / "out"), write(tmp_path / "own", events, items))
    assert not (tmp_path / "out").exists()


def test_missing_sources(tmp_path):
    with pytest.raises(UserError, match=r"no public address of its own; give a folder with .* --source"):
        write_amazon_industrial(str(tmp_path / "out"))
    folder = write(tmp_path / "own")
    Path(folder, "items.parquet").unlink()
    with pytest.raises(UserError, match=r"found events.parquet in .*; expected items.parquet or items.csv"):
        write_amazon_industrial(str(tmp_path / "out"), folder)
