"""Pass 2 as Ray Data tasks: sort each bucket of the log and write its histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from ctxrec.core import failures, schema, storage
from ctxrec.core.terminal import progress_bar
from ctxrec.data.column_facts import FirstReject
from ctxrec.ingest import histories, shard_files
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.ray_map import as_block, map_in_order, values_in
from ctxrec.ingest.rejects import DUPLICATE, duplicate_rows, first_of_each, write_rejects
from ctxrec.ingest.shard_files import BlobIndex
from ctxrec.ingest.shards import ShardJob


@dataclass
class BucketFacts:
    """What pass 2 wrote of one bucket, or of several."""

    train_items: np.ndarray  # int64, positions in the catalogue, sorted
    train_counts: np.ndarray  # int64, training events of each of them
    split: np.ndarray  # int64 [3], events in train, valid, test
    users: int = 0
    users_only_in_log: int = 0
    events: int = 0
    duplicates: int = 0
    held_out: int = 0  # events of held-out items that were dropped
    targets: int = 0  # training events whose action has a positive weight
    first_duplicate: FirstReject | None = None

    @staticmethod
    def of(bucket: histories.Bucket, user_ids: pa.Array, is_target: np.ndarray) -> BucketFacts:
        """Facts of a bucket; `user_ids` are its users that the user table names, `is_target` of each row it came from."""
        in_train = bucket.split == schema.TRAIN
        train = np.bincount(bucket.items[in_train])
        items = np.flatnonzero(train)
        known = pc.sum(pc.is_in(bucket.users, value_set=user_ids)).as_py() or 0
        return BucketFacts(
            train_items=items,
            train_counts=train[items],
            split=np.bincount(bucket.split, minlength=3),
            users=len(bucket.users),
            users_only_in_log=len(bucket.users) - known,
            events=len(bucket.items),
            duplicates=len(bucket.duplicates),
            held_out=bucket.held_out,
            targets=int(is_target[bucket.order[in_train]].sum()),
        )

    @property
    def rows(self) -> int:
        """Rows of the log that came to this: those that are events now, and those that were dropped."""
        return self.events + self.duplicates + self.held_out


class Totals:
    """What pass 2 wrote of all buckets."""

    def __init__(self, num_items: int) -> None:
        self.train_events = np.zeros(num_items, np.int64)
        self.split = [0, 0, 0]  # events in train, valid, test
        self.users = self.users_only_in_log = self.events = self.duplicates = self.held_out = self.targets = 0
        self.first_duplicate: FirstReject | None = None

    def merge(self, bucket: BucketFacts) -> None:
        """Add the facts of a bucket."""
        self.train_events[bucket.train_items] += bucket.train_counts
        self.split = [have + int(more) for have, more in zip(self.split, bucket.split, strict=True)]
        self.users += bucket.users
        self.users_only_in_log += bucket.users_only_in_log
        self.events += bucket.events
        self.duplicates += bucket.duplicates
        self.held_out += bucket.held_out
        self.targets += bucket.targets
        firsts = [first for first in (self.first_duplicate, bucket.first_duplicate) if first is not None]
        self.first_duplicate = min(firsts, key=lambda first: first.place, default=None)


@dataclass(frozen=True)
class World:
    """What every task of pass 2 reads from Ray's object store."""

    blobs: BlobIndex
    item_ids: pa.Array  # the catalogue
    held_out: np.ndarray | None  # bool [items] of a cold hold-out; None without one
    users: pa.Table  # user attributes, sorted by bucket
    user_bounds: np.ndarray  # int64 [buckets + 1], where the users of each bucket begin
    files: list[str]  # the log's files, for rejected rows


def write_histories(
    log: LogFacts, shard_job: ShardJob, bucket_job: histories.BucketJob, world: World, out: str
) -> Totals:
    """Write the histories of every bucket.

    Args:
        log: what pass 1 found.
        shard_job: of pass 1.
        bucket_job: see `BucketJob`.
        world: see `World`.
        out: the data folder.
    """
    inputs = [pa.table({"bucket": [bucket]}) for bucket in range(shard_job.buckets)]
    arguments = {"shard_job": shard_job, "bucket_job": bucket_job, "shared": ray.put(world), "out": out}
    totals = Totals(len(world.item_ids))
    with progress_bar(log.rows_kept, "prepare 2/2 build", "event", scale=True) as bar:
        for block in map_in_order(inputs, bucket_task, **arguments):
            for facts in values_in(block):
                totals.merge(facts)
                bar.update(facts.rows)
    return totals


def bucket_task(
    block: pa.Table, shard_job: ShardJob, bucket_job: histories.BucketJob, shared: Any, out: str
) -> Iterator[pa.Table]:
    """Ray Data task: read a bucket of all shards, sort it, write it; yields its `BucketFacts`."""
    world: World = ray.get(shared)
    for number in block.column("bucket").to_pylist():
        table = shard_files.read_bucket(world.blobs.places(number), shard_job.spec.events)
        start, stop = world.user_bounds[number], world.user_bounds[number + 1]
        users = world.users.slice(start, stop - start)
        user_ids = users.column(schema.USER_ID).combine_chunks()
        bucket = histories.sort_bucket(table, world.item_ids, user_ids, bucket_job, world.held_out)
        path = storage.join(out, schema.HISTORIES, f"bucket-{number:05d}.parquet")
        _write_bucket(bucket, table, users, bucket_job, path)
        first = None
        if len(bucket.duplicates):
            events, unit = shard_job.spec.events, shard_job.unit
            rejected = duplicate_rows(table, bucket.duplicates, events, unit, world.files)
            write_rejects(rejected, storage.join(shard_job.rejects, f"duplicates-{number:05d}.parquet"))
            rejected = rejected.sort_by([("source_file", "ascending"), ("source_row", "ascending")])
            first = first_of_each(rejected, {DUPLICATE: [events.user, events.item, events.time]})[DUPLICATE]
        is_target = histories.target_rows(histories.event_codes(table, bucket_job), bucket_job)
        yield as_block(dataclasses.replace(BucketFacts.of(bucket, user_ids, is_target), first_duplicate=first))


def _write_bucket(
    bucket: histories.Bucket, table: pa.Table, users: pa.Table, job: histories.BucketJob, path: str
) -> None:
    fs, inner = storage.filesystem(path)
    wanted = schema.histories_schema(job.spec, job.features.user_lists)
    with (
        failures.naming(path),
        pq.ParquetWriter(inner, wanted, filesystem=fs, compression="zstd", compression_level=1) as writer,
    ):
        for part in histories.bucket_tables(bucket, table, users, job):
            writer.write_table(part)
