"""Simple recommenders for comparison, and the facts of the training events that all baselines are fitted on.

Legend: N requests, I items, E training events, U users, H width of a text vector. Every baseline has
`scores(requests)`: float [N, I], higher is better; a request without history gets defined scores too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.data.events import US, Requests, ranges
from ctxrec.data.prepared import PreparedData

WEEK_US = 7 * 86_400 * US
_ROWS_AT_ONCE = 1024  # of a matrix of pairs of items, worked on at a time


class Baseline(Protocol):
    """What the evaluation asks of a baseline."""

    def scores(self, requests: Requests) -> np.ndarray: ...


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


class Popularity:
    """The number of training events of an item; its logarithm, log(1 + n), where scores are added up."""

    def __init__(self, *, logarithm: bool = False) -> None:
        self.logarithm = logarithm

    def fit(self, log: LogStatistics) -> Popularity:
        self.counts = np.log1p(log.item_counts) if self.logarithm else log.item_counts.astype(np.float64)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        return np.broadcast_to(self.counts, (len(requests), len(self.counts)))


class RecentPopularity:
    """The number of training events of an item in the seven days before the request.

    Where the request comes after the end of the training events (a split by time), the window is the
    last seven days of those.
    """

    def fit(self, log: LogStatistics) -> RecentPopularity:
        self.times, self.items, self.num_items = log.times, log.items, len(log.item_counts)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        scores = np.zeros((len(requests), self.num_items), np.float32)
        if not len(self.times):
            return scores
        ends = np.minimum(requests.times, self.times[-1] + 1)
        first = np.searchsorted(self.times, ends - WEEK_US, side="left")
        stop = np.searchsorted(self.times, ends, side="left")
        # In order of time the window only moves forward: each event enters and leaves it once.
        counts = np.zeros(self.num_items, np.int64)
        entered = left = 0
        for n in np.argsort(ends, kind="stable"):
            counts += np.bincount(self.items[entered : stop[n]], minlength=self.num_items)
            counts -= np.bincount(self.items[left : first[n]], minlength=self.num_items)
            entered, left = stop[n], first[n]
            scores[n] = counts
        return scores


class Markov:
    """Markov chain over the last items of the history: how often the item followed each of them.

    The last item counts fully, one that is `age` items older `decay ** age`; with `last` = 1 this is the
    first-order chain. Most pairs were never seen; popularity, scaled to less than the smallest of these
    counts, orders the items of equal count.
    """

    def __init__(self, *, last: int = 1, decay: float = 0.7) -> None:
        self.last, self.decay = last, decay

    def fit(self, log: LogStatistics) -> Markov:
        self.transitions = log.transitions
        smallest = self.decay ** (self.last - 1)
        self.tie_breaks = smallest * log.item_counts / (log.item_counts.max(initial=0) + 1)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        lasts = last_items(requests, num=self.last, decay=self.decay, num_items=len(self.tie_breaks))
        return (lasts @ self.transitions).toarray() + self.tie_breaks


def last_items(requests: Requests, *, num: int, decay: float, num_items: int) -> sp.csr_array:
    """The last `num` items of each history with the weights 1, decay, decay², ...: float32 [N, I]."""
    history = requests.history
    starts = np.maximum(history.offsets[1:] - num, history.offsets[:-1])
    index, offsets = ranges(starts, history.offsets[1:])
    age = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(index))
    weights = (decay**age).astype(np.float32)
    return sp.csr_array((weights, history.items[index], offsets), shape=(len(requests), num_items))


class UntunedEncoder:
    """Content alone: cosine of an item's text vector to a decayed mean of the last items of the history.

    Vectors are centred first, because those of language models crowd in one direction. An item without
    text, and every item for a user without history, scores 0.
    """

    def __init__(self, *, last: int = 10, decay: float = 0.7) -> None:
        self.last, self.decay = last, decay

    def fit(self, vectors: np.ndarray, present: np.ndarray) -> UntunedEncoder:
        """Take text vectors [I, H] and whether each item has text [I]."""
        has_text = present.astype(bool)
        centred = np.zeros(vectors.shape, np.float32)
        if has_text.any():
            centred[has_text] = vectors[has_text] - vectors[has_text].mean(axis=0)
        self.vectors = _normalised(centred)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        lasts = last_items(requests, num=self.last, decay=self.decay, num_items=len(self.vectors))
        return _normalised(lasts @ self.vectors) @ self.vectors.T


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
