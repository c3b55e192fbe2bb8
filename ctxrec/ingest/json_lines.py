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
    try:
        data.decode()  # Arrow takes bytes that are no UTF-8
        table = _parse_json(data, None)
        dates = {f.name: kind for f in table.schema if (kind := _without_dates(f.type)) != f.type}
        if dates:  # text that looks like a date, perhaps an id: keep it as text
            table = _parse_json(data, pa.schema(list(dates.items())))
    except (pa.ArrowInvalid, UnicodeDecodeError):  # a malformed line, or mixed types
        return _parse_each_line(lines, columns, rows)
    # Records that are not one a line, or whole numbers too large for Arrow, which are ids.
    if len(table) != int(filled.sum()) or any(_has_large_floats(table, c) for c in columns):
        return _parse_each_line(lines, columns, rows)
    arrays = [table.column(c) if c in table.column_names else pa.nulls(len(table), pa.string()) for c in columns]
    return (pa.table(dict(zip(columns, arrays, strict=True))), rows[filled], [])


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """`kind` with text in place of what Arrow took for a time, also in lists."""
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    return pa.string() if pa.types.is_temporal(kind) else kind


def _has_large_floats(table: pa.Table, column: str) -> bool:
    if column not in table.column_names or not pa.types.is_floating(table.schema.field(column).type):
        return False
    largest = pc.max(pc.abs(table.column(column))).as_py()
    return largest is not None and largest >= 2**53


def _parse_json(data: bytes, known: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        io.BytesIO(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=known),
    )


def _parse_each_line(lines: list[bytes], columns: list[str], rows: np.ndarray) -> Parsed:
    """Slow path for blocks whose types Arrow cannot infer: values become text, lists become lists of text."""
    kept, records, malformed = [], [], []
    for number, line in zip(rows.tolist(), lines, strict=True):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())  # of bytes, json guesses the encoding
        except ValueError:
            record = None
        if isinstance(record, dict):
            kept.append(number)
            records.append(record)
        else:
            malformed.append((number, line.decode("utf-8", "backslashreplace")))
    table = pa.table({c: _text_array([r.get(c) for r in records]) for c in columns})
    return table, np.array(kept, np.int64), malformed


def _text_array(values: list[Any]) -> pa.Array:
    def text(value: Any) -> str | None:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value_text(value)

    if any(isinstance(v, list) for v in values):
        lists = [v if v is None or isinstance(v, list) else [v] for v in values]
        return pa.array([None if v is None else [text(x) for x in v] for v in lists], pa.list_(pa.string()))
    return pa.array([text(v) for v in values], pa.string())
