from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.datasets import online_retail, source_name
from ctxrec.datasets.online_retail import write_online_retail, write_online_retail_repeats

UK = "United Kingdom"
COLUMNS = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
LINES = [
    ("536365", "85123A", "HANGING HEART ", 6, "2010-12-01 08:26", 2.0, 17850, UK),
    ("536365", 71053, "LANTERN", 6, "2010-12-01 08:26", 3.39, 17850, UK),
    ("536365", "85123A", "HANGING HEART", 1, "2010-12-01 08:26", 2.0, 17850, UK),  # the same again
    ("536366", "85123A", None, 2, "2010-12-02 09:00", 4.0, 12583, "France"),
    ("536367", "85123A", "heart, hanging", 2, "2010-12-03 09:00", 9.0, 12583, "France"),
    ("536367", 71053, None, 1, "2010-12-03 09:00", 3.39, 12583, "France"),
    ("536368", "22222", None, 1, "2010-12-03 09:01", 1.0, 12583, "France"),
    # Left out: cancellation, return, gift, nobody's, postage, a fee.
    ("C536379", "71053", "LANTERN", -1, "2010-12-04 09:00", 3.39, 17850, UK),
    ("536380", "71053", "damaged", -5, "2010-12-04 09:00", 0.0, None, UK),
    ("536381", "71053", "LANTERN", 1, "2010-12-04 09:00", 0.0, 17850, UK),
    ("536382", "71053", "LANTERN", 1, "2010-12-04 09:00", 3.39, None, UK),
    ("536383", "POST", "POSTAGE", 1, "2010-12-04 09:00", 18.0, 12583, "France"),
    ("536384", "C2", "CARRIAGE", 1, "2010-12-04 09:00", 50.0, 17850, UK),
]


def frame() -> pd.DataFrame:
    made = pd.DataFrame(LINES, columns=COLUMNS)
    return made.assign(InvoiceDate=pd.to_datetime(made["InvoiceDate"]), CustomerID=made["CustomerID"].astype(float))


def write(folder: Path, ending: str) -> str:
    path = folder / f"Online Retail.{ending}"
    if ending == "xlsx":
        frame().to_excel(path, index=False)
    elif ending == "csv":
        frame().to_csv(path, index=False)
    else:
        frame().assign(StockCode=frame()["StockCode"].astype(str)).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("ending", ["xlsx", "csv", "parquet"])
def test_tables_from_each_format(tmp_path, ending):
    out = tmp_path / "out"
    assert write_online_retail(str(out), write(tmp_path, ending))
    first, second, third = 1291191960, 1291280400, 1291366800  # 1, 2 and 3 December 2010, UTC
    events = pq.read_table(out / "events.parquet")
    assert events.column_names == ["user_id", "item_id", "quantity", "timestamp", "country"]
    assert [tuple(row.values()) for row in events.to_pylist()] == [
        ("17850", "85123A", 6.0, first, UK),
        ("17850", "71053", 6.0, first, UK),
        ("12583", "85123A", 2.0, second, "France"),
        ("12583", "85123A", 2.0, third, "France"),
        ("12583", "71053", 1.0, third, "France"),
        ("12583", "22222", 1.0, third + 60, "France"),
    ]
    items = pq.read_table(out / "items.parquet").to_pylist()
    # Of equally frequent descriptions the first; a price is the median of the purchases kept.
    assert [(i["item_id"], i["description"], round(i["price"], 2)) for i in items] == [
        ("85123A", "HANGING HEART", 4.0), ("71053", "LANTERN", 3.39), ("22222", None, 1.0)
    ]  # fmt: skip
    assert source_name(str(out)) == f"Online Retail.{ending} in Online Retail.{ending}"


def test_repeats_are_the_same_tables_with_another_spec(tmp_path):
    source = write(tmp_path, "csv")
    first, again = tmp_path / "first", tmp_path / "again"
    assert write_online_retail(str(first), source) and write_online_retail_repeats(str(again), source)
    for name in ("events", "items"):
        assert pq.read_table(first / f"{name}.parquet").equals(pq.read_table(again / f"{name}.parquet"))
    specs = [load_spec(str(folder / "dataset.toml")) for folder in (first, again)]
    assert [spec.name for spec in specs] == ["online-retail", "online-retail-repeats"]
    assert [spec.split.repeats for spec in specs] == [False, True]
    for spec in specs:
        assert spec.split.strategy == "temporal" and spec.events.context.categorical == ("country",)
        assert spec.events.value == "quantity" and spec.items.numeric == ("price",)


def test_one_is_not_taken_for_the_other(tmp_path):
    source, out = write(tmp_path, "csv"), str(tmp_path / "out")
    assert write_online_retail(out, source) and not write_online_retail(out, source)
    assert write_online_retail_repeats(out, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.drop(columns=["UnitPrice", "Country"]), "expected also UnitPrice, Country"),
        (lambda made: made.assign(Quantity="many"), "'many' as Quantity in row 1; expected a number"),
        (lambda made: made.assign(InvoiceDate="soon"), "'soon' as InvoiceDate in row 1; expected a time"),
        (lambda made: made.assign(CustomerID=1.5), "as CustomerID in row 1; expected a whole number"),
        (lambda made: made.assign(Quantity=-1), "found no event in retail.csv"),
    ],
)
def test_damaged_tables(tmp_path, change, message):
    path = tmp_path / "retail.csv"
    change(frame()).to_csv(path, index=False)
    with pytest.raises(UserError, match=message):
        write_online_retail(str(tmp_path / "out"), str(path))
    assert not (tmp_path / "out").exists()


def test_missing_sources(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no .*nowhere; expected a file, folder or zip"):
        write_online_retail(str(tmp_path / "out"), str(tmp_path / "nowhere"))
    (tmp_path / "notes.csv").write_text("x")
    with pytest.raises(UserError, match=r"found notes.csv in .*; expected .* of Online Retail"):
        write_online_retail(str(tmp_path / "out"), str(tmp_path))
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(online_retail, "ARCHIVE_URL", (tmp_path / "nothing.zip").as_uri())
    with pytest.raises(UserError, match=r"cannot be had: the UCI archive is not reachable .* with --source"):
        write_online_retail_repeats(str(tmp_path / "out"))
