import codecs
import csv
import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxrec.core.errors import UserError
from ctxrec.data.list_texts import divide, hint
from ctxrec.data.parsing import to_text
from ctxrec.ingest import readers
from ctxrec.ingest.quote_check import LineCount, QuoteCheck, well_quoted


def read(path, columns):
    """All rows of a file as (row number, values), and its malformed rows."""
    (info,) = readers.inspect(str(path), columns, section="events")
    rows, malformed = [], []
    for piece in readers.make_pieces([info], rows=3):
        for batch in readers.read_piece(piece, columns, encoded=columns[:1]):
            values = zip(*(batch.table.column(c).to_pylist() for c in columns), strict=True)
            rows += list(zip(batch.rows.tolist(), values, strict=True))
            malformed += batch.malformed
    return rows, malformed


def test_parquet_pieces_are_ranges_of_row_groups(tmp_path):
    table = pa.table({"a": [f"x{n}" for n in range(10)], "b": range(10)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    (info,) = readers.inspect(str(tmp_path), ["a"], section="events")
    pieces = readers.make_pieces([info], rows=5)
    assert [(p.start, p.stop, p.first_row, p.num_rows) for p in pieces] == [(0, 2, 1, 4), (2, 4, 5, 4), (4, 5, 9, 2)]
    assert read(tmp_path / "t.parquet", ["a", "b"])[0] == [(n + 1, (f"x{n}", n)) for n in range(10)]


def test_csv_keeps_zeros_quotes_newlines_and_malformed_rows(tmp_path):
    text = '\ufeffa,b,c\n007,"x, y",1\nbad\n8,"two\nlines",2\n9,"",3\n1,2,3,4\n10,🎉,\n'
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    rows, malformed = read(tmp_path / "t.csv", ["a", "b"])
    assert rows == [(1, ("007", "x, y")), (3, ("8", "two\nlines")), (4, ("9", None)), (6, ("10", "🎉"))]
    assert malformed == [(2, "bad"), (5, "1,2,3,4")]


STRAY = 'a,b\n1,x\n2,"y\n3,z\n'


@pytest.mark.parametrize("block", [3, 7, 8 << 20])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (STRAY, "'y' in line 3 .row 2. is not closed"),
        (STRAY + '4,"w\n', "'y' in line 3 .row 2. is closed by a mark with a value behind it"),
        ('\ufeff"a","b"\n"1","\n', "'' in line 2 .row 1. is not closed"),
    ],
)
def test_a_stray_quotation_mark_is_a_mistake_that_names_the_row(tmp_path, text, problem, block):
    check = QuoteCheck(io.BytesIO(text.encode()), "t.csv")
    with pytest.raises(UserError, match=f"t.csv: the quotation mark before {problem}"):
        while check.read(block):
            pass
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"t.csv: the quotation mark before {problem}"):
        read(tmp_path / "t.csv", ["a", "b"])


@pytest.mark.parametrize("block", [1, 2, 5, 8 << 20])
@pytest.mark.parametrize(
    ("text", "rows", "hides"),
    [
        ("a,b\n1,x\n\n\n2,y\n\n", 3, False),
        ("\n\na,b\n1,x", 2, False),
        ('a,b\r\n1,"x"\r\n2,5" screen\r\n', 3, False),
        ('a,b\n1,"x\ny"\n', 2, True),
        ('a,b\n1,"x\n', 2, True),
        ('a,b\n1,"x', 2, True),
        ('a,b\n1,"x\n\n', 2, True),
        ("a,b\r1,x\r", 2, True),
    ],
)
def test_fewer_rows_than_lines_are_seen_while_reading(text, rows, hides, block):
    lines = LineCount(io.BytesIO(text.encode()))
    while lines.read(block):
        pass
    assert lines.may_hide_rows(rows) == hides


def test_a_value_larger_than_a_block_is_a_mistake_of_its_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 100)
    (tmp_path / "t.csv").write_text('a,b\n1,"x\n' + "2,y\n" * 200)
    with pytest.raises(UserError, match=r"the quotation mark before 'x' in line 2 .row 1. is not closed"):
        read(tmp_path / "t.csv", ["a", "b"])


@pytest.mark.parametrize("block", [1, 2, 5, 8 << 20])
def test_quotation_marks_that_swallow_no_row_pass(block):
    text = '\ufeffa,b\r\n1,"x, ""y""\nz"\n2,5" screen\n"3" or so,"",\n,"\n"\n4,"end"'
    check, found = QuoteCheck(io.BytesIO(text.encode()), "t.csv"), b""
    while part := check.read(block):
        found += part
    assert found == text.encode()


class _Short(io.BytesIO):
    """A stream that gives few bytes at a time."""

    def __init__(self, content: bytes, most: int):
        super().__init__(content)
        self.most = most

    def read(self, size=-1):
        return super().read(min(size, self.most) if size >= 0 else self.most)


@given(st.lists(st.lists(st.text('a ,"\n\r', max_size=4), min_size=2, max_size=2), max_size=6), st.integers(3, 9))
def test_marks_as_a_csv_writer_writes_them_are_looked_at_all_at_once(rows, block):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    assert well_quoted(_Short(text.getvalue().encode(), block))
    assert well_quoted(_Short(codecs.BOM_UTF8 + text.getvalue().encode(), block))


@given(st.text('a,"\n\r', max_size=20), st.integers(3, 9))
def test_marks_that_swallow_rows_are_never_taken_for_good_ones(text, block):
    content, check = text.encode(), QuoteCheck(io.BytesIO(text.encode()), "t.csv")
    try:
        while check.read(block):
            pass
        swallows = False
    except UserError:
        swallows = True
    assert not (swallows and well_quoted(_Short(content, block)))


def test_a_tsv_has_no_quoting(tmp_path):
    (tmp_path / "t.tsv").write_text('a\t"b\n1\t"x\n2\ty"\n')
    assert read(tmp_path / "t.tsv", ["a", '"b'])[0] == [(1, ("1", '"x')), (2, ("2", 'y"'))]


def test_names_in_upper_case_and_hive_folders(tmp_path):
    folder = tmp_path / "_day=2024%2F1" / "zone=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir(parents=True)
    (folder / "E.CSV.GZ").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read(folder / "E.CSV.GZ", ["_day", "a", "zone"])[0] == [(1, ("2024/1", "1", None))]
    pq.write_table(pa.table({"a": [3], "_day": ["own"]}), folder / "E.PARQUET")
    assert read(folder / "E.PARQUET", ["a", "zone", "_day"])[0] == [(1, (3, None, "own"))]
    files = readers.inspect(str(tmp_path), ["a", "zone"], section="events")
    assert [part.to_pylist() for part in readers.sample_column(files, "zone")] == [[None], [None]]


def test_a_json_key_is_optional_where_some_line_of_some_file_has_it(tmp_path, monkeypatch):
    (tmp_path / "1.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    (tmp_path / "2.jsonl").write_text('{"a": 3, "b": "x"}\n{"a": 4}\n')
    assert len(readers.inspect(str(tmp_path), ["a", "b"], section="events")) == 2
    assert [v for _, v in read(tmp_path / "2.jsonl", ["a", "b"])[0]] == [(3, "x"), (4, None)]
    monkeypatch.setattr(readers, "_HEAD_BYTES", 12)  # the beginning shows the first line alone
    late = tmp_path / "late.jsonl"
    late.write_text('{"a": 1}\n' * 3 + '{"a": 2, "\\u00e9": 5}\n')
    assert [v for _, v in read(late, ["é"])[0]] == [(None,)] * 3 + [(5,)]
    with pytest.raises(UserError, match="names column 'c', which is missing"):
        readers.inspect(str(late), ["c"], section="events")


def test_views_of_strings_are_read_as_strings(tmp_path):
    words = pa.array(["x", None])
    table = pa.table(
        {
            "a": words.cast(pa.string_view()),
            "b": pa.array([["y"], []], pa.list_(pa.string())).cast(pa.list_(pa.string_view())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", ["a", "b"])[0] == [(1, ("x", ["y"])), (2, (None, []))]
    assert to_text(table["a"]).type == pa.string()


def test_malformed_last_rows_are_not_lost(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nbad\nworse\n")
    assert read(tmp_path / "t.csv", ["a"]) == ([], [(1, "bad"), (2, "worse")])


def test_tsv_and_compressed_files(tmp_path):
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx,y\n")
    assert read(tmp_path / "t.tsv", ["b", "a"])[0] == [(1, ("x,y", "1"))]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read(tmp_path / "t.csv.gz", ["a"])[0] == [(1, ("1",))]


def test_jsonl_of_mixed_types_and_malformed_lines(tmp_path):
    lines = ['{"a": 1, "b": "2020-01-01"}', "", "{broken", '{"a": "two", "b": null, "c": 1}', "[3]"]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    rows, malformed = read(tmp_path / "t.jsonl", ["a", "b"])
    assert rows == [(1, ("1", "2020-01-01")), (4, ("two", None))]
    assert malformed == [(3, "{broken"), (5, "[3]")]


def test_jsonl_of_texts_and_lists_in_one_column(tmp_path):
    """A text means the same whether its block has lists or not, and an object in one line is not made a text."""
    texts, lists = ['{"a": "A|B"}', '{"a": "C"}'], ['{"a": ["A", "D"]}', '{"a": ["A|C"]}', '{"a": null}']
    found = []
    for lines in (texts, lists, texts + lists):
        (tmp_path / "t.jsonl").write_text("\n".join([*lines, ""]))
        (info,) = readers.inspect(str(tmp_path / "t.jsonl"), ["a"], section="items")
        (piece,) = readers.make_pieces([info], rows=9)
        (table,) = [batch.table for batch in readers.read_piece(piece, ["a"]) if len(batch.table)]
        found.append(divide(table.column("a"), "|").to_pylist())
        assert hint(table.column("a")) is None or hint(table.column("a")).separator == "|"
    assert found[0] + found[1] == found[2] == [["A", "B"], ["C"], ["A", "D"], ["A", "C"], None]
    odd = ['{"a": {"en": "A"}}', '{"a": ["A", {"en": "B"}]}', '{"a": [["A"]]}']
    (tmp_path / "t.jsonl").write_text("\n".join([*texts, *odd, ""]))
    rows, malformed = read(tmp_path / "t.jsonl", ["a"])
    assert rows == [(1, ("A|B",)), (2, ("C",))] and malformed == [(3 + n, line) for n, line in enumerate(odd)]


def test_jsonl_keeps_lists_and_text_that_looks_like_a_date(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "2020-01-01", "b": ["x", "y"]}\n{"a": "2020-01-02", "b": null}\n')
    assert read(tmp_path / "t.jsonl", ["a", "b"])[0] == [(1, ("2020-01-01", ["x", "y"])), (2, ("2020-01-02", None))]
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": ["2020-01-01"]}\n{"a": 2, "b": []}\n')
    assert read(tmp_path / "t.jsonl", ["a", "b"])[0] == [(1, (1, ["2020-01-01"])), (2, (2, []))]


def test_a_malformed_line_changes_no_other_line(tmp_path):
    """Its block is read line by line, and must give the same ids as blocks that Arrow reads."""
    good = '{"a": 7.0, "b": true}\n{"a": 0.5, "b": false}\n{"a": NaN, "b": null}\n'
    found = []
    for text in (good, good + "{broken\n"):
        (tmp_path / "t.jsonl").write_text(text)
        (info,) = readers.inspect(str(tmp_path / "t.jsonl"), ["a", "b"], section="events")
        (piece,) = readers.make_pieces([info], rows=9)
        tables = [batch.table for batch in readers.read_piece(piece, ["a", "b"])]
        found.append([[v for t in tables for v in to_text(t.column(c)).to_pylist()] for c in ("a", "b")])
    assert found[0] == found[1] == [["7", "0.5", None], ["true", "false", None]]


def test_jsonl_ids_keep_all_their_digits(tmp_path):
    ids = [12345678901234567891, 12345678901234567892, 2**53 + 1]
    (tmp_path / "t.jsonl").write_text("".join(f'{{"a": {n}, "b": 1.5}}\n' for n in ids))
    assert [values[0] for _, values in read(tmp_path / "t.jsonl", ["a", "b"])[0]] == [str(n) for n in ids]
    (tmp_path / "t.jsonl").write_text(f'{{"a": {2**53 + 1}}}\n{{"a": 1.5}}\n')
    assert read(tmp_path / "t.jsonl", ["a"])[0] == [(1, (str(2**53 + 1),)), (2, ("1.5",))]


def test_whole_numbers_in_json_lists_keep_all_their_digits(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": [12345678901234567890, 3]}\n{"a": [9007199254740993, 0.5]}\n')
    rows, _ = read(tmp_path / "t.jsonl", ["a"])
    assert [values[0] for _, values in rows] == [["12345678901234567890", "3"], ["9007199254740993", "0.5"]]


def test_json_lists_that_hold_only_nulls_are_read(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": [null, null], "b": [null, "2024-01-01"]}\n')
    assert read(tmp_path / "t.jsonl", ["a", "b"])[0] == [(1, ([None, None], [None, "2024-01-01"]))]


@pytest.mark.parametrize("column", ["a", "other"])
@pytest.mark.parametrize("depth", [5000, 1_000_000])
def test_a_line_of_json_that_nests_deeply_costs_itself_alone(tmp_path, column, depth):
    """Arrow's parser calls itself for each bracket, and would end the process."""
    deep = f'{{"{column}": {"[" * depth}{"]" * depth}}}'
    (tmp_path / "t.jsonl").write_text(f'{{"a": "x"}}\n{deep}\n{{"a": "y"}}\n')
    assert read(tmp_path / "t.jsonl", ["a"]) == ([(1, ("x",)), (3, ("y",))], [(2, deep)])


def test_many_brackets_beside_each_other_are_no_deep_nesting(tmp_path):
    (tmp_path / "t.jsonl").write_text(f'{{"a": 1, "b": [{", ".join(["[1]"] * 5000)}]}}\n')
    assert read(tmp_path / "t.jsonl", ["a"]) == ([(1, (1,))], [])


def test_a_line_of_json_with_half_a_character_costs_itself_alone(tmp_path):
    lines = [
        '{"a": "x", "b": 1}',
        r'{"a": "\ud800", "b": 1}',
        r'{"a": "\ud83d\ude00", "b": ["\udc00"]}',
        r'{"a": "\ud83d\ude00", "b": 2}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    rows, malformed = read(tmp_path / "t.jsonl", ["a", "b"])
    assert rows == [(1, ("x", "1")), (4, ("😀", "2"))]
    assert malformed == [(2, lines[1]), (3, lines[2])]


def test_jsonl_records_that_are_not_one_a_line_are_malformed(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "x"}{"a": "y"}\n{"a": "z"}\n')
    assert read(tmp_path / "t.jsonl", ["a"]) == ([(2, ("z",))], [(1, '{"a": "x"}{"a": "y"}')])
    (tmp_path / "t.jsonl").write_text('{"a": "z"}\n{\n"a": "v"}\n')
    assert read(tmp_path / "t.jsonl", ["a"]) == ([(1, ("z",))], [(2, "{"), (3, '"a": "v"}')])


def test_header_without_rows_and_empty_file(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    assert read(tmp_path / "t.csv", ["a"]) == ([], [])
    (tmp_path / "v.csv").write_text("a,b")  # some writers leave the last line end out
    assert readers.inspect(str(tmp_path / "v.csv"), ["a"], section="events") == []
    (tmp_path / "u.csv").write_text("")
    assert readers.inspect(str(tmp_path / "u.csv"), ["a"], section="events") == []


def test_a_wrong_column_is_named_with_the_file_and_the_columns_found(tmp_path):
    (tmp_path / "1.csv").write_text("user,item\n1,2\n")
    (tmp_path / "2.csv").write_text("user,thing\n1,2\n")
    with pytest.raises(
        UserError, match=r"\[events\] names column 'item', which is missing in .*2.csv; found columns user, thing"
    ):
        readers.inspect(str(tmp_path), ["user", "item"], section="events")


def test_a_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "1.csv").write_text("a,a\n1,2\n")
    with pytest.raises(UserError, match="more than once"):
        readers.inspect(str(tmp_path), ["a"], section="events")


def test_unknown_type_no_file_and_damaged_files(tmp_path):
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"t.xlsx has an unknown file type; expected one of .parquet"):
        readers.inspect(str(tmp_path), ["a"], section="events")
    with pytest.raises(UserError, match="no file found"):
        readers.inspect(str(tmp_path / "none"), ["a"], section="events")
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"cannot be read.*Expected a whole parquet file"):
        readers.inspect(str(tmp_path / "t.parquet"), ["a"], section="events")
    for text, told in (
        ("  \na,b\n1,2\n", "'a', which is missing"),
        ("a,b," + "x" * 200_000 + "\n1,2,3\n", "first line .* is no header.*field limit"),
    ):
        (tmp_path / "head.csv").write_text(text)
        with pytest.raises(UserError, match=told):
            readers.inspect(str(tmp_path / "head.csv"), ["a"], section="events")
    whole = gzip.compress(b"".join(b'{"a": "%x"}\n' % (n * 7919**5) for n in range(50_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-2000])
    with pytest.raises(UserError, match=r"cut.jsonl.gz cannot be read: Truncated"):  # while a key is looked for
        readers.inspect(str(tmp_path / "cut.jsonl.gz"), ["a", "b"], section="events")
    (tmp_path / "latin.csv").write_bytes("a,b\né,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="Expected a whole file of UTF-8"):
        read(tmp_path / "latin.csv", ["a"])


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16", "gb18030"])
@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_the_spec_names_delimiter_and_encoding(tmp_path, delimiter, encoding):
    word = "椅子" if encoding == "gb18030" else "Jürgen"
    text = f'user{delimiter}item{delimiter}n\n{word}{delimiter}"a, {delimiter} ""b"""{delimiter}1\nbad\nx{delimiter}i{delimiter}2\n'
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    (info,) = readers.inspect(str(tmp_path), ["user", "item"], section="events", delimiter=delimiter, encoding=encoding)
    assert info.columns == ("user", "item", "n")
    (piece,) = readers.make_pieces([info], rows=10)
    (batch,) = readers.read_piece(piece, ["item", "user"])
    assert batch.table.to_pylist() == [{"item": f'a, {delimiter} "b"', "user": word}, {"item": "i", "user": "x"}]
    assert batch.rows.tolist() == [1, 3] and batch.malformed == [(2, "bad")]
    assert readers.sample_column([info], "n")[0].to_pylist() == ["1", "2"]


def test_json_lines_of_another_encoding(tmp_path):
    (tmp_path / "t.jsonl").write_bytes('{"user": "Jürgen", "item": 1}\n'.encode("cp1252"))
    (info,) = readers.inspect(str(tmp_path), ["user"], section="events", encoding="cp1252")
    batches = readers.read_piece(readers.make_pieces([info], rows=10)[0], ["user", "item"])
    assert [row for batch in batches for row in batch.table.to_pylist()] == [{"user": "Jürgen", "item": 1}]


def test_a_quotation_mark_that_swallows_rows_is_found_between_semicolons(tmp_path):
    (tmp_path / "t.csv").write_text('user;item\na;"1\nb;2\nc;"3"x\n')
    (info,) = readers.inspect(str(tmp_path), ["user"], section="events", delimiter=";")
    with pytest.raises(UserError, match="before '1' in line 2"):
        list(readers.read_piece(readers.make_pieces([info], rows=10)[0], ["user"]))


def test_what_a_file_needs_is_said(tmp_path):
    """A wrong delimiter or encoding names the key of the spec that mends it."""
    (tmp_path / "t.csv").write_bytes("user;item\nJürgen;2\n".encode("cp1252"))
    with pytest.raises(UserError, match='delimiter = ";"'):
        readers.inspect(str(tmp_path), ["user"], section="events")
    (info,) = readers.inspect(str(tmp_path), ["user"], section="events", delimiter=";")
    with pytest.raises(UserError, match='encoding = "cp1252"'):
        list(readers.read_piece(readers.make_pieces([info], rows=10)[0], ["user"]))
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "u.parquet")
    with pytest.raises(UserError, match=r"\[events\] has encoding = 'cp1252', but .*u.parquet is parquet"):
        readers.inspect(str(tmp_path / "u.parquet"), ["user"], section="events", encoding="cp1252")
