"""Shard files, which hold the log between the two passes, divided by user into buckets.

A shard file is one Arrow IPC stream ("blob") for each bucket, end to end. Its offsets say where each blob begins, so
a bucket is read from all shards without touching the other buckets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from ctxrec.core import failures, schema, storage
from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.parsing import Coded

HOUR_US = 3_600_000_000
_MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, so that multiplying modulo 2^64 loses nothing

# Columns of a shard; context features follow under `schema.context_column`.
USER, ITEM, TIME, ACTION, VALUE, FILE, ROW = "user", "item", "time", "action", "value", "file", "row"

BlobPlace = tuple[str, int, int]  # path of a shard file, offset and size of a blob in bytes


@dataclass(frozen=True)
class ShardFile:
    """One shard file: where it lies, where each bucket begins in it, and which hours it spans."""

    path: str
    offsets: tuple[int, ...]  # bytes [buckets + 1]: where each bucket's blob begins, and the end of the file
    first_hour: int  # hours since 1970
    last_hour: int


@dataclass(frozen=True)
class BlobIndex:
    """Where the rows of every bucket lie in all shard files, in the log's order."""

    paths: list[str]
    offsets: np.ndarray  # int64 [shards, buckets + 1]

    @staticmethod
    def of(shards: Sequence[ShardFile], *, buckets: int) -> BlobIndex:
        offsets = np.array([shard.offsets for shard in shards], np.int64).reshape(-1, buckets + 1)
        return BlobIndex([shard.path for shard in shards], offsets)

    def places(self, bucket: int) -> list[BlobPlace]:
        """The blob of a bucket in each shard."""
        starts, stops = self.offsets[:, bucket], self.offsets[:, bucket + 1]
        return list(zip(self.paths, starts.tolist(), (stops - starts).tolist(), strict=True))


def shard_columns(events: EventsSpec) -> dict[str, pa.DataType]:
    """Columns of a shard and their types once coded columns are decoded."""
    columns = {USER: pa.string(), ITEM: pa.string(), TIME: pa.int64(), FILE: pa.int32(), ROW: pa.int64()}
    columns |= {ACTION: pa.string()} if events.action else {}
    columns |= {VALUE: pa.float32()} if events.value else {}
    columns |= {schema.context_column(n): pa.string() for n in events.context.categorical + events.context.text}
    return columns | {schema.context_column(n): pa.float32() for n in events.context.numeric}


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
    with failures.naming(path), fs.open_output_stream(inner) as stream:
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


def read_bucket(places: Sequence[BlobPlace], events: EventsSpec) -> pa.Table:
    """A bucket's rows of all shards, in the log's order, coded columns with one dictionary each.

    Args:
        places: where the bucket's blob lies in each shard, in the log's order.
        events: the spec of the log.
    """
    tables = list(_read_blobs(places))
    if not tables:
        return pa.table({name: pa.array([], kind) for name, kind in shard_columns(events).items()})
    return pa.concat_tables(tables).unify_dictionaries()


def _read_blobs(places: Sequence[BlobPlace]) -> Iterator[pa.Table]:
    for path, offset, size in places:
        if size:
            fs, inner = storage.filesystem(path)
            with fs.open_input_file(inner) as stream:
                yield pa.ipc.open_stream(pa.py_buffer(stream.read_at(size, offset))).read_all()


def repeated_times(places: Sequence[BlobPlace]) -> np.ndarray:
    """Times of a bucket's events that repeat an earlier one of the same user, item, time and action: int64 [repeats].

    Two events count as equal where a hash of 64 bits over these four is equal. `places` is as for `read_bucket`.
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


def read_times(path: str, offsets: Sequence[int]) -> np.ndarray:
    """Times of all rows of a shard, in no particular order: int64 [rows]. `offsets` is as in `ShardFile`."""
    fs, inner = storage.filesystem(path)
    times = [np.zeros(0, np.int64)]
    with fs.open_input_file(inner) as stream:
        for start, stop in itertools.pairwise(offsets):
            if start < stop:
                blob = pa.py_buffer(stream.read_at(stop - start, start))
                times.append(pa.ipc.open_stream(blob).read_all().column(TIME).to_numpy())
    return np.concatenate(times)
