"""What models and baselines need to know of the training events, gathered from the buckets.

Legend: I items, E training events, U users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.data.prepared import PreparedData

_ROWS_AT_ONCE = 1024  # of a matrix of pairs of items, worked on at a time


@dataclass(frozen=True)
class TrainingEvents:
    """Training events of some users end to end: user n owns [offsets[n], offsets[n + 1]), oldest first."""

    offsets: np.ndarray  # int64 [U + 1]
    items: np.ndarray  # int32 [E]
    times: np.ndarray  # int64 [E] microseconds

    @staticmethod
    def select(offsets: np.ndarray, items: np.ndarray, times: np.ndarray, keep: np.ndarray) -> TrainingEvents:
        """The events where `keep` (bool [E]) is true."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return TrainingEvents(offsets=kept[offsets].astype(np.int64), items=items[keep], times=times[keep])


def training_events(prepared: PreparedData, before: int) -> Iterator[TrainingEvents]:
    """The events of the splits earlier than `before` (schema.VALID or schema.TEST), bucket by bucket."""
    for bucket in range(len(prepared.bucket_paths)):
        table = prepared.read_bucket(bucket, [schema.EVENT_ITEMS, schema.EVENT_TIMES, schema.EVENT_SPLIT])
        items, times, splits = (table.column(c).combine_chunks() for c in table.column_names)
        lengths = items.value_lengths().to_numpy(zero_copy_only=False)
        yield TrainingEvents.select(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items.flatten().to_numpy(),
            times.flatten().to_numpy(),
            splits.flatten().to_numpy() < before,
        )


@dataclass(frozen=True)
class LogStatistics:
    """What the baselines need of the training events, gathered in one pass over the buckets."""

    item_counts: np.ndarray  # int64 [I] events of each item
    times: np.ndarray  # int64 [E] microseconds, sorted
    items: np.ndarray  # int32 [E] in the order of times
    transitions: sp.csr_array  # float32 [I, I] how often a user's item was followed by another (`count_followers`)
    users_items: sp.csr_array  # float32 [U, I] 1 where the user had the item


def gather_statistics(parts: Iterable[TrainingEvents], num_items: int, *, steps: int = 1) -> LogStatistics:
    """Count items and transitions of up to so many steps."""
    counts = np.zeros(num_items, np.int64)
    transitions = sp.csr_array((num_items, num_items), dtype=np.float32)
    times, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    users = [sp.csr_array((0, num_items), dtype=np.float32)]
    for part in parts:
        counts += np.bincount(part.items, minlength=num_items)
        transitions = transitions + count_followers(part, num_items, steps=steps)
        users.append(history_matrix(part.offsets, part.items, num_items))
        times.append(part.times)
        items.append(part.items)
    all_times = np.concatenate(times)
    order = np.argsort(all_times, kind="stable")
    return LogStatistics(
        item_counts=counts,
        times=all_times[order],
        items=np.concatenate(items)[order],
        transitions=transitions,
        users_items=sp.vstack(users, format="csr"),
    )


def users_of_both(users_UI: sp.csr_array) -> np.ndarray:
    """How many users have two items; on the diagonal, one item. float32 [I, I], exact to 2^24"""
    users_IU = users_UI.T.tocsr()
    counts_II = np.empty((users_IU.shape[0],) * 2, np.float32)
    for start in range(0, len(counts_II), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        counts_II[rows] = (users_IU[rows] @ users_UI).toarray()
    return counts_II


def count_followers(part: TrainingEvents, num_items: int, *, steps: int) -> sp.csr_array:
    """How often an item (column) came at most so many steps after another one (row), each time 1 / its steps:
    float32 [I, I]."""
    lengths = np.diff(part.offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    total = sp.csr_array((num_items, num_items), dtype=np.float32)
    for step in range(1, steps + 1):
        inside = user[step:] == user[:-step]
        before, after = part.items[:-step][inside], part.items[step:][inside]
        shares = np.full(len(before), 1 / step, np.float32)
        total = total + sp.coo_array((shares, (before, after)), shape=(num_items, num_items)).tocsr()
    return total


def history_matrix(offsets: np.ndarray, items: np.ndarray, num_items: int) -> sp.csr_array:
    """Binary users-by-items matrix, float32."""
    ones = np.ones(len(items), np.float32)
    # A copy: removing duplicates works in place and would change the caller's offsets.
    matrix = sp.csr_array((ones, items, offsets), shape=(len(offsets) - 1, num_items), copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def trained_items(data: PreparedData, last_split: int) -> np.ndarray:
    """Items that have an event in a split up to `last_split`: bool [I]."""
    trained = np.zeros(data.num_items, bool)
    for bucket in range(len(data.bucket_paths)):
        table = data.read_bucket(bucket, [schema.EVENT_ITEMS, schema.EVENT_SPLIT])
        items, splits = (table.column(c).combine_chunks().flatten().to_numpy() for c in table.column_names)
        trained[items[splits <= last_split]] = True
    return trained
