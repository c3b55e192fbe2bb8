"""First pass over the log: clean rows, set aside rejected ones, and divide the rest by user into bucket blobs.

A shard file holds, end to end, one Arrow IPC stream for each bucket; the facts say where each begins, so a bucket
is read from all shards without touching the others. Everything the driver must know of the rows comes back as
facts: small tables of (kind, name, key, value).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import DatasetSpec, EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing
from ctxrec.data.parsing import Coded
from ctxrec.ingest import readers

SHARD_ROWS = 1 << 20
SHARD_BYTES = 256 << 20
HOUR_US = 3_600_000_000
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing

USER, ITEM, TIME, ACTION, VALUE, FILE, ROW = "user", "item", "time", "action", "value", "file", "row"

# Kinds of facts: rows (read, kept, future), reject (reason), shard (blob offsets), hour and time (events in it), item
# (id, in order of first appearance), action and category (value and its events), number (n, sum, sum of squares, bad).
FACTS = pa.schema([("kind", pa.string()), ("name", pa.string()), ("key", pa.large_string()), ("value", pa.float64())])

REASONS = {
    (USER, "missing"): "missing user id",
    (ITEM, "missing"): "missing item id",
    (USER, "long"): "user id too long",
    (ITEM, "long"): "item id too long",
    (TIME, parsing.TIME_MISSING): "missing time",
    (TIME, parsing.TIME_UNPARSABLE): "unparsable time",
    (TIME, parsing.TIME_OUT_OF_RANGE): "time out of range",
}
DUPLICATE = "duplicate event"
MALFORMED = "malformed row"


@dataclass(frozen=True)
class ShardJob:
    """What every task of the first pass needs to know."""

    spec: DatasetSpec
    unit: str
    buckets: int
    max_id_bytes: int
    now_us: int
    shards: str  # folder of shard files
    rejects: str  # folder of rejected rows


def facts(kind: str, name: str, keys: Sequence[str] | pa.Array, values: Sequence[float] | np.ndarray) -> pa.Table:
    """A table of facts of one kind."""
    n = len(keys)
    columns = [pa.repeat(kind, n), pa.repeat(name, n), pa.array(keys).cast(pa.large_string()), pa.array(values)]
    return pa.table([c.cast(t) for c, t in zip(columns, FACTS.types, strict=True)], schema=FACTS)


def event_columns(events: EventsSpec) -> list[str]:
    """Columns of the log that the spec names, each once."""
    named = [events.user, events.item, events.time, events.action, events.value, *events.context.columns]
    return list(dict.fromkeys(name for name in named if name is not None))


def shard_columns(events: EventsSpec) -> dict[str, pa.DataType]:
    """Columns of a shard and their types once coded columns are decoded."""
    columns = {USER: pa.string(), ITEM: pa.string(), TIME: pa.int64(), FILE: pa.int32(), ROW: pa.int64()}
    columns |= {ACTION: pa.string()} if events.action else {}
    columns |= {VALUE: pa.float32()} if events.value else {}
    columns |= {schema.context_column(n): pa.string() for n in events.context.categorical + events.context.text}
    return columns | {schema.context_column(n): pa.float32() for n in events.context.numeric}


def make_shards(pieces: Sequence[readers.Piece], task: int, job: ShardJob, item_ids: pa.Array) -> Iterator[pa.Table]:
    """Read pieces of the log, write their shards and rejects, and yield facts in the log's order.

    A user's mistake that only reading finds comes back as a fact of kind "error".

    Args:
        pieces: what this task reads.
        task: position of the task in the log's order; names its files.
        job: see `ShardJob`.
        item_ids: ids of the item table; items of other ids come back as facts.
    """
    try:
        for number, part in enumerate(_gather(pieces, job.spec.events)):
            yield from _make_shard(part, f"{task:06d}-{number:05d}", job, item_ids)
    except UserError as error:
        yield facts("error", "", [str(error)], [0.0])


@dataclass(frozen=True)
class _Part:
    """Raw rows of one shard, of one or more files."""

    table: pa.Table
    files: np.ndarray  # int32 [N] position of the file in the log
    rows: np.ndarray  # int64 [N]
    malformed: list[tuple[str, int, str]]  # file, row, text
    paths: dict[int, str]


def _gather(pieces: Sequence[readers.Piece], events: EventsSpec) -> Iterator[_Part]:
    """Batches of the pieces joined to about SHARD_ROWS rows."""
    held: list[tuple[readers.RawBatch, int]] = []
    paths = {piece.file: piece.path for piece in pieces}
    coded = [c for c in (events.user, events.item, events.action, *events.context.categorical) if c]

    def join() -> _Part:
        sizes = [len(batch.rows) for batch, _ in held]
        return _Part(
            table=pa.concat_tables([batch.table for batch, _ in held]),
            files=np.repeat(np.array([file for _, file in held], np.int32), sizes),
            rows=np.concatenate([batch.rows for batch, _ in held]),
            malformed=[(paths[file], row, text) for batch, file in held for row, text in batch.malformed],
            paths=paths,
        )

    rows = size = 0
    for piece in pieces:
        for batch in readers.read_piece(piece, event_columns(events), encoded=coded):
            if held and batch.table.schema != held[0][0].table.schema:
                yield join()
                held, rows, size = [], 0, 0
            held.append((batch, piece.file))
            rows, size = rows + len(batch.table), size + batch.table.nbytes
            if rows >= SHARD_ROWS or size >= SHARD_BYTES:
                yield join()
                held, rows, size = [], 0, 0
    if held:
        yield join()


def _make_shard(part: _Part, name: str, job: ShardJob, item_ids: pa.Array) -> Iterator[pa.Table]:
    events, raw = job.spec.events, part.table
    user = parsing.encode(raw.column(events.user))
    item = parsing.encode(raw.column(events.item))
    times, status = parsing.to_times(raw.column(events.time), job.unit)
    reasons = _reasons(user, item, status, job.max_id_bytes)
    good, bad = np.flatnonzero(reasons == 0), np.flatnonzero(reasons)
    names = np.array(["", *REASONS.values()], object)
    if len(bad) or part.malformed:
        files = np.array([part.paths[f] for f in part.files[bad].tolist()], object)
        rejected = reject_table(raw.take(pa.array(bad)), names[reasons[bad]], files, part.rows[bad], part.malformed)
        write_rejects(rejected, storage.join(job.rejects, f"events-{name}.parquet"))
    counts = np.bincount(reasons, minlength=len(names))
    yield facts("rows", "read", [""], [len(raw) + len(part.malformed)])
    yield facts("reject", "", [*names[1:], MALFORMED], [*counts[1:], len(part.malformed)])
    if not len(good):
        return
    user, item, times = user.take(good), item.take(good), times[good]
    yield facts("rows", "future", [""], [int((times > job.now_us).sum())])
    hours, events_in = np.unique(times // HOUR_US, return_counts=True)
    yield facts("hour", "", pa.array(hours).cast(pa.string()), events_in)
    yield from _new_items(item, item_ids)
    columns: dict[str, Coded | np.ndarray | pa.Array] = {USER: user, ITEM: item, TIME: times}
    columns |= {FILE: part.files[good], ROW: part.rows[good]}
    for column, values, made in _features(raw, good, events):
        columns[column] = values
        yield from made
    path = storage.join(job.shards, f"{name}.arrow")
    offsets = write_shard(columns, user_buckets(user, job.buckets), job.buckets, path)
    key = json.dumps({"path": path, "offsets": offsets, "hours": [int(hours[0]), int(hours[-1])]})
    yield facts("shard", "", [key], [len(good)])


def _reasons(user: Coded, item: Coded, status: np.ndarray, max_id_bytes: int) -> np.ndarray:
    """Position in REASONS plus one of the first reason to reject each row; 0 keeps it. int8 [N]."""
    order = list(REASONS)
    reasons = np.zeros(len(status), np.int8)

    def reject(rows: np.ndarray, key: tuple) -> None:
        reasons[rows & (reasons == 0)] = order.index(key) + 1

    for name, ids in ((USER, user), (ITEM, item)):
        long = pc.greater(pc.binary_length(ids.values), max_id_bytes).to_numpy(zero_copy_only=False)
        reject(ids.codes < 0, (name, "missing"))
        reject(np.append(long, False)[ids.codes], (name, "long"))
    for code in (parsing.TIME_MISSING, parsing.TIME_UNPARSABLE, parsing.TIME_OUT_OF_RANGE):
        reject(status == code, (TIME, code))
    return reasons


def _new_items(item: Coded, known: pa.Array) -> Iterator[pa.Table]:
    """Item ids of the shard that no table has, in order of first appearance."""
    first = np.empty(len(item.values), np.int64)
    first[item.codes[::-1]] = np.arange(len(item.codes))[::-1]  # the last write, the first row, stays
    ids = item.values.take(pa.array(np.argsort(first)))
    ids = ids.filter(pc.invert(pc.is_in(ids, value_set=known)))
    if len(ids):
        yield facts("item", "", ids, np.zeros(len(ids)))


def _features(raw: pa.Table, good: np.ndarray, events: EventsSpec) -> Iterator[tuple]:
    """Columns of a shard beyond user, item and time, each with its facts."""
    coded = [(ACTION, events.action, "action")] if events.action else []
    coded += [(schema.context_column(n), n, "category") for n in events.context.categorical]
    for column, source, kind in coded:
        values = parsing.encode(raw.column(source)).take(good)
        count = np.bincount(values.codes[values.codes >= 0], minlength=len(values.values))
        yield column, values, [facts(kind, source, values.values, count)]
    numeric = [(VALUE, events.value)] if events.value else []
    numeric += [(schema.context_column(n), n) for n in events.context.numeric]
    for n, (column, source) in enumerate(numeric):
        numbers, bad = parsing.to_numbers(raw.column(source))
        made = [number_facts(source, numbers[good], int(bad[good].sum()))]
        yield column, numbers[good], made if source not in dict(numeric[:n]).values() else []
    for name in events.context.text:
        text = parsing.to_text(raw.column(name)).take(pa.array(good))
        yield schema.context_column(name), text, []


def number_facts(name: str, numbers: np.ndarray, bad: int) -> pa.Table:
    """Count, sum and sum of squares of sign(x)·log(1+|x|), and the number of bad values."""
    known = signed_log(numbers[~np.isnan(numbers)])
    return facts("number", name, ["n", "sum", "squares", "bad"], [len(known), known.sum(), (known**2).sum(), bad])


def signed_log(numbers: np.ndarray) -> np.ndarray:
    """sign(x)·log(1+|x|) in double precision."""
    numbers = np.asarray(numbers, np.float64)
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def user_buckets(user: Coded, buckets: int) -> np.ndarray:
    """Bucket of each row's user: a hash that is the same in every process and on every machine. [N]"""
    hashed = pd.util.hash_array(user.values.to_numpy(zero_copy_only=False), categorize=False)
    kind = np.uint16 if buckets < 1 << 16 else np.uint32  # 16 bits sort by radix
    return (hashed % np.uint64(buckets)).astype(kind)[user.codes]


def write_shard(
    columns: dict[str, Coded | np.ndarray | pa.Array], bucket: np.ndarray, buckets: int, path: str
) -> list[int]:
    """Write rows divided by bucket, in their order inside each; returns where each bucket begins, and the end."""
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    offsets = [0]
    fs, inner = storage.filesystem(path)
    with fs.open_output_stream(inner) as stream:
        for start, stop in itertools.pairwise(bounds.tolist()):
            if start < stop:
                blob = _blob({name: _rows(values, order[start:stop]) for name, values in columns.items()})
                stream.write(blob)
                offsets.append(offsets[-1] + blob.size)
            else:
                offsets.append(offsets[-1])
    return offsets


def _rows(values: Coded | np.ndarray | pa.Array, index: np.ndarray) -> pa.Array:
    if isinstance(values, Coded):
        return values.take(index).to_arrow()
    return pa.array(values[index]) if isinstance(values, np.ndarray) else values.take(pa.array(index))


def _blob(columns: dict[str, pa.Array]) -> pa.Buffer:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def read_bucket(places: Sequence[tuple[str, int, int]], events: EventsSpec) -> pa.Table:
    """A bucket's rows of all shards, in the log's order, coded columns with one dictionary each.

    Args:
        places: path, offset and size in bytes of the bucket's blob in each shard, in order.
        events: the spec of the log.
    """
    tables = list(_read_blobs(places))
    if not tables:
        return pa.table({name: pa.array([], kind) for name, kind in shard_columns(events).items()})
    return pa.concat_tables(tables).unify_dictionaries()


def _read_blobs(places: Sequence[tuple[str, int, int]]) -> Iterator[pa.Table]:
    for path, offset, size in places:
        if size:
            fs, inner = storage.filesystem(path)
            with fs.open_input_file(inner) as stream:
                yield pa.ipc.open_stream(pa.py_buffer(stream.read_at(size, offset))).read_all()


def repeated_times(places: Sequence[tuple[str, int, int]]) -> np.ndarray:
    """Times of a bucket's events that repeat an earlier one of the same user, item, time and action. int64

    Events are told apart by a hash of 64 bits; `places` as for `read_bucket`.
    """
    keys, times = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for table in _read_blobs(places):
        times.append(table.column(TIME).to_numpy())
        key = times[-1].astype(np.uint64)
        for name in (USER, ITEM, ACTION):
            if name in table.column_names:
                values = table.column(name).combine_chunks()
                hashed = pd.util.hash_array(values.dictionary.to_numpy(zero_copy_only=False), categorize=False)
                codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
                key = (key ^ np.append(hashed, np.uint64(0))[codes]) * _MIX
        keys.append(key)
    key = np.concatenate(keys)
    order = np.argsort(key)
    key = key[order]
    return np.concatenate(times)[order[1:][key[1:] == key[:-1]]]


def read_times(place: dict[str, Any]) -> np.ndarray:
    """Times of all rows of a shard, in no particular order. `place` is its fact."""
    fs, inner = storage.filesystem(place["path"])
    times = [np.zeros(0, np.int64)]
    with fs.open_input_file(inner) as stream:
        for start, stop in itertools.pairwise(place["offsets"]):
            if start < stop:
                blob = pa.py_buffer(stream.read_at(stop - start, start))
                times.append(pa.ipc.open_stream(blob).read_all().column(TIME).to_numpy())
    return np.concatenate(times)


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
        text = parsing.as_written(raw.column(name))
        safe = name if name not in {*columns, "source_text"} else f"{name}_"
        columns[safe] = pa.concat_arrays([text, pa.nulls(len(malformed), pa.large_string())])
    texts = [None] * len(raw) + [m[2] for m in malformed]
    return pa.table(columns | {"source_text": pa.array(texts, pa.large_string())})


def write_rejects(table: pa.Table, path: str) -> None:
    fs, inner = storage.filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    pq.write_table(table, inner, filesystem=fs)
