"""Lines of JSON as a table: by Arrow where it can, else line by line."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ctxrec.data.parsing import value_text

_DEEPEST = 100  # brackets in brackets

Parsed = tuple[pa.Table, np.ndarray, list[tuple[int, str]]]  # rows, int64 [N] their numbers, malformed lines by number


def parse(lines: list[bytes], columns: list[str], first_row: int) -> Parsed:
    """JSON lines as a table, its row numbers, and the malformed lines; one malformed line costs only itself.

    Args:
        lines: without their ends; blank ones are no rows.
        columns: keys of the records.
        first_row: number of the first line.
    """
    rows = np.arange(first_row, first_row + len(lines))
    filled = np.array([bool(line.strip()) for line in lines], bool)
    data = b"\n".join(line for line in lines if line.strip())
    if not data:
        return (pa.table({c: pa.array([], pa.string()) for c in columns}), rows[:0], [])
    if any(map(_nests_deeply, lines)):
        return _parse_each_line(lines, columns, rows)
    try:
        data.decode()  # Arrow takes bytes that are no UTF-8
        table = _parse_json(data, None)
        dates = {f.name: kind for f in table.schema if (kind := _without_dates(f.type)) != f.type}
        if dates:  # text that looks like a date, perhaps an id: keep it as text
            table = _parse_json(data, pa.schema(list(dates.items())))
        table.validate()  # Arrow makes a damaged array of a column whose lists hold only nulls
    except (pa.ArrowInvalid, UnicodeError):  # a malformed line, or mixed types
        return _parse_each_line(lines, columns, rows)
    # Records that are not one a line, or whole numbers too large for Arrow, which are ids.
    if len(table) != int(filled.sum()) or any(_has_large_floats(table, c) for c in columns):
        return _parse_each_line(lines, columns, rows)
    arrays = [table.column(c) if c in table.column_names else pa.nulls(len(table), pa.string()) for c in columns]
    return (pa.table(dict(zip(columns, arrays, strict=True))), rows[filled], [])


def _nests_deeply(line: bytes) -> bool:
    """Whether brackets of a line stand so deep in each other that Arrow's recursion would end the process."""
    if line.count(b"[") + line.count(b"{") <= _DEEPEST:
        return False
    signs = np.frombuffer(line, np.uint8)
    opens, closes = (np.isin(signs, np.frombuffer(marks, np.uint8)).astype(np.int64) for marks in (b"[{", b"]}"))
    return bool(np.cumsum(opens - closes).max() > _DEEPEST)


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """`kind` with text in place of what Arrow took for a time, also in lists."""
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    return pa.string() if pa.types.is_temporal(kind) else kind


def _has_large_floats(table: pa.Table, column: str) -> bool:
    if column not in table.column_names:
        return False
    values = table.column(column)
    while pa.types.is_list(values.type):
        values = pc.list_flatten(values)
    largest = pc.max(pc.abs(values)).as_py() if pa.types.is_floating(values.type) else None
    return largest is not None and largest >= 2**53


def _parse_json(data: bytes, known: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        io.BytesIO(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=known),
    )


def _parse_each_line(lines: list[bytes], columns: list[str], rows: np.ndarray) -> Parsed:
    """Slow path for blocks whose types Arrow cannot infer: values become text, lists become lists of text.

    A line with an object in one of the columns is malformed, as a block with nothing else is a mistake. Where a column
    has texts and lists, each text is a list of one.
    """
    kept, records, malformed = [], [], []
    for number, line in zip(rows.tolist(), lines, strict=True):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())  # of bytes, json guesses the encoding
            texts = [_text(record.get(c)) for c in columns] if isinstance(record, dict) else None
        except (ValueError, RecursionError):  # also what `_text` refuses, and deep nesting
            texts = None
        if texts is not None:
            kept.append(number)
            records.append(texts)
        else:
            malformed.append((number, line.decode("utf-8", "backslashreplace")))
    table = pa.table({c: _text_array([record[n] for record in records]) for n, c in enumerate(columns)})
    return table, np.array(kept, np.int64), malformed


def _text(value: Any) -> Any:
    """A value as a text, and a list as a list of texts.

    Raises:
        ValueError: it is an object, or a list of lists or objects, which are no values; or it has half of a pair of
            surrogates.
    """
    if isinstance(value, list):
        if any(isinstance(part, list) for part in value):
            raise ValueError("a list of lists")
        return [_text(part) for part in value]
    if isinstance(value, dict):
        raise ValueError("an object")
    text = value_text(value)
    if text is not None:
        text.encode()
    return text


def _text_array(values: list[Any]) -> pa.Array:
    if any(isinstance(v, list) for v in values):
        lists = [v if v is None or isinstance(v, list) else [v] for v in values]
        return pa.array(lists, pa.list_(pa.string()))
    return pa.array(values, pa.string())
