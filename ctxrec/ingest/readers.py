"""Read tables of a data set as they are: parquet, csv, tsv and jsonl, piece by piece, with row numbers."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import json
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.data.arrow_views import plain_table
from ctxrec.ingest import json_lines
from ctxrec.ingest.file_damage import NAME_ITS_ENCODING, UTF_8, check_csv_quotes, damage_named, open_text
from ctxrec.ingest.quote_check import LineCount

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
DELIMITERS = {"csv": ",", "tsv": "\t"}  # where the spec names none
LIKELY_DELIMITERS = (",", ";", "\t", "|", "~", "^", "\x01")  # what `init` tries, and what a message proposes
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_HEAD_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 1 << 17
_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class FileInfo:
    """What is known of a file before it is read; `num_rows` is an estimate for text formats."""

    path: str
    format: str
    columns: tuple[str, ...]
    types: dict[str, pa.DataType]  # parquet only
    num_rows: int
    group_rows: tuple[int, ...] = ()  # rows of each parquet row group
    delimiter: str = ""  # of csv and tsv
    encoding: str = UTF_8  # of text formats

    @property
    def folder_keys(self) -> list[str]:
        """Columns that the names of the file's folders give, as name=value: those that the file itself has not."""
        pairs = [part for part in self.path.split("/")[:-1] if "=" in part.strip("=")]
        return [pair for pair in pairs if pair.split("=", 1)[0] not in self.columns]

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The file's columns and those of its folders."""
        return (*self.columns, *(pair.split("=", 1)[0] for pair in self.folder_keys))


@dataclass(frozen=True)
class Piece:
    """A file, or the row groups [start, stop) of a parquet file; rows are numbered from first_row."""

    path: str
    format: str
    file: int  # position of the file in the sorted list
    start: int = 0
    stop: int = -1
    first_row: int = 1
    num_rows: int = 0
    folder_keys: Sequence[str] = ()  # see `FileInfo.folder_keys`
    delimiter: str = ""  # of csv and tsv
    encoding: str = UTF_8  # of text formats


@dataclass(frozen=True)
class RawBatch:
    """Rows as they stand in the file, with their numbers in it (the first data row is 1)."""

    table: pa.Table
    rows: np.ndarray  # int64 [N]
    malformed: list[tuple[int, str]]  # rows that could not be split into columns: number and text


def format_of(path: str) -> str:
    """The format that a file's name says.

    Raises:
        UserError: the extension is none of those known.
    """
    name = path.rsplit("/", 1)[-1].lower()
    for ending in storage.COMPRESSIONS:
        name = name.removesuffix(ending)
    for ending, kind in FORMATS.items():
        if name.endswith(ending):
            return kind
    raise UserError(f"{path} has an unknown file type; expected one of {', '.join(FORMATS)}")


def is_table(path: str) -> bool:
    """Whether a file's name is one of a table that can be read."""
    try:
        return bool(format_of(path))
    except UserError:
        return False


def inspect(
    path: str, columns: Sequence[str], *, section: str, delimiter: str | None = None, encoding: str | None = None
) -> list[FileInfo]:
    """The files at `path` in sorted order, each checked to have `columns`.

    Args:
        path: file, folder, glob or URI.
        columns: what the spec names.
        section: section of the spec, for messages.
        delimiter: what divides the columns of a csv or tsv file; None: the usual one of its type.
        encoding: of a text file; None: UTF-8.

    Raises:
        UserError: no file, an unknown type, a column that a file lacks, or a delimiter or encoding that a file has not.
    """
    paths = storage.list_files(path)
    for name in paths:
        kind = format_of(name)
        for key, value, without in (
            ("delimiter", delimiter, ("parquet", "jsonl")),
            ("encoding", encoding, ("parquet",)),
        ):
            if value is not None and kind in without:
                raise UserError(
                    f"[{section}] has {key} = {value!r}, but {name} is {kind}, which has none; leave it out"
                )
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: _inspect_file(name, delimiter, encoding or UTF_8), paths)
        files = [info for info in found if info is not None]
    optional = _keys_of_json_lines(files, columns)
    for info in files:
        for column in columns:
            if info.all_columns.count(column) == 1 or (info.format == "jsonl" and column in optional):
                continue
            problem = "stands there more than once" if column in info.all_columns else "is missing"
            raise UserError(
                f"[{section}] names column {column!r}, which {problem} in {info.path}; found columns "
                f"{', '.join(info.all_columns)}. {_remedy(info)}"
            )
    return files


def _remedy(info: FileInfo) -> str:
    """What to do about a column that a file lacks."""
    other = next((mark for mark in LIKELY_DELIMITERS if len(info.columns) == 1 and mark in info.columns[0]), None)
    if not info.delimiter or other is None:
        return "Correct the name in the dataset spec"
    return f"If {other!r} divides the columns, write delimiter = {json.dumps(other)} into the dataset spec"


def _keys_of_json_lines(files: Sequence[FileInfo], columns: Sequence[str]) -> set[str]:
    """Those of `columns` that a line of some JSON Lines file has; a line without the key has null.

    A key that no beginning of a file shows is looked for in the whole files.
    """
    lines = [info for info in files if info.format == "jsonl"]
    found = {column for column in columns for info in lines if column in info.columns}
    missing = [column for column in columns if column not in found and lines]
    if missing:
        spelled = {c: {json.dumps(c, ensure_ascii=a).encode() for a in (True, False)} for c in missing}
        for info in lines:
            tail = b""
            with damage_named(info.path, info.format, info.encoding), open_text(info.path, info.encoding) as stream:
                while missing and (block := stream.read(_BLOCK_BYTES)):
                    here = {c for c in missing if any(key in tail + block for key in spelled[c])}
                    found |= here
                    missing = [c for c in missing if c not in here]
                    tail = block[-1024:]
    return found


def _inspect_file(path: str, delimiter: str | None, encoding: str) -> FileInfo | None:
    """Columns and size of a file; None for a text file that is empty or only an unfinished header, which has no row."""
    kind = format_of(path)
    fs, inner = storage.filesystem(path)
    if kind == "parquet":
        with damage_named(path, kind), fs.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream)
            arrow = file.schema_arrow
            groups = tuple(file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups))
        types = dict(zip(arrow.names, arrow.types, strict=True))
        return FileInfo(path, kind, tuple(arrow.names), types, sum(groups), groups)
    with damage_named(path, kind, encoding, delimiter), open_text(path, encoding) as stream:
        head = stream.read(_HEAD_BYTES)
    first = head[:1000].split(b"\n")[0]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or first.count(0) > len(first) // 4:
        raise UserError(
            f'{path} is not UTF-8 text: it looks like UTF-16. Write encoding = "utf-16" into the dataset spec'
        )
    lines = [line for line in re.split(rb"[\r\n]+", head) if line.strip()]
    has_rows = len(lines) > 1 or len(head) == _HEAD_BYTES or head.endswith((b"\n", b"\r")) or kind == "jsonl"
    if not lines or not has_rows:  # Arrow refuses a header that no line end follows
        return None
    size = fs.get_file_info(inner).size * (5 if path.lower().endswith(tuple(storage.COMPRESSIONS)) else 1)
    estimate = max(len(lines) * size // max(len(head), 1), 1)
    if kind == "jsonl":
        names: dict[str, None] = {}
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # a malformed or cut line is counted when it is read
                continue
            names |= dict.fromkeys(record if isinstance(record, dict) else ())
        return FileInfo(path, kind, tuple(names), {}, estimate, encoding=encoding)
    first = next(line for line in re.split(rb"[\r\n]+", head) if line)  # blanks alone are a header to Arrow too
    try:
        header = first.decode("utf-8-sig")
    except UnicodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. {NAME_ITS_ENCODING}") from error
    mark = delimiter or DELIMITERS[kind]
    try:
        names_ = header.split(mark) if kind == "tsv" else next(csv.reader([header], delimiter=mark))
    except csv.Error as error:
        raise UserError(
            f"the first line of {path} is no header: {error}. Expected the names of the columns in the first line"
        ) from error
    return FileInfo(path, kind, tuple(names_), {}, estimate, delimiter=mark, encoding=encoding)


def make_pieces(files: Sequence[FileInfo], *, rows: int) -> list[Piece]:
    """Divide files into pieces of about `rows` rows; only parquet files can be divided."""
    pieces = []
    for number, info in enumerate(files):
        whole = _whole(info, number)
        if info.format != "parquet":
            pieces.append(whole)
            continue
        start = first_row = count = 0
        for group, size in enumerate((*info.group_rows, 0)):
            if count and (count + size > rows or group == len(info.group_rows)):
                pieces.append(
                    dataclasses.replace(whole, start=start, stop=group, first_row=first_row + 1, num_rows=count)
                )
                start, first_row, count = group, first_row + count, 0
            count += size
    return pieces


def _whole(info: FileInfo, number: int = 0) -> Piece:
    """A whole file as a piece."""
    return Piece(
        path=info.path,
        format=info.format,
        file=number,
        stop=len(info.group_rows) if info.format == "parquet" else -1,
        num_rows=info.num_rows,
        folder_keys=info.folder_keys,
        delimiter=info.delimiter,
        encoding=info.encoding,
    )


def read_piece(piece: Piece, columns: Sequence[str], *, encoded: Sequence[str] = ()) -> Iterator[RawBatch]:
    """The rows of a piece, batch by batch, in the file's order.

    Args:
        piece: what to read.
        columns: columns to read. Those of text formats come as strings, so that an id keeps its zeros.
        encoded: columns that may come dictionary-encoded (ids: few distinct values).

    Raises:
        UserError: the file is damaged or not UTF-8, or a quotation mark is not closed.
    """
    reader = {"parquet": _read_parquet, "jsonl": _read_jsonl}.get(piece.format, _read_csv)
    wanted = list(dict.fromkeys(columns))
    given = {name: value for name, value in (pair.split("=", 1) for pair in piece.folder_keys) if name in wanted}
    own = [name for name in wanted if name not in given]
    with damage_named(piece.path, piece.format, piece.encoding, piece.delimiter):
        for batch in reader(piece, own, [name for name in encoded if name in own]):
            yield _with_folder_keys(batch, given, wanted) if given else batch


def _with_folder_keys(batch: RawBatch, given: dict[str, str], wanted: list[str]) -> RawBatch:
    """A batch with the columns that the folders' names give."""
    table = batch.table
    for name, value in given.items():
        text = None if value == _NULL_FOLDER else urllib.parse.unquote(value)
        table = table.append_column(name, pa.array([text] * len(batch.rows), pa.string()))
    return RawBatch(table.select(wanted), batch.rows, batch.malformed)


def _read_parquet(piece: Piece, columns: list[str], encoded: list[str]) -> Iterator[RawBatch]:
    fs, inner = storage.filesystem(piece.path)
    with fs.open_input_file(inner) as stream:
        kinds = pq.read_schema(stream)
        stream.seek(0)
        texts = [c for c in encoded if pa.types.is_string(kinds.field(c).type)]
        file = pq.ParquetFile(stream, read_dictionary=texts)
        groups = list(range(piece.start, piece.stop))
        row = piece.first_row
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
            table = plain_table(pa.Table.from_batches([batch]).select(columns))
            yield RawBatch(table, np.arange(row, row + len(table)), [])
            row += len(table)


def _read_csv(piece: Piece, columns: list[str], encoded: list[str]) -> Iterator[RawBatch]:
    bad: list[tuple[int, str]] = []

    def keep(row: Any) -> str:
        bad.append((row.number - 1, row.text))  # the parser counts the header as row 1
        return "skip"

    has_quotes = piece.format == "csv"  # a TSV has no quoting
    with open_text(piece.path, piece.encoding) as stream:
        lines = LineCount(stream, delimiter=piece.delimiter)
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(lines, mode="r") if has_quotes else stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=piece.delimiter,
                quote_char='"' if has_quotes else False,
                newlines_in_values=has_quotes,
                invalid_row_handler=keep,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        parsed = reported = 0
        for batch in reader:
            # The parser skips malformed rows; their numbers tell by how much later row numbers shift.
            gaps = np.array([number for number, _ in bad], np.int64) - 1 - np.arange(len(bad))
            index = np.arange(parsed, parsed + batch.num_rows)
            rows = index + np.searchsorted(gaps, index, side="right") + 1
            yield RawBatch(pa.Table.from_batches([batch]), rows, bad[reported:])
            parsed, reported = parsed + batch.num_rows, len(bad)
        if reported < len(bad):
            empty = pa.table({name: pa.array([], pa.string()) for name in columns})
            yield RawBatch(empty, np.zeros(0, np.int64), bad[reported:])
        if has_quotes and lines.may_hide_rows(parsed + len(bad) + 1):
            check_csv_quotes(piece.path, piece.encoding, piece.delimiter)


def _read_jsonl(piece: Piece, columns: list[str], encoded: list[str]) -> Iterator[RawBatch]:
    row, rest = 1, b""
    with open_text(piece.path, piece.encoding) as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            if row == 1 and not rest:
                block = block.removeprefix(codecs.BOM_UTF8)
            lines = (rest + block).split(b"\n")
            rest = lines.pop() if block else b""
            yield RawBatch(*json_lines.parse(lines, columns, row))
            row += len(lines)
            if not block:
                return


def sample_column(files: Sequence[FileInfo], column: str) -> list[pa.Array]:
    """The first values of a column in each file."""

    def first(info: FileInfo) -> pa.Array:
        piece = _whole(info)
        for batch in read_piece(dataclasses.replace(piece, stop=min(piece.stop, 1)), [column]):
            return batch.table.column(column).slice(0, _SAMPLE_ROWS).combine_chunks()
        return pa.nulls(0)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(first, files))
