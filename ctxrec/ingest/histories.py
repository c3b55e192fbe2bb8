"""Second pass: one bucket of the log as per-user histories in Arrow and NumPy, without a Python loop over users.

Legend: E events of the bucket, N users of the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.schema import TEST
from ctxrec.data.clock import Clock
from ctxrec.data.events import US
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import FeatureMeta, encode_categories
from ctxrec.data.splits import Cuts, last_split, temporal_split
from ctxrec.ingest import shard_files

ROWS_PER_GROUP = 16_384  # users in a row group of a bucket file
EVENTS_PER_GROUP = 1 << 20  # and events, about: a group's text must stay below Arrow's 2 GB a column


@dataclass(frozen=True)
class BucketJob:
    """What every task of the second pass needs to know."""

    spec: DatasetSpec
    features: FeatureMeta
    cuts: Cuts
    min_events: int


@dataclass(frozen=True)
class Bucket:
    """A bucket's events, sorted by user and time, in parallel arrays."""

    users: pa.Array  # string [N], sorted
    offsets: np.ndarray  # int64 [N + 1]
    items: np.ndarray  # int32 [E] positions in the catalogue
    times: np.ndarray  # int64 [E] microseconds
    split: np.ndarray  # int8 [E]
    order: np.ndarray  # int64 [E] position of each event in the table it came from
    duplicates: np.ndarray  # positions of the rejected duplicates
    held_out: int  # events of held-out items that were dropped


def sort_bucket(
    table: pa.Table, item_ids: pa.Array, user_ids: pa.Array, job: BucketJob, held_out: np.ndarray | None = None
) -> Bucket:
    """Sort a bucket's rows by user and time, stably on the log's order, and drop later duplicates.

    Items of a cold hold-out lose every event but those of the test split, which keep the place that the whole
    log gives them.

    Args:
        table: rows of the bucket in the log's order (see `shard_files.shard_columns`).
        item_ids: the catalogue.
        user_ids: users of the bucket that the user table names; they get a history even when it is empty.
        job: see `BucketJob`.
        held_out: bool [I] items of a cold hold-out; None without one.
    """
    codes, log_users = _codes(table.column(shard_files.USER))
    users = pa.concat_arrays([log_users, user_ids]).unique()
    users = users.take(pc.sort_indices(users))
    rank = pc.index_in(log_users, value_set=users).to_numpy(zero_copy_only=False).astype(np.int64)
    owner = rank[codes]
    times = table.column(shard_files.TIME).to_numpy()
    item_codes, names = _codes(table.column(shard_files.ITEM))
    position = pc.index_in(names, value_set=item_ids)
    assert position.null_count == 0, "every item of the log is in the catalogue"
    items = position.to_numpy(zero_copy_only=False).astype(np.int32)[item_codes]

    order = stable_order(owner, times)
    owner, times, items = owner[order], times[order], items[order]
    actions = None
    if shard_files.ACTION in table.column_names:
        actions = _codes(table.column(shard_files.ACTION))[0][order]
    kept = ~duplicated(owner, times, items, actions)
    duplicates = order[~kept]
    owner, times, items, order = owner[kept], times[kept], items[kept], order[kept]
    offsets = np.zeros(len(users) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(users)), out=offsets[1:])
    if job.spec.split.strategy == "last":
        split = last_split(offsets, job.spec.split, min_events=job.min_events)
    else:
        split = temporal_split(times, job.cuts)
    stays = np.ones(len(items), bool) if held_out is None else ~held_out[items] | (split == TEST)
    offsets = np.concatenate([[0], np.cumsum(stays)])[offsets].astype(np.int64)
    return Bucket(
        users=users,
        offsets=offsets,
        items=items[stays],
        times=times[stays],
        split=split[stays],
        order=order[stays],
        duplicates=np.sort(duplicates),
        held_out=int((~stays).sum()),
    )


def event_codes(table: pa.Table, job: BucketJob) -> np.ndarray:
    """The code of each row's action and value (`ctxrec.data.feedback`): int16 [E]."""
    events, features = job.spec.events, job.features
    actions, values = np.zeros(len(table), np.int16), np.full(len(table), np.nan, np.float32)
    if events.action:
        codes, names = _codes(table.column(shard_files.ACTION))
        position = pc.index_in(names, value_set=pa.array(features.actions, pa.string()))
        actions = np.append(position.to_numpy(zero_copy_only=False) + 1, 0).astype(np.int16)[codes]
    if events.value:
        values = table.column(shard_files.VALUE).to_numpy()
    return EventKinds.of(events, features.actions, features.graded).codes(actions, values)


def target_rows(codes: np.ndarray, job: BucketJob) -> np.ndarray:
    """Which rows of a bucket may be training targets, by their codes: those of a positive weight. bool [E]."""
    events, features = job.spec.events, job.features
    return EventKinds.of(events, features.actions, features.graded).weights_A[codes] > 0


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes (-1 = null) and distinct values of a column, dictionary-encoded or not."""
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    array = column.combine_chunks()
    return array.indices.fill_null(-1).to_numpy(zero_copy_only=False), array.dictionary


def stable_order(owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Positions of rows sorted by owner, then time, then position: int64 [E]. Times are microseconds."""
    if not len(owner):
        return np.zeros(0, np.int64)
    start = times.min()
    unit = 1000 if not (times % 1000).any() else 1
    unit = US if unit == 1000 and not (times % US).any() else unit
    past = (times - start) // unit
    bits = int(past.max()).bit_length()
    if int(owner.max()).bit_length() + bits > 62:
        return np.lexsort((past, owner))
    # One number a row sorts several times faster than two, and the unstable vector sort faster still:
    # rows of equal number, which are few, are put back in order afterwards.
    key = (owner << bits) | past
    order = np.argsort(key)
    key = key[order]
    same = np.append(key[1:] == key[:-1], False)
    tied = np.flatnonzero(same | np.append(False, same[:-1]))
    if len(tied):
        order[tied] = order[tied][np.lexsort((order[tied], key[tied]))]
    return order


def duplicated(owner: np.ndarray, times: np.ndarray, items: np.ndarray, actions: np.ndarray | None) -> np.ndarray:
    """Which events repeat an earlier one of the same user, time, item and action: bool [E].

    The rows are sorted by `stable_order`.

    Times are microseconds.
    """
    repeat = np.zeros(len(owner), bool)
    same = np.append((owner[1:] == owner[:-1]) & (times[1:] == times[:-1]), False) if len(owner) else repeat
    tied = np.flatnonzero(same | np.append(False, same[:-1]) if len(owner) else repeat)
    if len(tied):
        moment = np.cumsum(~np.append(False, same[tied[:-1]]))  # number of the (user, time) group
        keys = (items[tied], moment) if actions is None else (actions[tied], items[tied], moment)
        by_key = np.lexsort(keys)
        equal = np.ones(len(tied) - 1, bool)
        for key in keys:
            equal &= key[by_key][1:] == key[by_key][:-1]
        repeat[tied[by_key[1:][equal]]] = True
    return repeat


def bucket_tables(bucket: Bucket, table: pa.Table, user_table: pa.Table, job: BucketJob) -> Iterator[pa.Table]:
    """The histories of a bucket in the columns of `schema.histories_schema`, some thousand users at a time.

    Args:
        bucket: what `sort_bucket` made of `table`.
        table: rows of the bucket in the log's order.
        user_table: USER_ID and attributes (`schema.user_column`) of the bucket's users that have any.
        job: see `BucketJob`.
    """
    columns = _event_columns(bucket, table, job)
    attributes = _attributes(bucket.users, user_table, job)
    start = 0
    while start < len(bucket.users):
        limit = np.searchsorted(bucket.offsets, bucket.offsets[start] + EVENTS_PER_GROUP, side="right") - 1
        stop = min(max(int(limit), start + 1), start + ROWS_PER_GROUP, len(bucket.users))
        yield _slice(bucket, columns, attributes, start, stop, job)
        start = stop


def _event_columns(bucket: Bucket, table: pa.Table, job: BucketJob) -> dict[str, np.ndarray | pa.ChunkedArray]:
    """Values of all events, in the order of the bucket; text stays in the table's order until it is written."""
    events, features, order = job.spec.events, job.features, bucket.order
    gaps = np.full(len(order), np.nan, np.float32)
    if len(order):
        gaps[1:] = (np.diff(bucket.times) / US).astype(np.float32)
        firsts = bucket.offsets[:-1]
        gaps[firsts[firsts < len(order)]] = np.nan
    columns: dict[str, np.ndarray | pa.ChunkedArray] = {
        schema.EVENT_ITEMS: bucket.items,
        schema.EVENT_TIMES: bucket.times,
        schema.EVENT_SPLIT: bucket.split,
        schema.EVENT_ACTIONS: event_codes(table, job)[order],
        schema.EVENT_VALUES: np.full(len(order), np.nan, np.float32),
        schema.EVENT_GAPS: gaps,
    }
    if events.value:
        columns[schema.EVENT_VALUES] = table.column(shard_files.VALUE).to_numpy()[order]
    for name in events.context.categorical:
        codes, values = _codes(table.column(schema.context_column(name)))
        recode = encode_categories(values, features.context_categories[name]).to_numpy()
        columns[schema.context_column(name)] = np.append(recode, np.int32(schema.MISSING))[codes][order]
    for name in events.context.numeric:
        columns[schema.context_column(name)] = table.column(schema.context_column(name)).to_numpy()[order]
    for name in events.context.text:
        columns[schema.context_column(name)] = table.column(schema.context_column(name))
    return columns


def _attributes(users: pa.Array, user_table: pa.Table, job: BucketJob) -> dict[str, pa.Array]:
    """Attributes of each user; MISSING, an empty list or null for those that the user table lacks."""
    if job.spec.users is None:
        return {}
    row = pc.index_in(users, value_set=user_table.column(schema.USER_ID).combine_chunks())
    made = {}
    for name in job.spec.users.categorical:
        codes = user_table.column(schema.user_column(name)).combine_chunks().take(row)
        nothing: Any = [] if pa.types.is_list(codes.type) else schema.MISSING
        made[schema.user_column(name)] = codes.fill_null(pa.scalar(nothing, codes.type))
    for name in job.spec.users.numeric + job.spec.users.text:
        made[schema.user_column(name)] = user_table.column(schema.user_column(name)).combine_chunks().take(row)
    return made


def _slice(
    bucket: Bucket,
    columns: dict[str, np.ndarray | pa.ChunkedArray],
    attributes: dict[str, pa.Array],
    start: int,
    stop: int,
    job: BucketJob,
) -> pa.Table:
    """Users [start, stop) as a table."""
    wanted = schema.histories_schema(job.spec, job.features.user_lists)
    first, end = bucket.offsets[start], bucket.offsets[stop]
    offsets = pa.array((bucket.offsets[start : stop + 1] - first).astype(np.int32))
    derived = Clock.of(job.spec, job.features).read(bucket.times[first:end])
    arrays = []
    for field in wanted:
        if field.name == schema.USER_ID:
            arrays.append(bucket.users.slice(start, stop - start))
        elif field.name in attributes:
            arrays.append(attributes[field.name].slice(start, stop - start).cast(field.type))
        else:
            values = columns.get(field.name)
            if values is None:
                flat = pa.array(derived[field.name])
            elif isinstance(values, pa.ChunkedArray):
                flat = values.take(pa.array(bucket.order[first:end])).combine_chunks()
            else:
                flat = pa.array(values[first:end])
            arrays.append(pa.ListArray.from_arrays(offsets, flat.cast(field.type.value_type)))
    return pa.Table.from_arrays(arrays, schema=wanted)
