"""First pass over the log: clean rows, set aside rejected ones, and divide the rest by user into shard files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import DatasetSpec, EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing, time_columns
from ctxrec.data.column_facts import TextFacts, odd_values, short
from ctxrec.data.parsing import Coded
from ctxrec.ingest import readers
from ctxrec.ingest.log_facts import DistinctIds, LogFacts, NumberSums, ValueCounts
from ctxrec.ingest.rejects import MALFORMED, first_of_each, lines_of, reject_table, write_rejects
from ctxrec.ingest.shard_files import (
    ACTION,
    FILE,
    HOUR_US,
    ITEM,
    ROW,
    TIME,
    USER,
    VALUE,
    ShardFile,
    user_buckets,
    write_shard,
)

SHARD_ROWS = 1 << 20
SHARD_BYTES = 256 << 20
MAX_ID_BYTES = 1024  # rows with a longer id are rejected

UNPARSABLE = "unparsable time"
REASONS = {
    (USER, "missing"): "missing user id",
    (ITEM, "missing"): "missing item id",
    (USER, "long"): "user id too long",
    (ITEM, "long"): "item id too long",
    (TIME, time_columns.TIME_MISSING): "missing time",
    (TIME, time_columns.TIME_UNPARSABLE): UNPARSABLE,
    (TIME, time_columns.TIME_OUT_OF_RANGE): "time before 1970 or after 2199",
    (TIME, time_columns.TIME_MISFIT): "number that does not fit the times of the log",
}


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
    small_times: bool = True  # see `time_columns.TimeForm`


def event_columns(events: EventsSpec) -> list[str]:
    """Columns of the log that the spec names, each once."""
    named = [events.user, events.item, events.time, events.action, events.value, *events.context.columns]
    return list(dict.fromkeys(name for name in named if name is not None))


def make_shards(pieces: Sequence[readers.Piece], task: int, job: ShardJob, item_ids: pa.Array) -> Iterator[LogFacts]:
    """Read pieces of the log, write their shards and rejects, and yield the facts of each shard in the log's order.

    The last facts have a `mistake` where reading finds a mistake of the user's.

    Args:
        pieces: what this task reads.
        task: position of the task in the log's order; names its files.
        job: see `ShardJob`.
        item_ids: ids of the item table; the facts name the items of other ids.
    """
    try:
        for number, part in enumerate(_gather(pieces, job.spec.events)):
            yield _make_shard(part, f"{task:06d}-{number:05d}", job, item_ids)
    except UserError as error:
        yield LogFacts(mistake=str(error))


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


def _make_shard(part: _Part, name: str, job: ShardJob, item_ids: pa.Array) -> LogFacts:
    """Write the shard and the rejects of a part of the log."""
    events, raw = job.spec.events, part.table
    for column in raw.schema:
        check_single(column.name, column.type, next(iter(part.paths.values())))
    user = parsing.encode(raw.column(events.user))
    item = parsing.encode(raw.column(events.item))
    times, status = time_columns.to_times(
        raw.column(events.time),
        job.unit,
        small=job.small_times,
        zone=events.timezone,
        time_format=events.time_format,
    )
    reasons = _reasons(user, item, status, job.max_id_bytes)
    facts = LogFacts(rows_read=len(raw) + lines_of(part.malformed), file_rows=_rows_by_file(part))
    facts.texts = {c: TextFacts.of(raw.column(c)) for c in (*_keys(events), *events.context.text)}
    _reject(part, reasons, name, job, facts)
    good = np.flatnonzero(reasons == 0)
    if not len(good):
        return facts
    user, item, times = user.take(good), item.take(good), times[good]
    hours, events_in = np.unique(times // HOUR_US, return_counts=True)
    facts.rows_kept, facts.future = len(good), int((times > job.now_us).sum())
    facts.hours = Counter(dict(zip(hours.tolist(), events_in.tolist(), strict=True)))
    facts.first_us, facts.last_us = int(times.min()), int(times.max())
    facts.new_items = DistinctIds(_new_items(item, item_ids))
    facts.knows_items = len(facts.new_items) < len(item.values)
    for source, ids in ((events.user, user), (events.item, item)):
        found = odd_values(ids.values, np.bincount(ids.codes, minlength=len(ids.values)), ids=True)
        facts.odd |= {(source, kind): values for kind, values in found.items()}
    columns: dict[str, Coded | np.ndarray | pa.Array] = {USER: user, ITEM: item, TIME: times}
    columns |= {FILE: part.files[good], ROW: part.rows[good]}
    columns.update(_categories(raw, good, events, facts))
    columns.update(_numbers(raw, good, events, facts))
    for context in events.context.text:
        columns[schema.context_column(context)] = parsing.to_text(raw.column(context)).take(pa.array(good))
    path = storage.join(job.shards, f"{name}.arrow")
    offsets = write_shard(columns, user_buckets(user, job.buckets), job.buckets, path)
    facts.shards = [ShardFile(path, tuple(offsets), int(hours[0]), int(hours[-1]))]
    return facts


def check_single(column: str, kind: pa.DataType, path: str) -> None:
    """Check that a column of the log has one value a row.

    Raises:
        UserError: it has lists or structs.
    """
    if pa.types.is_nested(kind):
        raise UserError(
            f"column {column!r} of {path} is {kind}; expected one value a row. Take another column, or write one event a row"
        )


def _keys(events: EventsSpec) -> tuple[str, str, str]:
    """The columns that every event needs."""
    return events.user, events.item, events.time


def _rows_by_file(part: _Part) -> Counter[int]:
    """Rows of a part by position of their file, with those that could not be split into columns."""
    files, rows = np.unique(part.files, return_counts=True)
    counts = Counter(dict(zip(files.tolist(), rows.tolist(), strict=True)))
    position = {path: file for file, path in part.paths.items()}
    for path, *line in part.malformed:
        counts[position[path]] += lines_of([tuple(line)])
    return counts


def _reject(part: _Part, reasons: np.ndarray, name: str, job: ShardJob, facts: LogFacts) -> None:
    """Keep the rejected rows of a part; `facts` get the count and the first row of each reason."""
    names = np.array(["", *REASONS.values()], object)
    bad = np.flatnonzero(reasons)
    if len(bad) or part.malformed:
        files = np.array([part.paths[f] for f in part.files[bad].tolist()], object)
        table = reject_table(part.table.take(pa.array(bad)), names[reasons[bad]], files, part.rows[bad], part.malformed)
        write_rejects(table, storage.join(job.rejects, f"events-{name}.parquet"))
        columns = dict(zip((USER, ITEM, TIME), _keys(job.spec.events), strict=True))
        facts.first_rejects = first_of_each(table, {reason: [columns[key]] for (key, _), reason in REASONS.items()})
    counts = np.bincount(reasons, minlength=len(names))[1:].tolist()
    found = {**dict(zip(names[1:].tolist(), counts, strict=True)), MALFORMED: lines_of(part.malformed)}
    facts.rejects = Counter({reason: n for reason, n in found.items() if n})


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
    for code in (
        time_columns.TIME_MISSING,
        time_columns.TIME_UNPARSABLE,
        time_columns.TIME_OUT_OF_RANGE,
        time_columns.TIME_MISFIT,
    ):
        reject(status == code, (TIME, code))
    return reasons


def _new_items(item: Coded, known: pa.Array) -> pa.Array:
    """Item ids of the shard that no table has, in order of first appearance."""
    first = np.empty(len(item.values), np.int64)
    first[item.codes[::-1]] = np.arange(len(item.codes))[::-1]  # the last write, the first row, stays
    ids = item.values.take(pa.array(np.argsort(first)))
    return ids.filter(pc.invert(pc.is_in(ids, value_set=known))).cast(pa.string())


def _categories(raw: pa.Table, good: np.ndarray, events: EventsSpec, facts: LogFacts) -> dict[str, Coded]:
    """Actions and categorical context of the kept rows; their values are counted in `facts`."""
    coded = [(ACTION, events.action)] if events.action else []
    coded += [(schema.context_column(name), name) for name in events.context.categorical]
    columns = {}
    for column, source in coded:
        columns[column] = values = parsing.encode(raw.column(source), normal=column != ACTION).take(good)
        count = np.bincount(values.codes[values.codes >= 0], minlength=len(values.values))
        found = ValueCounts(values.values.cast(pa.large_string()), count.astype(np.int64))
        if column == ACTION:
            facts.actions = found
        else:
            facts.categories[source] = found
    return columns


def _numbers(raw: pa.Table, good: np.ndarray, events: EventsSpec, facts: LogFacts) -> dict[str, np.ndarray]:
    """Values and numeric context of the kept rows, float32 each; their sums are in `facts`."""
    numeric = [(VALUE, events.value)] if events.value else []
    numeric += [(schema.context_column(name), name) for name in events.context.numeric]
    columns = {}
    for column, source in numeric:
        numbers, bad = parsing.to_numbers(raw.column(source), decimal=events.decimal)
        columns[column] = numbers[good]
        wrong = good[bad[good]]
        example = raw.column(source).slice(wrong[0], 1)[0].as_py() if len(wrong) else ""
        facts.numbers[source] = NumberSums.of(numbers[good], len(wrong), bad_example=short(str(example)))
    return columns
