"""Classical recommenders for comparison, fitted on the training events of the same split (numpy and scipy).

Legend: N requests, I items, E training events, H width of a text vector. Every baseline has
`scores(requests)`: float [N, I], higher is better; a request without history gets defined scores too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg.lapack
import scipy.sparse as sp

from ctxrec.events import US, Requests
from ctxrec.metrics import top_k

WEEK_US = 7 * 86_400 * US
MARKOV, TEXT = "markov", "untuned_encoder"


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


@dataclass(frozen=True)
class LogStatistics:
    """What the baselines need of the training events, gathered in one pass over the buckets."""

    item_counts: np.ndarray  # int64 [I] events of each item
    times: np.ndarray  # int64 [E] microseconds, sorted
    items: np.ndarray  # int32 [E] in the order of times
    transitions: sp.csr_array  # float32 [I, I] how often a user's item was followed by another
    together: np.ndarray | None  # float64 [I, I] users who had both items; None when left out


def gather_statistics(parts: Iterable[TrainingEvents], num_items: int, *, matrices: bool) -> LogStatistics:
    """Count items, transitions and, with `matrices`, pairs of items of the same user."""
    counts = np.zeros(num_items, np.int64)
    transitions = sp.csr_array((num_items, num_items), dtype=np.float32)
    together = np.zeros((num_items, num_items)) if matrices else None
    times, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for part in parts:
        counts += np.bincount(part.items, minlength=num_items)
        transitions = transitions + _transitions(part, num_items)
        if together is not None:
            users = _history_matrix(part.offsets, part.items, num_items).astype(np.float64)
            pairs = (users.T @ users).tocoo()
            together[pairs.row, pairs.col] += pairs.data
        times.append(part.times)
        items.append(part.items)
    all_times = np.concatenate(times)
    order = np.argsort(all_times, kind="stable")
    return LogStatistics(
        item_counts=counts,
        times=all_times[order],
        items=np.concatenate(items)[order],
        transitions=transitions,
        together=together,
    )


def _transitions(part: TrainingEvents, num_items: int) -> sp.csr_array:
    lengths = np.diff(part.offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    inside = user[1:] == user[:-1]
    before, after = part.items[:-1][inside], part.items[1:][inside]
    ones = np.ones(len(before), np.float32)
    return sp.coo_array((ones, (before, after)), shape=(num_items, num_items)).tocsr()


def _history_matrix(offsets: np.ndarray, items: np.ndarray, num_items: int) -> sp.csr_array:
    """Binary users-by-items matrix, float32."""
    ones = np.ones(len(items), np.float32)
    # A copy: removing duplicates works in place and would change the caller's offsets.
    matrix = sp.csr_array((ones, items, offsets), shape=(len(offsets) - 1, num_items), copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


class Popularity:
    """The number of training events of an item."""

    def fit(self, log: LogStatistics) -> Popularity:
        self.counts = log.item_counts.astype(np.float64)
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
    """First-order Markov chain: how often the item followed the last item of the history.

    Most pairs were never seen; popularity, scaled to less than one count, orders the items of equal count.
    """

    def fit(self, log: LogStatistics) -> Markov:
        self.transitions = log.transitions
        self.tie_breaks = log.item_counts / (log.item_counts.max(initial=0) + 1)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        scores = np.tile(self.tie_breaks, (len(requests), 1))
        known = np.flatnonzero(requests.history.lengths)
        last = requests.history.items[requests.history.offsets[known + 1] - 1]
        scores[known] += self.transitions[last].toarray()
        return scores


class ItemKNN:
    """Item-based nearest neighbours: cosine of the users-by-items matrix (Sarwar et al., 2001).

    Each item keeps its `neighbours` most similar ones; an item's score is the sum of its similarities
    to the history.
    """

    def __init__(self, *, neighbours: int) -> None:
        self.neighbours = neighbours

    def fit(self, log: LogStatistics) -> ItemKNN:
        assert log.together is not None
        num_items = len(log.item_counts)
        norms = np.sqrt(np.maximum(np.diagonal(log.together), 1))
        rows, columns, values = [], [], []
        for start in range(0, num_items, 1024):
            stop = min(start + 1024, num_items)
            block = log.together[start:stop] / norms[start:stop, None] / norms
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            nearest = top_k(block, min(self.neighbours, num_items))
            similarity = np.take_along_axis(block, nearest, axis=1)
            row, place = np.nonzero(similarity)
            rows.append(row + start)
            columns.append(nearest[row, place])
            values.append(similarity[row, place].astype(np.float32))
        self.similarity = sp.coo_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(num_items, num_items)
        ).tocsr()
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        history = _history_matrix(requests.history.offsets, requests.history.items, self.similarity.shape[0])
        return (history @ self.similarity).toarray()


class EASE:
    """Embarrassingly shallow autoencoder in closed form (Steck, 2019, https://arxiv.org/abs/1905.03375).

    With the matrix G of items had by the same user and P = (G + weight·1)^-1, the item-to-item weights
    are B = -P / diag(P) with a zero diagonal; scores are the history times B.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def fit(self, log: LogStatistics) -> EASE:
        assert log.together is not None
        matrix = log.together + self.weight * np.eye(len(log.item_counts))
        # Inverse by Cholesky, in place: half the time and a third of the memory of the general one.
        factor, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=True, overwrite_a=True)
        assert failed == 0, "G + weight·1 is positive definite"
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)
        assert failed == 0
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = (-inverse / np.diagonal(inverse)).astype(np.float32)
        np.fill_diagonal(weights, 0)
        self.weights = weights
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        history = _history_matrix(requests.history.offsets, requests.history.items, len(self.weights))
        return history @ self.weights


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
        history = requests.history
        queries = np.zeros((len(requests), self.vectors.shape[1]), np.float32)
        for age in range(self.last):
            has = np.flatnonzero(history.lengths > age)
            queries[has] += self.decay**age * self.vectors[history.items[history.offsets[has + 1] - 1 - age]]
        return _normalised(queries) @ self.vectors.T


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fit_baselines(log: LogStatistics, *, neighbours: int, ease_weight: float) -> dict[str, Baseline]:
    """Every baseline that the statistics allow; those on a matrix of items only when it was gathered."""
    fitted: dict[str, Baseline] = {
        "popularity": Popularity().fit(log),
        "popularity_7d": RecentPopularity().fit(log),
        MARKOV: Markov().fit(log),
    }
    if log.together is not None:
        fitted["itemknn"] = ItemKNN(neighbours=neighbours).fit(log)
        fitted["ease"] = EASE(weight=ease_weight).fit(log)
    return fitted
