"""Files and values as users of data frames, Arrow and recommenders meet them: read rightly, noted, or one clear mistake."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_logs import LAST, START, histories, run

from ctxrec.core.errors import UserError

N = 12
USERS = [f"u{n % 3}" for n in range(N)]
ITEMS = [f"i{n % 5}" for n in range(N)]
TIMES = [START + 60 * n for n in range(N)]
ROWS = list(zip(USERS, ITEMS, TIMES, strict=True))
HEAD = "user_id,item_id,timestamp"
SPEC = '[events]\npath = "log"\n{}' + LAST
CONTEXT = '[events.context]\n{} = ["x"]\n'
CATALOGUE = '[items]\npath = "items.parquet"\n{} = ["x"]\n'


@pytest.fixture(autouse=True)
def _cluster(ray_cluster):
    return None


@pytest.fixture
def log(tmp_path):
    """Writes a file of the log: text, bytes, or columns that replace or join those of the usual rows."""
    folder = tmp_path / "log"
    folder.mkdir()

    def write(name, content=None, **columns):
        if content is None:
            usual = {"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES}
            pq.write_table(pa.table(usual | columns), folder / name)
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def csv(rows=ROWS, head=HEAD):
    return "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n"


def json_lines(rows=ROWS):
    return "".join(json.dumps(dict(zip(HEAD.split(","), row, strict=True))) + "\n" for row in rows)


def first_us(data):
    return data.meta["times"]["first_us"]


def test_files_whose_columns_have_other_types_are_one_log(tmp_path, log):
    log("a.parquet", user_id=pa.array([n % 3 for n in range(N)]), item_id=pa.array(ITEMS).dictionary_encode())
    log("b.parquet", user_id=pa.array([f"{n % 3}" for n in range(N)]), timestamp=[t + 1 for t in TIMES])
    log("c.parquet", user_id=pa.array([decimal.Decimal(n % 3) for n in range(N)], pa.decimal128(9, 2)),
        item_id=pa.array(ITEMS, pa.large_string()), timestamp=[t + 2 for t in TIMES])  # fmt: skip
    log("d.parquet", user_id=pa.nulls(0), item_id=pa.nulls(0), timestamp=pa.nulls(0))
    log("e.csv", HEAD + "\n")
    log("f.csv", "")
    data = run(tmp_path, SPEC.format(""))
    assert sorted(histories(data)) == ["0", "1", "2"]
    assert (data.meta["counts"]["events"], data.meta["counts"]["items"], data.meta["counts"]["rejects"]) == (
        3 * N,
        5,
        {},
    )


@pytest.mark.parametrize(
    "times",
    [
        pa.array([START * 1000 + n for n in range(N)], pa.timestamp("ms", tz="Asia/Tokyo")),
        pa.array([START * 1000 + n for n in range(N)], pa.timestamp("ms", tz="Mars/Olympus")),
        pa.array([decimal.Decimal(t) for t in TIMES], pa.decimal128(18, 3)),
        pa.array(TIMES).dictionary_encode(),
        pa.array([f"2020-09-13 12:26:{40 + n} UTC" for n in range(N)]),
        pa.array([f"2020-09-13T14:26:{40 + n}+02:00" for n in range(N)], pa.large_string()),
        pa.array([f"{t:.9e}" for t in TIMES]),
    ],
    ids=["zone", "unknown zone", "decimal", "dictionary", "BigQuery", "offset", "scientific"],
)
def test_times_of_any_kind(tmp_path, log, times):
    log("a.parquet", timestamp=times)
    assert first_us(run(tmp_path, SPEC.format(""))) == START * 10**6


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates(tmp_path, log, kind):
    log("a.parquet", timestamp=pa.array([datetime.date(2020, 1, 1 + n) for n in range(N)], kind))
    assert first_us(run(tmp_path, SPEC.format(""))) == 1_577_836_800 * 10**6


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_are_seconds(tmp_path, log, unit):
    log("a.parquet", x=pa.array([datetime.timedelta(seconds=n) for n in range(N)], pa.duration(unit)))
    data = run(tmp_path, SPEC.format(CONTEXT.format("numeric")))
    assert histories(data)["u1"]["ctx_x"] == pytest.approx([1, 4, 7, 10])
    data = run(tmp_path, SPEC.format(CONTEXT.format("categorical")))
    assert sorted(data.features.context_categories["x"], key=int) == [str(n) for n in range(N)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("crlf.csv", csv().replace("\n", "\r\n")),
        ("crlf.tsv", csv().replace(",", "\t").replace("\n", "\r\n")),
        ("cr.csv", csv().replace("\n", "\r")),
        ("bom.csv", "\ufeff" + csv()),
        ("delimiter.csv", csv().replace("\n", ",\n")),
        ("index.csv", csv([(n, *row) for n, row in enumerate(ROWS)], "," + HEAD)),
        ("crlf.jsonl", json_lines().replace("\n", "\r\n")),
        ("other.csv", csv([(*row, "x") for row in ROWS], HEAD + ",x").encode() + b"u0,i0,1600009999,caf\xe9\n"),
    ],
)
def test_ends_of_lines_and_columns_without_a_use(tmp_path, log, name, content):
    log(name, content)
    counts = run(tmp_path, SPEC.format("")).meta["counts"]
    assert (counts["users"], counts["items"], counts["rejects"]) == (3, 5, {})


def test_lines_that_are_no_text_cost_themselves_alone(tmp_path, log):
    log("a.csv", csv().encode() + b"\x00" * 500)
    log(
        "b.jsonl",
        json_lines([(u, i, t + 1) for u, i, t in ROWS]).encode() + b'{"user_id": "caf\xe9", "item_id": "i"}\n',
    )
    counts = run(tmp_path, SPEC.format("")).meta["counts"]
    assert (counts["events"], counts["users"], counts["rejects"]) == (2 * N, 3, {"malformed row": 2})


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (pa.array([float(2**53 + 2 * (n % 5)) for n in range(N)]), str(2**53)),
        (pa.array([2**63 + n % 5 for n in range(N)], pa.uint64()), str(2**63)),
        (pa.array([n % 5 == 0 for n in range(N)]), "true"),
        (pa.array([uuid.UUID(int=n % 5) for n in range(N)], pa.uuid()), str(uuid.UUID(int=0))),
        (pa.array([float(n % 5) if n != 1 else None for n in range(N)]), "0"),
    ],
    ids=["large floats", "uint64", "bool", "uuid", "floats for want of integers with null"],
)
def test_ids_of_any_kind(tmp_path, log, ids, found):
    log("a.parquet", item_id=ids)
    assert run(tmp_path, SPEC.format("")).items.column("item_id")[0].as_py() == found


def test_ids_that_nobody_may_have_meant_are_noted(tmp_path, log):
    odd = [(" u0", "i0", START), ("nan", "i1", START), ("\\N", "7.0", START), ("   ", "i1", START)]
    log("a.csv", csv([*ROWS, *odd]))
    data = run(tmp_path, SPEC.format(""))
    notes = data.meta["notes"]
    assert any(n.startswith("user_id: 1 values have blanks around them, such as ' u0'") for n in notes)
    assert any(n.startswith("user_id: 2 values are a word for a missing value, such as 'nan'") for n in notes)
    assert any(n.startswith("item_id: 1 values are whole numbers written as floats, such as '7.0'") for n in notes)
    assert data.meta["counts"]["rejects"] == {"missing user id": 1}, "nothing else is lost"
    assert {" u0", "nan", "\\N"} <= set(histories(data))


@pytest.mark.parametrize("text", ['"1,50"', "$19.99", "1 500"])
def test_numbers_that_are_no_numbers_are_noted_with_one_of_them(tmp_path, log, text):
    log("a.csv", csv([(*row, text) for row in ROWS], HEAD + ",x"))
    notes = " ".join(run(tmp_path, SPEC.format(CONTEXT.format("numeric"))).meta["notes"])
    assert (
        f"x: {N} values of the log are no finite number, such as {text.strip(chr(34))!r}; they count as missing"
        in notes
    )
    assert ('To read it, write decimal = "," in its section of the spec' in notes) is (text == '"1,50"')


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", [{"en": "A"}, None]),
        ("categorical", [[{"id": 1, "name": "A"}], None]),
        ("categorical", [[["a"], ["b"]], None]),
        ("numeric", [[1.0], [2.0]]),
    ],
)
def test_nested_values_of_a_table_are_a_mistake(tmp_path, log, kind, values):
    log("a.parquet")
    pq.write_table(pa.table({"item_id": ["i0", "i1"], "x": values}), tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"column 'x' of .*items.parquet is .*; expected .*Take another column"):
        run(tmp_path, SPEC.format(CATALOGUE.format(kind)))


def test_nested_values_of_a_log_in_json_are_a_mistake(tmp_path, log):
    log("a.jsonl", json_lines([({"id": u}, i, t) for u, i, t in ROWS]))
    with pytest.raises(UserError, match=r"column 'user_id' of .*a.jsonl is struct.*expected one value a row"):
        run(tmp_path, SPEC.format(""))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", csv().encode("utf-16"), "is not UTF-8 text: it looks like UTF-16"),
        ("a.jsonl", json_lines().encode("utf-16-le"), "is not UTF-8 text: it looks like UTF-16"),
        ("a.csv", csv([("\xe9", *ROWS[0][1:])]).encode("latin-1"), "invalid UTF8 data. Expected a whole file of UTF-8 csv"),
        ("a.csv.gz", gzip.compress(csv(ROWS * 500).encode())[:-50], "cannot be read: Truncated compressed stream"),
        ("a.csv.gz", csv().encode(), "cannot be read: .*incorrect header"),
        ("a.parquet", b"", "cannot be read: .*0 bytes. Expected a whole parquet file"),
        ("a.csv", csv(head=HEAD + ",user_id", rows=[(*row, "x") for row in ROWS]), "stands there more than once"),
        ("a.csv", csv([(*row, "") for row in ROWS]), "malformed row, the first is row 1 of .*a.csv: u0,i0,1600000000,"),
        ("a.csv", csv([(u, i, "09/13/2020") for u, i, _ in ROWS]), "unparsable time, the first .*timestamp = '09/13/2020'"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_a_mistake_that_names_them(tmp_path, log, name, content, told):
    log(name, content)
    with pytest.raises(UserError, match=told):
        run(tmp_path, SPEC.format(""))


def test_a_damaged_page_is_a_mistake_that_names_the_file(tmp_path, log):
    log("a.parquet")
    whole = bytearray((tmp_path / "log" / "a.parquet").read_bytes())
    whole[20:80] = b"\xff" * 60
    log("b.parquet", bytes(whole))
    with pytest.raises(UserError, match=r"b.parquet cannot be read: .*Expected a whole parquet file"):
        run(tmp_path, SPEC.format(""))


def test_a_link_to_nowhere_is_a_mistake(tmp_path, log):
    log("a.parquet")
    os.symlink(tmp_path / "nowhere.parquet", tmp_path / "log" / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet is a link to a file that is not there"):
        run(tmp_path, SPEC.format(""))


def test_rejected_rows_of_any_type_are_kept(tmp_path, log):
    times = pa.array([None, *[t * 1000 for t in TIMES[1:]]], pa.timestamp("ms", tz="Mars/Olympus"))
    log("a.parquet", timestamp=times, x=pa.array([datetime.timedelta(seconds=1)] * N))
    counts = run(tmp_path, SPEC.format(CONTEXT.format("numeric"))).meta["counts"]
    assert (counts["events"], counts["rejects"]) == (N - 1, {"missing time": 1})
