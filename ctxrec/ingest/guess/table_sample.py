"""A bounded sample of a table that is spread over its files, with the table's schema, delimiter and encoding.

Parquet files give whole blocks of rows of row groups from their beginning to their end. Text files give blocks of
bytes. A small table is read whole, so that what is said of it is exact.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import charset_normalizer
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.data.arrow_views import plain_table
from ctxrec.ingest import readers
from ctxrec.ingest.file_damage import UTF_8, check_csv_quotes, damage_named

MOST_ROWS = 200_000  # of a sample
MOST_BYTES = 32 << 20  # of a text file that are read; of the rows of Parquet files, unpacked, that are kept
_FILES, _BLOCKS = 4, 16  # of a folder that are opened; of a file that are read
_BLOCK_ROWS = 1 << 14
_HEAD_BYTES = 1 << 20
_SNIFFED_LINES = 100
_LATIN = ("cp1250", "cp1257", "cp775", "iso8859", "hp_roman8", "mac_")
_CLEARER = 0.1  # of the share of letters that are those of a language


@dataclass(frozen=True)
class TableSample:
    """A table as far as it was looked at.

    Attributes:
        name: path as the user gave it, or the name of a table in memory.
        format: "parquet", "csv", "tsv", "jsonl" or "memory".
        rows: the sample. Columns of csv and tsv files are texts.
        num_rows: rows of the table; an estimate for a text file that was not read whole.
        whole: whether the sample is the whole table.
        delimiter: what divides the columns of a text file; None for other formats.
        encoding: of a text file, such as "utf-8"; None for other formats.
        encoding_is_sure: False where the encoding was told from the frequency of letters alone.
        has_header: False where the first line looks like values and not like names of columns.
        num_files: files of the table.
    """

    name: str
    format: str
    rows: pa.Table
    num_rows: int
    whole: bool
    delimiter: str | None = None
    encoding: str | None = None
    encoding_is_sure: bool = True
    has_header: bool = True
    num_files: int = 1

    @property
    def share(self) -> float:
        """Rows of the sample as a share of those of the table."""
        return 1.0 if self.whole else min(len(self.rows) / max(self.num_rows, 1), 1.0)


def sample_table(name: str, table: pa.Table) -> TableSample:
    """A sample of a table in memory."""
    kept = _spread(plain_table(table), MOST_ROWS)
    return TableSample(name, "memory", kept, len(table), len(kept) == len(table))


def sample_files(path: str) -> TableSample:
    """A sample of the table at a path or URI: a file, a folder or a glob.

    Raises:
        UserError: nothing lies there, a file is of no known type, or it holds no row.
    """
    paths = storage.list_files(path)
    kinds = {readers.format_of(name) for name in paths}
    if len(kinds) > 1:
        raise UserError(f"{path} holds files of the types {', '.join(sorted(kinds))}; expected one type; name one file")
    chosen = [paths[n] for n in _places(len(paths), _FILES)]
    kind = kinds.pop()
    parts = [_sample_file(name, kind, len(chosen)) for name in chosen]
    parts = [part for part in parts if part.rows.num_columns]
    if not parts or not any(part.num_rows for part in parts):
        if kind == "csv":  # perhaps a quotation mark swallows all rows
            for part in parts:
                check_csv_quotes(part.name, part.encoding or UTF_8, part.delimiter or ",")
        expected = "one JSON object in each line" if kind == "jsonl" else "a table with the names of its columns"
        raise UserError(f"{path} holds no row; expected {expected}")
    _check_one_table(path, parts)
    first = parts[0]
    rows = (
        pa.concat_tables([part.rows for part in parts], promote_options="permissive") if len(parts) > 1 else first.rows
    )
    return TableSample(
        name=path,
        format=kind,
        rows=_spread(rows, MOST_ROWS),
        num_rows=sum(part.num_rows for part in parts) * len(paths) // len(chosen),
        whole=len(chosen) == len(paths) and all(part.whole for part in parts) and len(rows) <= MOST_ROWS,
        delimiter=first.delimiter,
        encoding=next((p.encoding for p in parts if p.encoding not in (None, "utf-8")), first.encoding),
        encoding_is_sure=all(part.encoding_is_sure for part in parts),
        has_header=first.has_header,
        num_files=len(paths),
    )


def _check_one_table(path: str, parts: list[TableSample]) -> None:
    """Raise a `UserError` where two files have so few columns in common that they are two tables."""
    for part in parts[1:]:
        names, others = set(parts[0].rows.column_names), set(part.rows.column_names)
        if 2 * len(names & others) < min(len(names), len(others)):
            shown = [f"{p.name} has {', '.join(p.rows.column_names[:4])} ..." for p in (parts[0], part)]
            raise UserError(
                f"{path} holds files of different tables: {shown[0]}, and {shown[1]}; expected the files of one table. "
                "Name the files of each table"
            )


def _sample_file(path: str, kind: str, num_files: int) -> TableSample:
    """A sample of one of so many files.

    Raises:
        UserError: its content is damaged, or a column stands twice.
    """
    try:
        with damage_named(path, kind):
            if kind == "parquet":
                found = _sample_parquet(path, MOST_ROWS // num_files, MOST_BYTES * 4 // num_files)
            else:
                found = _sample_text(path, kind, MOST_BYTES // num_files)
    except csv.Error as error:
        raise UserError(
            f"{path} cannot be read as {kind}: {error}. Expected lines of text with the same columns"
        ) from error
    names = found.rows.column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"column {twice!r} stands twice in {path}; expected each name once. Rename one of them")
    return found


def _places(count: int, most: int) -> list[int]:
    """At most `most` places from 0 to count - 1, evenly spread, with the first and the last."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most)).round()})


def _spread(table: pa.Table, most: int) -> pa.Table:
    """At most `most` rows of a table, in evenly spread blocks of neighbours."""
    if len(table) <= most:
        return table
    blocks = _BLOCKS * 4
    size = most // blocks
    starts = np.linspace(0, len(table) - size, blocks).astype(int)
    return pa.concat_tables([table.slice(start, size) for start in starts])


def _sample_parquet(path: str, most_rows: int, most_bytes: int) -> TableSample:
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream)
            meta = file.metadata
            groups = _places(meta.num_row_groups, _BLOCKS) if meta.num_row_groups else []
            unpacked = sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
            rows = min(most_rows, max(most_bytes * meta.num_rows // max(unpacked, 1), 1000))
            if meta.num_rows <= rows:
                return TableSample(path, "parquet", plain_table(file.read()), meta.num_rows, True)
            parts = []
            for group in groups:
                wanted = max(rows // len(groups), 1)
                # Each batch gives its share; a very large row group is not unpacked to its end.
                read = min(meta.row_group(group).num_rows, _BLOCKS * 8 * _BLOCK_ROWS)
                size = max(min(_BLOCK_ROWS, read // _BLOCKS), 1)
                batches = file.iter_batches(batch_size=size, row_groups=[group], use_threads=False)
                some = itertools.islice(batches, -(-read // size))
                found = [batch.slice(0, -(-wanted * len(batch) // read)) for batch in some]
                parts.append(_spread(pa.Table.from_batches(found), wanted))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no parquet file: {error}") from error
    return TableSample(path, "parquet", plain_table(pa.concat_tables(parts)), meta.num_rows, False)


def _sample_text(path: str, kind: str, most: int) -> TableSample:
    blocks, size, packed = _read_blocks(path, most)
    whole = len(blocks) == 1 and size == len(blocks[0])
    encoding, sure = _encoding(b"".join(block[:_HEAD_BYTES] for block in blocks))
    texts = [block.decode(encoding, "replace") for block in blocks]
    texts = [texts[0].removeprefix("\ufeff"), *(text.partition("\n")[2] for text in texts[1:])]
    if not whole:  # the last line of a block is cut
        texts = [text.rpartition("\n")[0] + "\n" for text in texts]
    names, delimiter, has_header = None, None, True
    if kind == "jsonl":
        rows = _json_rows(texts)
    else:
        names, delimiter, has_header = _header(texts[0], kind)
        rows = _csv_rows(texts, names, delimiter) if names else pa.table({})
    read = sum(map(len, blocks))
    estimate = len(rows) if whole else int(len(rows) * size * (5 if packed else 1) / max(read, 1))
    return TableSample(path, kind, rows, estimate, whole, delimiter, encoding, sure, has_header)


def _read_blocks(path: str, most: int) -> tuple[list[bytes], int, bool]:
    """Blocks of a text file from its beginning to its end; its size; whether it is packed, and only its begin was read."""
    fs, inner = storage.filesystem(path)
    size = fs.get_file_info(inner).size
    if path.lower().endswith(tuple(storage.COMPRESSIONS)):
        with storage.open_stream(path) as stream:
            head = stream.read(most)
            return ([head], size, True) if stream.read(1) else ([head], len(head), False)
    with fs.open_input_file(inner) as file:
        if size <= most:
            return [file.read(size)], size, False
        length = most // _BLOCKS
        # Blocks begin at even places, where a character of UTF-16 begins.
        return [file.read_at(length, int(s) & ~1) for s in np.linspace(0, size - length, _BLOCKS)], size, False


def _encoding(data: bytes) -> tuple[str, bool]:
    """The encoding of bytes, and whether it is sure."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            return name, True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
        return "utf-8", True
    except UnicodeError:
        pass
    # Blocks are cut at any byte, so a few damaged characters are no sign of another encoding.
    if data.decode("utf-8", "replace").count("\ufffd") <= 4 * _BLOCKS and len(data) > _HEAD_BYTES:
        return "utf-8", True
    lines = b"\n".join(line for line in data.split(b"\n") if any(byte > 127 for byte in line))[: 1 << 16]
    matches = charset_normalizer.from_bytes(lines)
    found = matches.best()
    if found is None or lines.decode(found.encoding, "replace") == lines.decode("cp1252", "replace"):
        return "cp1252", False  # the most common of those that mean the same here
    western = next((match for match in matches if match.encoding == "cp1252"), None)
    if western is not None and western.chaos <= found.chaos and found.encoding.startswith(_LATIN):
        # Few letters fit many encodings of the Latin script; the rarer one needs words that speak for it.
        speaks = found.encoding == "cp1250" and found.coherence - western.coherence >= _CLEARER
        return (found.encoding if speaks else "cp1252"), False
    return found.encoding.replace("_", "-"), False


def _header(text: str, kind: str) -> tuple[list[str] | None, str, bool]:
    """Names of the columns, what divides them, and whether the first line holds names."""
    lines = [line for line in text.split("\n", _SNIFFED_LINES + 1)[:_SNIFFED_LINES] if line.strip()]
    if not lines:
        return None, ",", True
    if kind == "tsv":
        delimiter = "\t"
    else:
        delimiter = max(
            readers.LIKELY_DELIMITERS, key=lambda mark: (_fits(lines, mark), -readers.LIKELY_DELIMITERS.index(mark))
        )
    names = [name.strip("\r") for name in next(_rows(lines[:1], delimiter, kind))]
    numbers = [name for name in names if name.strip().lstrip("-").replace(".", "", 1).isdigit()]
    if len(numbers) >= max(len(names) // 2, 1):  # values, which may be equal
        return [f"column {n}" if names.count(name) > 1 else name for n, name in enumerate(names, 1)], delimiter, False
    return names, delimiter, True


def _rows(lines: Sequence[str], delimiter: str, kind: str) -> Any:
    if kind == "tsv":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter)


def _fits(lines: Sequence[str], delimiter: str) -> float:
    """How well a delimiter divides lines: the columns that it makes, where nearly all lines have as many."""
    counts = [len(row) for row in _rows(lines, delimiter, "csv")]
    return counts[0] if counts[0] > 1 and np.mean(np.array(counts) == counts[0]) >= 0.8 else 0


def _csv_rows(texts: Sequence[str], names: list[str], delimiter: str) -> pa.Table:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"column {twice!r} stands twice in the first line; expected each name once. Rename one of them")
    tables = []
    for number, text in enumerate(texts):
        if not text.strip():
            continue
        tables.append(
            pyarrow.csv.read_csv(
                io.BytesIO(text.encode("utf-8", "replace")),
                read_options=pyarrow.csv.ReadOptions(
                    column_names=names, skip_rows=number == 0, block_size=MOST_BYTES * 2
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char=False if delimiter == "\t" else '"',
                    newlines_in_values=delimiter != "\t",
                    invalid_row_handler=lambda row: "skip",
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
                ),
            )
        )
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.string()) for name in names})


def _json_rows(texts: Sequence[str]) -> pa.Table:
    records = []
    for line in (line for text in texts for line in text.split("\n")):
        try:
            record = json.loads(line)
            if "\\ud" in line.lower():  # perhaps half of a pair of surrogates
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # empty, cut or malformed
            continue
        if isinstance(record, dict):
            records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: _json_column([record.get(name) for record in records]) for name in names})


def _json_column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # values of several types
        return pa.array(
            [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values], pa.string()
        )
