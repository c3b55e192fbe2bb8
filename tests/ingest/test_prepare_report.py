"""The summary of `prepare`: what it says of columns, files and rejects, and how wide it gets."""

from __future__ import annotations

import json

import pytest
from prepared_logs import LAST, LOG, START, run, write_csv

from ctxrec.data.column_facts import ColumnFacts
from ctxrec.ingest import prepare_report
from ctxrec.ingest.prepare_report import summary

ITEMS = '[items]\npath = "items.csv"\ntext = ["title"]\ncategorical = ["genres", "tags"]\nnumeric = ["price"]\n'


@pytest.fixture
def shop(tmp_path):
    """A log of two files, with one reject of each of four kinds, and a catalogue whose texts hold lists."""
    head = "user_id,item_id,timestamp,kind,device,basket"
    rows = [("a", f"i{n}", START + n, "view" if n % 3 else "buy", "tv" if n % 2 else "", n) for n in range(6)]
    (tmp_path / "log").mkdir()
    write_csv(tmp_path / "log", rows, header=head, name="1.csv")
    bad = [("b", "", START, "", "", ""), ("b", "i1", "soon", "", "", ""), rows[0]]
    write_csv(tmp_path / "log", [*bad, ("one field only",)], header=head, name="2.csv")
    items = [
        (f"i{n}", f"Title {n}", "Action|Comedy" if n else "Drama|Action", "\"['x', 'y']\"", 19.99) for n in range(6)
    ]
    write_csv(
        tmp_path, [*items, ("i0", "again", "Drama", "[]", "free")], "item_id,title,genres,tags,price", "items.csv"
    )
    return tmp_path


SPEC = (
    '[events]\npath = "log"\naction = "kind"\n[events.context]\ncategorical = ["device"]\nnumeric = ["basket"]\n'
    + ITEMS
    + "{}"
    + LAST
)


def test_a_summary_has_columns_files_actions_and_the_first_reject_of_each_kind(shop, ray_cluster):
    data = run(shop, SPEC.format(""))
    report = json.loads((shop / "out" / "report.json").read_text())
    text = summary(data)
    assert report["actions"] == {"view": 4, "buy": 3} and report["times"]["first_us"] == START * 10**6
    assert {file.rsplit("/", 1)[1]: n for file, n in report["files"]["events"].items()} == {"1.csv": 6, "2.csv": 4}
    assert list(report["files"]["items"].values()) == [7] and report["files"]["users"] == {}
    columns = {c["column"]: c for section in report["columns"].values() for c in section}
    assert columns["device"] == {
        "column": "device", "use": "categorical", "missing": pytest.approx(4 / 7), "distinct": 1, "examples": ["tv"],
    }  # fmt: skip
    assert columns["basket"]["examples"] == ["0", "5"] and columns["price"]["examples"] == ["19.99"]
    assert columns["title"]["examples"] == ["Title 0", "Title 1", "Title 2"] and columns["title"]["missing"] == 0
    rejects = {reason: (r["rows"], r["row"], r["values"]) for reason, r in report["rejects"].items()}
    assert rejects == {
        "duplicate event": (1, 3, f"user_id = 'a', item_id = 'i0', timestamp = '{START}'"),
        "item table: duplicate id": (1, 7, "item_id = 'i0'"),
        "malformed row": (1, 4, "one field only"),
        "missing item id": (1, 1, "item_id = nothing"),
        "unparsable time": (1, 2, "timestamp = 'soon'"),
    }
    assert f"rejected 1: unparsable time; the first is row 2 of {shop}/log/2.csv: timestamp = 'soon'" in text
    assert "device     categorical    57.1%         1  tv" in text
    assert "view         4  57.1%" in text and "19.99" in text
    assert [
        line
        for line in text.splitlines()
        if len(line) > 120 and not line.startswith(("  note", "  warning", "  rejected", "  all"))
    ] == []
    notes = " ".join(data.meta["notes"])
    assert 'write genres = "|" under [items.separators]' in notes and 'write tags = "[]" under' in notes


def test_separators_make_lists_of_texts(shop, ray_cluster):
    before = run(shop, SPEC.format("")).fingerprint
    data = run(shop, SPEC.format('[items.separators]\ngenres = "|"\ntags = "[]"\n'))
    assert data.fingerprint != before
    assert data.items.column("cat_genres").to_pylist()[:2] == [["Drama", "Action"], ["Action", "Comedy"]]
    assert data.items.column("cat_tags").to_pylist()[0] == ["x", "y"]
    assert data.features.item_categories["genres"] == ["Action", "Comedy", "Drama"]
    assert not any("looks like lists" in note or "divides no value" in note for note in data.meta["notes"])
    wrong = run(shop, SPEC.format('[items.separators]\ngenres = ";"\ntags = "[]"\n'))
    assert '[items.separators] genres = ";" divides no value; look at the file and correct it' in wrong.meta["notes"]


def test_a_folder_of_an_earlier_version_has_a_summary(tmp_path, ray_cluster):
    write_csv(tmp_path, [("a", "i", START), ("b", "j", START + 1)])
    data = run(tmp_path, LOG + LAST)
    (tmp_path / "out" / "report.json").unlink()
    assert "2 rows read, 2 events kept" in summary(data)


def test_wide_tables_and_many_files_are_cut():
    facts = [vars_of(ColumnFacts(f"c{n}", "text", float(n == 40), None, ["x" * 40] * 3)) for n in range(41)]
    lines = prepare_report._columns({"items": facts})
    assert len(lines) == 14 and lines[-1] == "    and 29 more" and "c40" in lines[1] and "no value" not in lines[2]
    assert all(len(line) <= 120 for line in lines)
    files = {f"/a/{'long/' * 20}{n}.csv": 1000 - n for n in range(100)}
    lines = prepare_report._files({"events": files})
    assert lines[0].split()[:4] == ["100", "files", "of", "[events]"] and "99.csv" in lines[1] and "901" in lines[1]
    assert len(lines) == 7 and all(len(line) <= 120 for line in lines)


def vars_of(facts: ColumnFacts) -> dict:
    return {name: getattr(facts, name) for name in ("column", "use", "missing", "distinct", "examples")}
