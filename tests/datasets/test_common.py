"""Finding and reading the files that people give."""

from __future__ import annotations

import io
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.core.errors import UserError
from ctxrec.datasets import common

COLUMNS: dict[str, common.Kind] = {"id": "text", "amount": "number", "count": "whole", "at": "time"}
CSV = b"id,extra,amount,count,at\n007,x,1.5,3,2011-01-02 03:04\nNA,x,,4,2011-01-03 00:00\n,x,2,,\n"


def as_file(frame: pd.DataFrame, ending: str) -> bytes:
    buffer = io.BytesIO()
    {"parquet": frame.to_parquet, "xlsx": frame.to_excel}[ending](buffer, index=False)
    return buffer.getvalue()


def rows(frame: pd.DataFrame) -> list[list]:
    return [[None if pd.isna(value) else value for value in row] for row in frame.itertuples(index=False)]


def test_every_format_gives_the_same_types():
    times = [pd.Timestamp("2011-01-02 03:04"), pd.Timestamp("2011-01-03"), None]
    wanted = [["007", 1.5, 3, times[0]], ["NA", None, 4, times[1]], [None, 2.0, None, None]]
    frame = pd.DataFrame(wanted, columns=list(COLUMNS)).assign(extra="x")
    files = {"csv": CSV, "parquet": as_file(frame, "parquet"), "xlsx": as_file(frame, "xlsx")}
    read = {ending: common.read_frame(f"log.{ending}", data, COLUMNS) for ending, data in files.items()}
    for made in read.values():
        assert rows(made) == wanted
        assert list(made.columns) == list(COLUMNS)
        assert [str(made.dtypes[name]) for name in ("id", "amount", "count")] == ["str", "float64", "Int64"]


def test_ids_that_a_file_holds_as_numbers_become_text():
    data = as_file(pd.DataFrame({"id": [85123, 7]}), "parquet")
    assert common.read_frame("log.parquet", data, {"id": "text"})["id"].tolist() == ["85123", "7"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("log.parquet", b"PAR1 nothing", "log.parquet cannot be read .*take an unchanged copy"),
        ("log.xlsx", b"PK nothing", "log.xlsx cannot be read"),
        ("log.csv", b"", "log.csv cannot be read"),
        ("log.csv", b"\xff\xfe\x00\x01", "log.csv cannot be read"),
        ("log.csv", b"id,amount\n1,2\n1,2,3\n", "log.csv cannot be read"),
        ("log.csv", b"id,amount\n1,2\n", "log.csv has the columns id, amount; expected also count, at"),
        ("log.csv", CSV.replace(b"1.5", b"much"), "log.csv has 'much' as amount in row 1; expected a number"),
        ("log.csv", CSV.replace(b",4,", b",4.5,"), "log.csv has '4.5' as count in row 2; expected a whole number"),
        ("log.csv", CSV.replace(b"2011-01-03 00:00", b"later"), "has 'later' as at in row 2; expected a time"),
    ],
)
def test_a_damaged_table_says_where_and_what(name, data, message):
    with pytest.raises(UserError, match=message):
        common.read_frame(name, data, COLUMNS)


def test_files_are_found_in_folders_zips_and_alone(tmp_path):
    wanted = ["log.parquet|log.csv", "items.csv"]
    with pytest.raises(
        UserError, match=r"there is no .*none; expected a file, folder or zip with log.parquet or log.csv"
    ):
        common.find_files(str(tmp_path / "none"), wanted, what="the shop")
    with pytest.raises(UserError, match="found no file in"):
        common.find_files(str(tmp_path), wanted, what="the shop")
    (tmp_path / "log.csv").write_bytes(b"a")
    assert common.find_files(str(tmp_path / "log.csv"), ["log.csv"], what="the shop") == {"log.csv": b"a"}
    with pytest.raises(UserError, match=r"found log.csv in .*; expected items.csv of the shop"):
        common.find_files(str(tmp_path), wanted, what="the shop")
    (tmp_path / "items.csv").write_bytes(b"b")
    found = {"log.csv": b"a", "items.csv": b"b"}
    assert common.find_files(str(tmp_path), wanted, what="the shop") == found

    folder = tmp_path / "archive"
    folder.mkdir()
    archive = folder / "shop.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name, data in found.items():
            made.writestr(f"inside/{name}", data)
    assert common.find_files(str(archive), wanted, what="the shop") == found
    assert common.find_files(str(folder), wanted, what="the shop") == found  # a zip alone in a folder


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "shop.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("log.csv", "some,text")
    path.write_bytes(path.read_bytes().replace(b"some,text", b"same,text"))
    with pytest.raises(UserError, match=r"shop.zip is damaged .*take an unchanged copy of the shop"):
        common.find_files(str(path), ["log.csv"], what="the shop")


def test_a_copy_with_another_sum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "page"
    page.write_bytes(b"an error page")
    with pytest.raises(UserError, match=r"the archive has md5 \w{32}, expected 00"):
        common.download(page.as_uri(), "set.zip", what="the archive", md5="00")
    copy = common.download(page.as_uri(), "set.zip", what="the archive")
    page.unlink()
    assert common.download(page.as_uri(), "set.zip", what="the archive") == copy  # the copy is taken again
    with pytest.raises(UserError, match="the archive is not reachable"):
        common.download(page.as_uri(), "other.zip", what="the archive")


def test_a_data_set_without_events_is_refused(tmp_path):
    made = common.Made(tables={"events": pa.table({"user_id": pa.array([], pa.string())})}, spec="", source="a log")
    with pytest.raises(UserError, match="found no event in a log"):
        common.write_dataset(str(tmp_path / "out"), None, writer="x 1", make=lambda: made)
    assert not (tmp_path / "out").exists()


def test_another_writer_or_source_writes_anew(tmp_path):
    out = str(tmp_path / "out")

    def write(value: str, writer: str, source: str | None) -> bool:
        table = pa.table({"user_id": [value]})
        made = common.Made(tables={"events": table}, spec="name = 'x'", source=value)
        return common.write_dataset(out, source, writer=writer, make=lambda: made)

    assert write("a", "x 1", "here")
    assert not write("b", "x 1", "here") and not write("b", "x 1", None)
    assert write("c", "x 1", "there") and common.source_name(out) == "c"
    assert write("d", "x 2", "there") and pq.read_table(f"{out}/events.parquet")["user_id"].to_pylist() == ["d"]
