"""Rejected rows: they are kept with the reason, where they came from, and their columns as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data import arrow_views, parsing, time_columns
from ctxrec.data.column_facts import FirstReject, short
from ctxrec.ingest import shard_files

DUPLICATE = "duplicate event"
MALFORMED = "malformed row"


def first_of_each(table: pa.Table, columns: Mapping[str, Sequence[str]]) -> dict[str, FirstReject]:
    """The first row of each reason in a table of rejected rows (`reject_table`).

    Args:
        table: rejected rows.
        columns: those that a reason speaks of, by reason; of another reason all are shown.
    """
    reasons = table.column("reason").to_pylist()
    found: dict[str, FirstReject] = {}
    for reason in dict.fromkeys(reasons):
        row = table.slice(reasons.index(reason), 1).to_pylist()[0]
        text = row.pop("source_text")
        file, number = row.pop("source_file"), row.pop("source_row")
        del row["reason"]
        shown = {name: value for name, value in row.items() if name in columns.get(reason, row)}
        values = ", ".join(f"{name} = {'nothing' if v is None else repr(short(v))}" for name, v in shown.items())
        found[reason] = FirstReject(file, number, values if text is None else short(text))
    return found


def reject_table(
    raw: pa.Table,
    reasons: np.ndarray,
    files: np.ndarray,
    rows: np.ndarray,
    malformed: Sequence[tuple[str, int, str]] = (),
) -> pa.Table:
    """Rejected rows as they are kept: reason, source_file, source_row (1 = the first data row), the original columns
    as text, and source_text, the whole line of a row that could not be split into columns.

    Args:
        raw: the rejected rows.
        reasons, files, rows: of each row of `raw`; paths of files, numbers of rows.
        malformed: file, row number and text of lines that are no row.
    """
    columns = {
        "reason": pa.array([*reasons, *[MALFORMED] * len(malformed)], pa.string()),
        "source_file": pa.array([*files, *[m[0] for m in malformed]], pa.string()),
        "source_row": pa.array([*rows.tolist(), *[m[1] for m in malformed]], pa.int64()),
    }
    for name in raw.column_names:
        text = _as_written(raw.column(name))
        safe = name if name not in {*columns, "source_text"} else f"{name}_"
        columns[safe] = pa.concat_arrays([text, pa.nulls(len(malformed), pa.large_string())])
    texts = [None] * len(raw) + [m[2] for m in malformed]
    return pa.table(columns | {"source_text": pa.array(texts, pa.large_string())})


def _as_written(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Any column as text for a person to read, large_string; no value is dropped."""
    array = parsing.one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_nested(array.type):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.large_string())
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        array = arrow_views.binary_to_text(array)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.large_string())  # blanks too, as they stand
    return parsing.to_text(array).cast(pa.large_string())


def lines_of(malformed: Sequence[tuple]) -> int:
    """Lines of malformed rows, whose last field is their text: a quoted value may have taken in several."""
    return sum(row[-1].rstrip("\r\n").count("\n") + 1 for row in malformed)


def write_rejects(table: pa.Table, path: str) -> None:
    """Write a table of rejected rows as Parquet."""
    storage.make_dir(storage.parent(path))
    storage.write_parquet(table, path)


def duplicate_rows(table: pa.Table, rows: np.ndarray, events: EventsSpec, unit: str, files: Sequence[str]) -> pa.Table:
    """Rejected duplicates with their source, in the log's own columns; values are written as they were understood.

    Args:
        table: rows of a bucket.
        rows: int64, which of them are duplicates.
        events: the spec of the log.
        unit: of its times (`time_columns.detect_times`).
        files: paths of the log's files in order.
    """
    part = table.take(pa.array(rows))
    names = {events.user: shard_files.USER, events.item: shard_files.ITEM, events.time: shard_files.TIME}
    names |= {events.action: shard_files.ACTION} if events.action else {}
    names |= {events.value: shard_files.VALUE} if events.value else {}
    names |= {name: schema.context_column(name) for name in events.context.columns}
    raw = {source: part.column(name) for source, name in names.items()}
    micros = part.column(shard_files.TIME)
    if unit in time_columns.UNIT_US:
        raw[events.time] = pc.divide(micros, time_columns.UNIT_US[unit])
    elif unit == "ns":
        raw[events.time] = pc.multiply(micros, 1000)
    else:
        raw[events.time] = micros.cast(pa.timestamp("us")).cast(pa.string())
    sources = np.array([files[f] for f in part.column(shard_files.FILE).to_pylist()], object)
    reasons = np.full(len(rows), DUPLICATE, object)
    return reject_table(pa.table(raw), reasons, sources, part.column(shard_files.ROW).to_numpy())
