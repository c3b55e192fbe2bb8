"""The two Ray Data passes of `prepare`, and what the driver keeps between them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from tqdm import tqdm

from ctxrec.core import ray_private, schema, storage
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing, splits
from ctxrec.ingest import histories, readers, shards

TASK_ROWS = 1 << 20  # rows of the log that one task of the first pass reads, about


@dataclass
class LogFacts:
    """What the first pass found; bounded by the catalogue and the vocabularies, not by the log."""

    rows_read: int = 0
    rows_kept: int = 0
    future: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    shards: list[dict[str, Any]] = field(default_factory=list)
    hours: Counter[int] = field(default_factory=Counter)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)  # n, sum, sum of squares, bad
    new_items: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    counted: dict[tuple[str, str], pa.Table] = field(default_factory=dict)

    def add(self, facts: pa.Table) -> None:
        """Take in facts of one kind and name, in the order of the log."""
        kind, name = facts.column("kind")[0].as_py(), facts.column("name")[0].as_py()
        keys, values = facts.column("key"), facts.column("value").to_numpy()
        if kind == "error":
            raise UserError(keys[0].as_py())
        if kind == "rows":
            self.rows_read += int(values[0]) if name == "read" else 0
            self.future += int(values[0]) if name == "future" else 0
        elif kind == "reject":
            self.rejects.update({k: int(v) for k, v in zip(keys.to_pylist(), values, strict=True) if v})
        elif kind == "shard":
            self.shards.append(json.loads(keys[0].as_py()))
            self.rows_kept += int(values[0])
        elif kind == "hour":
            self.hours.update(dict(zip(map(int, keys.to_pylist()), map(int, values), strict=True)))
        elif kind == "number":
            self.numbers[name] = self.numbers.get(name, np.zeros(4)) + values
        elif kind == "item":
            self.new_items = pa.concat_arrays([self.new_items, keys.combine_chunks().cast(pa.string())]).unique()
        else:
            self._count(kind, name, facts.select(["key", "value"]))

    def _count(self, kind: str, name: str, facts: pa.Table) -> None:
        held = self.counted.get((kind, name))
        facts = facts if held is None else pa.concat_tables([held, facts])
        self.counted[kind, name] = facts.group_by("key").aggregate([("value", "sum")]).rename_columns(["key", "value"])

    def values(self, kind: str, name: str) -> tuple[pa.Array, pa.Array]:
        """Distinct values of a coded column and the rows that have each."""
        table = self.counted.get((kind, name))
        if table is None:
            return pa.array([], pa.large_string()), pa.array([], pa.float64())
        return table.column("key").combine_chunks(), table.column("value").combine_chunks()


def read_log(files: Sequence[readers.FileInfo], num_rows: int, job: shards.ShardJob, item_ids: pa.Array) -> LogFacts:
    """Pass 1: read, clean and shard the log.

    Args:
        files: the log's files in order.
        num_rows: their rows, for the progress bar.
        job: see `ShardJob`.
        item_ids: ids of the item table.
    """
    tasks = _group(readers.make_pieces(files, rows=TASK_ROWS))
    inputs = [pa.table({"task": [number], "pieces": [_pack(pieces)]}) for number, pieces in enumerate(tasks)]
    log = LogFacts()
    if not inputs:
        return log
    with tqdm(total=num_rows, desc="prepare 1/2 read", unit="row", unit_scale=True, mininterval=1) as bar:
        for batch in _run(inputs, shard_task, job=job, item_ids=ray.put(item_ids)):
            for facts in _runs(batch):
                log.add(facts)
            bar.total = max(bar.total, log.rows_read)
            bar.update(log.rows_read - bar.n)
        bar.total = log.rows_read
    return log


def _group(pieces: Sequence[readers.Piece]) -> list[list[readers.Piece]]:
    """Pieces in order as tasks of about TASK_ROWS rows, so that many small files cost few tasks."""
    tasks: list[list[readers.Piece]] = []
    rows = TASK_ROWS
    for piece in pieces:
        if rows + piece.num_rows > TASK_ROWS:
            tasks.append([])
            rows = 0
        tasks[-1].append(piece)
        rows += piece.num_rows
    return tasks


def _pack(pieces: Sequence[readers.Piece]) -> str:
    return json.dumps([[p.path, p.format, p.file, p.start, p.stop, p.first_row, p.num_rows] for p in pieces])


def shard_task(batch: pa.Table, job: shards.ShardJob, item_ids: Any) -> Iterator[pa.Table]:
    """Ray Data task of pass 1."""
    known = ray.get(item_ids)
    for row in batch.to_pylist():
        pieces = [readers.Piece(*values) for values in json.loads(row["pieces"])]
        yield from shards.make_shards(pieces, row["task"], job, known)


def _run(inputs: list[pa.Table], task: Callable, **arguments: Any) -> Iterator[pa.Table]:
    """Map each input block by a task of its own; results in the order of the inputs."""
    # Our own bar counts rows; Ray Data's log of plans and its hint on bars would only interrupt it.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray_private.quiet_data_progress()
    data = ray.data.from_arrow(inputs).map_batches(
        task, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, fn_kwargs=arguments
    )
    data.context.enable_progress_bars = False
    data.context.execution_options.preserve_order = True
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow")


def _runs(batch: pa.Table) -> Iterator[pa.Table]:
    """Facts cut where their kind or name changes."""
    if not len(batch):
        return
    codes = [batch.column(c).combine_chunks().dictionary_encode().indices.to_numpy() for c in ("kind", "name")]
    change = np.flatnonzero((np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)) + 1
    for start, stop in zip([0, *change], [*change, len(batch)], strict=True):
        yield batch.slice(start, stop - start)


def temporal_cuts(log: LogFacts, spec: DatasetSpec, job: shards.ShardJob) -> splits.Cuts:
    """Cut times of the temporal split, over the events that stay: the valid rows of the log but later duplicates.

    The hour of a cut is known from pass 1; only the times inside it are looked at again.

    Raises:
        UserError: no event is left before the first cut.
    """
    if not spec.split.valid and not spec.split.test:
        return splits.Cuts()
    repeated = _repeated_times(log, job)
    num_events = log.rows_kept - len(repeated)
    valid_rank, test_rank = splits.cut_ranks(num_events, spec.split)
    hours = np.array(sorted(log.hours), np.int64)
    counts = np.array([log.hours[h] for h in hours.tolist()], np.int64)
    counts -= np.bincount(np.searchsorted(hours, repeated // shards.HOUR_US), minlength=len(hours))
    places = {rank: splits.hour_of_rank(rank, hours, counts) for rank in {valid_rank, test_rank} if rank < num_events}
    found = _times_in_hours(log, sorted({hour for hour, _ in places.values()}), repeated)
    times = {rank: splits.time_of_rank(inside, *found[hour]) for rank, (hour, inside) in places.items()}
    cuts = splits.Cuts(valid_from=times.get(valid_rank, splits.NEVER), test_from=times.get(test_rank, splits.NEVER))
    if len(hours) and cuts.valid_from <= _first_time(log, hours[0], found):
        raise UserError(
            f"the temporal split leaves no event to train on: all {num_events} events up to the first cut have the "
            'same time. Set strategy = "last" in [split], or valid = 0 and test = 0'
        )
    return cuts


def _first_time(log: LogFacts, hour: int, found: dict[int, tuple[np.ndarray, np.ndarray]]) -> int:
    """The earliest time of the log, as far as the cuts need it: exact when a cut lies in its first hour."""
    return int(found[int(hour)][0][0]) if int(hour) in found else int(hour) * shards.HOUR_US


def _repeated_times(log: LogFacts, job: shards.ShardJob) -> np.ndarray:
    """Times of the log's later duplicates, int64."""
    inputs = [pa.table({"bucket": [bucket]}) for bucket in range(job.buckets)]
    found = [np.zeros(0, np.int64)]
    for batch in _run(inputs, repeated_task, shared=ray.put(_blobs(log, job))):
        found.append(batch.column("time").to_numpy())
    return np.concatenate(found)


def repeated_task(batch: pa.Table, shared: Any) -> Iterator[pa.Table]:
    """Ray Data task that looks for the duplicates of a bucket."""
    blobs = ray.get(shared)
    for bucket in batch.column("bucket").to_pylist():
        yield pa.table({"time": shards.repeated_times(_places(blobs, bucket))})


def _blobs(log: LogFacts, job: shards.ShardJob) -> dict[str, Any]:
    """Where the buckets' rows lie in the shards."""
    offsets = np.array([place["offsets"] for place in log.shards], np.int64).reshape(-1, job.buckets + 1)
    return {"paths": [place["path"] for place in log.shards], "offsets": offsets}


def _places(blobs: dict[str, Any], bucket: int) -> list[tuple[str, int, int]]:
    """Path, offset and size in bytes of a bucket's rows in each shard, in order."""
    starts, stops = blobs["offsets"][:, bucket], blobs["offsets"][:, bucket + 1]
    return list(zip(blobs["paths"], starts.tolist(), (stops - starts).tolist(), strict=True))


def _times_in_hours(log: LogFacts, hours: list[int], repeated: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Distinct times of the log in some hours and the events at each, less those of the times `repeated`."""
    inputs = [
        pa.table({"shard": [json.dumps(place)]})
        for place in log.shards
        if any(place["hours"][0] <= hour <= place["hours"][1] for hour in hours)
    ]
    held: dict[int, list[pa.Table]] = {hour: [] for hour in hours}
    for batch in _run(inputs, times_task, hours=hours) if inputs and hours else ():
        for hour in hours:
            held[hour].append(batch.filter(pc.equal(pc.divide(batch.column("time"), shards.HOUR_US), hour)))
    made = {}
    for hour, parts in held.items():
        table = pa.concat_tables(parts).group_by("time").aggregate([("events", "sum")]).sort_by("time")
        times = table.column("time").to_numpy()
        less = np.searchsorted(times, repeated[repeated // shards.HOUR_US == hour])
        made[hour] = times, table.column("events_sum").to_numpy() - np.bincount(less, minlength=len(times))
    return made


def times_task(batch: pa.Table, hours: list[int]) -> Iterator[pa.Table]:
    """Ray Data task that looks into the hours of the cuts."""
    for place in batch.column("shard").to_pylist():
        times = shards.read_times(json.loads(place))
        times, counts = np.unique(times[np.isin(times // shards.HOUR_US, hours)], return_counts=True)
        yield pa.table({"time": pa.array(times, pa.int64()), "events": pa.array(counts, pa.int64())})


@dataclass
class Totals:
    """What the second pass wrote."""

    train_events: np.ndarray  # int64 [items]
    split: list[int] = field(default_factory=lambda: [0, 0, 0])  # events in train, valid, test
    users: int = 0
    users_only_in_log: int = 0
    events: int = 0
    duplicates: int = 0
    held_out: int = 0  # events of held-out items that were dropped


def write_histories(
    log: LogFacts,
    job: shards.ShardJob,
    bucket_job: histories.BucketJob,
    item_ids: pa.Array,
    attributes: tuple[pa.Table, np.ndarray],
    files: list[str],
    out: str,
    held_out: np.ndarray | None = None,
) -> Totals:
    """Pass 2: write every bucket's histories.

    Args:
        log: what pass 1 found.
        job: of pass 1.
        bucket_job: see `BucketJob`.
        item_ids: the catalogue.
        attributes: user attributes sorted by bucket, and where each bucket begins.
        files: the log's files, for rejected rows.
        out: the data folder.
        held_out: bool [items] items of a cold hold-out; None without one.
    """
    shared = ray.put(
        {
            **_blobs(log, job),
            "item_ids": item_ids,
            "held_out": held_out,
            "users": attributes,
            "files": files,
        }
    )
    inputs = [pa.table({"bucket": [bucket]}) for bucket in range(job.buckets)]
    totals = Totals(train_events=np.zeros(len(item_ids), np.int64))
    with tqdm(total=log.rows_kept, desc="prepare 2/2 build", unit="event", unit_scale=True, mininterval=1) as bar:
        for batch in _run(inputs, bucket_task, job=job, bucket_job=bucket_job, shared=shared, out=out):
            for row in range(len(batch)):
                facts = batch.slice(row, 1)
                train = facts.column("train_items").combine_chunks().flatten().to_numpy()
                totals.train_events[train] += facts.column("train_counts").combine_chunks().flatten().to_numpy()
                counts = facts.drop_columns(["train_items", "train_counts"]).to_pylist()[0]
                totals.split = [have + counts[f"split{part}"] for part, have in enumerate(totals.split)]
                for name in ("users", "users_only_in_log", "events", "duplicates", "held_out"):
                    setattr(totals, name, getattr(totals, name) + counts[name])
                bar.update(counts["events"] + counts["duplicates"] + counts["held_out"])
    return totals


def bucket_task(
    batch: pa.Table, job: shards.ShardJob, bucket_job: histories.BucketJob, shared: Any, out: str
) -> Iterator[pa.Table]:
    """Ray Data task of pass 2: read a bucket of all shards, sort it, write it; yields its counts."""
    world = ray.get(shared)
    user_table, bounds = world["users"]
    for number in batch.column("bucket").to_pylist():
        table = shards.read_bucket(_places(world, number), job.spec.events)
        users = user_table.slice(bounds[number], bounds[number + 1] - bounds[number])
        user_ids = users.column(schema.USER_ID).combine_chunks()
        bucket = histories.sort_bucket(table, world["item_ids"], user_ids, bucket_job, world["held_out"])
        _write_bucket(
            bucket, table, users, bucket_job, storage.join(out, schema.HISTORIES, f"bucket-{number:05d}.parquet")
        )
        if len(bucket.duplicates):
            rejected = duplicate_rows(table, bucket.duplicates, job, world["files"])
            shards.write_rejects(rejected, storage.join(job.rejects, f"duplicates-{number:05d}.parquet"))
        yield _bucket_facts(bucket, user_ids)


def _write_bucket(
    bucket: histories.Bucket, table: pa.Table, users: pa.Table, job: histories.BucketJob, path: str
) -> None:
    fs, inner = storage.filesystem(path)
    wanted = schema.histories_schema(job.spec)
    with pq.ParquetWriter(inner, wanted, filesystem=fs, compression="zstd", compression_level=1) as writer:
        for part in histories.bucket_tables(bucket, table, users, job):
            writer.write_table(part)


def _bucket_facts(bucket: histories.Bucket, user_ids: pa.Array) -> pa.Table:
    train = np.bincount(bucket.items[bucket.split == schema.TRAIN])
    items = np.flatnonzero(train)
    known = pc.sum(pc.is_in(bucket.users, value_set=user_ids)).as_py() or 0
    counts = np.bincount(bucket.split, minlength=3)
    return pa.table(
        {
            "users": [len(bucket.users)],
            "users_only_in_log": [len(bucket.users) - known],
            "events": [len(bucket.items)],
            "duplicates": [len(bucket.duplicates)],
            "held_out": [bucket.held_out],
            **{f"split{part}": [int(n)] for part, n in enumerate(counts)},
            "train_items": pa.array([items], pa.list_(pa.int32())),
            "train_counts": pa.array([train[items]], pa.list_(pa.int64())),
        }
    )


def duplicate_rows(table: pa.Table, rows: np.ndarray, job: shards.ShardJob, files: list[str]) -> pa.Table:
    """Rejected duplicates with their source; values are those that were understood, in the log's own columns."""
    part = table.take(pa.array(rows))
    events, names = job.spec.events, {}
    names |= {events.user: shards.USER, events.item: shards.ITEM, events.time: shards.TIME}
    names |= {events.action: shards.ACTION} if events.action else {}
    names |= {events.value: shards.VALUE} if events.value else {}
    names |= {name: schema.context_column(name) for name in events.context.columns}
    raw = {source: part.column(name) for source, name in names.items()}
    micros = part.column(shards.TIME)
    if job.unit in parsing.UNIT_US:
        raw[events.time] = pc.divide(micros, parsing.UNIT_US[job.unit])
    else:
        raw[events.time] = micros.cast(pa.timestamp("us")).cast(pa.string())
    sources = np.array([files[f] for f in part.column(shards.FILE).to_pylist()], object)
    reasons = np.full(len(rows), shards.DUPLICATE, object)
    return shards.reject_table(pa.table(raw), reasons, sources, part.column(shards.ROW).to_numpy())
