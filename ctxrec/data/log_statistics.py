"""What models and baselines need to know of the log, gathered from the buckets of histories.

`scan_log` reads each bucket once and answers all that a training asks before its first step, and all that baselines are fitted to.

Legend: I items, E events, U users, K buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.data.batching import make_windows
from ctxrec.data.events import histories_from_table
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests, join_requests, validation_share

_ROWS_AT_ONCE = 1024  # of a matrix of pairs of items, worked on at a time
BUCKET_EVENTS = [schema.EVENT_ITEMS, schema.EVENT_TIMES, schema.EVENT_SPLIT]


@dataclass(frozen=True)
class TrainingEvents:
    """Training events of some users end to end: user n owns [offsets[n], offsets[n + 1]), oldest first."""

    offsets: np.ndarray  # int64 [U + 1]
    items: np.ndarray  # int32 [E]
    times: np.ndarray  # int64 [E] microseconds
    grades: np.ndarray | None = None  # int8 [E], see `EventKinds.grades_A`; None: values do not count

    def where(self, keep: np.ndarray) -> TrainingEvents:
        """The events where `keep` (bool [E]) is true."""
        return TrainingEvents(
            offsets=np.concatenate([[0], np.cumsum(keep)])[self.offsets].astype(np.int64),
            items=self.items[keep],
            times=self.times[keep],
            grades=None if self.grades is None else self.grades[keep],
        )


@dataclass(frozen=True)
class BucketEvents:
    """All events of a bucket with their splits: user n owns [offsets[n], offsets[n + 1]), oldest first."""

    offsets: np.ndarray  # int64 [U + 1]
    items: np.ndarray  # int32 [E]
    times: np.ndarray  # int64 [E] microseconds
    split: np.ndarray  # int8 [E]
    grades: np.ndarray | None = None  # int8 [E], see `TrainingEvents`

    @staticmethod
    def read(data: PreparedData, bucket: int) -> BucketEvents:
        """The events of a bucket; where values count also what they say."""
        kinds = data.judging_kinds
        columns = BUCKET_EVENTS if kinds is None else [*BUCKET_EVENTS, schema.EVENT_ACTIONS]
        return BucketEvents.of(data.read_bucket(bucket, columns), kinds)

    @staticmethod
    def of(table: pa.Table, kinds: EventKinds | None = None) -> BucketEvents:
        """The events of a table that `PreparedData.read_bucket` gave; with `kinds` also what their values say."""
        items, times, split = (table.column(name).combine_chunks() for name in BUCKET_EVENTS)
        lengths = items.value_lengths().to_numpy(zero_copy_only=False)
        return BucketEvents(
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=items.flatten().to_numpy(),
            times=times.flatten().to_numpy(),
            split=split.flatten().to_numpy(),
            grades=None
            if kinds is None
            else kinds.grades_A[table.column(schema.EVENT_ACTIONS).combine_chunks().flatten()],
        )

    def before(self, split: int) -> TrainingEvents:
        """The events of earlier splits than `split`."""
        return TrainingEvents(self.offsets, self.items, self.times, self.grades).where(self.split < split)


@dataclass(frozen=True)
class TrainingPart:
    """What a training reads whose events are those up to one split."""

    trained_I: np.ndarray  # bool, which items have such an event
    events_K: np.ndarray  # int64, events of each bucket
    windows_K: np.ndarray  # int64, windows of each bucket (`ctxrec.data.batching.make_windows`)


@dataclass(frozen=True)
class LogScan:
    """What a training needs to know of the log before its first step.

    train, refit: of the events up to the training split, and up to the validation split.
    validation: requests of the validation split; None where there are none, or none were asked for.
    events: all events of each bucket; empty where they were not asked for.
    """

    train: TrainingPart
    refit: TrainingPart
    validation: Requests | None
    events: tuple[BucketEvents, ...]

    def up_to(self, last_split: int) -> TrainingPart:
        """The part whose events are those of the splits up to `last_split` (schema.TRAIN or schema.VALID)."""
        return {schema.TRAIN: self.train, schema.VALID: self.refit}[last_split]

    def training_events(self, before: int) -> Iterator[TrainingEvents]:
        """The events of the splits earlier than `before`, bucket by bucket, from memory."""
        return (part.before(before) for part in self.events)


def scan_log(
    data: PreparedData, *, history: int, num_validation_requests: int = 0, keep_events: bool = False
) -> LogScan:
    """Read each bucket of the log once.

    Args:
        data: the prepared log.
        history: events that the model reads at most, which the number of windows depends on.
        num_validation_requests: how many requests of the validation split are taken at most, at even distances; with 0 no
            more than items, times and splits are read.
        keep_events: keep item, time and split of every event, 13 bytes each, for `LogScan.training_events`.
    """
    num_buckets = len(data.bucket_paths)
    parts = {
        last: TrainingPart(
            np.zeros(data.num_items, bool), np.zeros(num_buckets, np.int64), np.zeros(num_buckets, np.int64)
        )
        for last in (schema.TRAIN, schema.VALID)
    }
    requests, kept = [], []
    graded = data.judging_kinds
    for bucket in range(num_buckets):
        table = data.read_bucket(bucket) if num_validation_requests else None
        events = BucketEvents.read(data, bucket) if table is None else BucketEvents.of(table, graded)
        for last, part in parts.items():
            training = events.before(last + 1)
            part.trained_I[training.items] = True
            part.events_K[bucket] = len(training.items)
            # Splits follow time, so the training events of a user are the first ones.
            part.windows_K[bucket] = len(make_windows(training.offsets[:-1], training.offsets[1:], history))
        if table is not None:
            histories = histories_from_table(table, data.features, data.kinds)
            requests.append(validation_share(histories, data, num_validation_requests))
        if keep_events:
            kept.append(events)
    return LogScan(
        train=parts[schema.TRAIN],
        refit=parts[schema.VALID],
        validation=join_requests(requests, num_validation_requests),
        events=tuple(kept),
    )


@dataclass(frozen=True)
class LogStatistics:
    """What memory and baselines need to know of the training events."""

    item_counts: np.ndarray  # int64 [I] events of each item
    times: np.ndarray  # int64 [E] microseconds, sorted
    items: np.ndarray  # int32 [E] in the order of times
    transitions: sp.csr_array  # float32 [I, I] how often a user's item was followed by another (`count_followers`)
    users_items: sp.csr_array  # float32 [U, I] 1 where the user had the item


def gather_statistics(parts: Iterable[TrainingEvents], num_items: int, *, steps: int = 1) -> LogStatistics:
    """Gather the statistics of events part by part.

    Args:
        parts: events of some users each.
        num_items: items of the catalogue.
        steps: a transition may span so many steps of a history (`count_followers`).
    """
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
    """The number of users who have both of two items, and on the diagonal who have one: float32 [I, I], exact to 2^24."""
    users_IU = users_UI.T.tocsr()
    counts_II = np.empty((users_IU.shape[0],) * 2, np.float32)
    for start in range(0, len(counts_II), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        counts_II[rows] = (users_IU[rows] @ users_UI).toarray()
    return counts_II


def count_followers(part: TrainingEvents, num_items: int, *, steps: int) -> sp.csr_array:
    """How often an item (column) came at most `steps` steps after another one (row): float32 [I, I].

    An occurrence after n steps counts 1 / n.
    """
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
    """1 where a user's events hold an item: float32 [U, I]."""
    ones = np.ones(len(items), np.float32)
    # A copy: removing duplicates works in place and would change the caller's offsets.
    matrix = sp.csr_array((ones, items, offsets), shape=(len(offsets) - 1, num_items), copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
