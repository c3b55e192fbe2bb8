"""Pairs of items that the same users have: EASE where it fits, cosines beyond, each worked out on full matrices."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.data.log_statistics import LogStatistics, TrainingEvents, gather_statistics, users_of_both
from ctxrec.memory.cooccurrence import CooccurrenceParams, largest_of_rows, pairs_of_users
from ctxrec.memory.ease import EASE

PARAMS = CooccurrenceParams()


def log_of(rows: list[list[int]], num_items: int) -> LogStatistics:
    lengths = [len(row) for row in rows]
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return gather_statistics([TrainingEvents(offsets, items, np.arange(len(items)))], num_items)


def popularity(log: LogStatistics) -> np.ndarray:
    values = np.log1p(log.item_counts)
    return ((values - values.mean()) / values.std()).astype(np.float32)


@pytest.fixture
def log():
    """60 users of 12 items, the first the most popular, one that nobody has; every other user has one of the last items twice."""
    rng = np.random.default_rng(0)
    chances = 0.7 / np.arange(1, 13)
    rows = [[i for i in range(12) if rng.random() < chances[i]] for _ in range(60)]
    return log_of([row + row[-1:] * (n % 2) for n, row in enumerate(rows)], 12)


def damped_ease(log: LogStatistics, items: np.ndarray) -> np.ndarray:
    small = log_of([np.searchsorted(items, np.intersect1d(row, items)).tolist() for row in _rows(log)], len(items))
    plain = EASE(weight=PARAMS.ridge).fit(users_of_both(small.users_items)).weights.clip(0)
    return plain * np.exp(-PARAMS.damping * popularity(log)[items])


def _rows(log: LogStatistics) -> list[np.ndarray]:
    matrix = log.users_items
    return [matrix.indices[a:b] for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]


def test_small_catalogues_have_ease_damped_towards_popular_items(log):
    found = pairs_of_users(log, popularity(log)).toarray()
    np.testing.assert_allclose(found, damped_ease(log, np.arange(12)), rtol=1e-5)
    plain = EASE(weight=PARAMS.ridge).fit(users_of_both(log.users_items)).weights.clip(0)
    assert found[1, 5] / found[1, 0] > plain[1, 5] / plain[1, 0] > 0


@pytest.mark.parametrize("cells", [1 << 22, 20])
def test_rare_items_have_cosines_on_the_scale_of_ease(log, cells):
    params = CooccurrenceParams(ease_items=5, cosines_at_once=cells)  # all items in one block, or one item a block
    found = pairs_of_users(log, popularity(log), params=params).toarray()
    frequent = np.sort(np.argsort(-log.item_counts, kind="stable")[:5])
    among = np.ix_(frequent, frequent)
    np.testing.assert_allclose(found[among], damped_ease(log, frequent), rtol=1e-5)

    counts = users_of_both(log.users_items)
    users = np.maximum(np.diagonal(counts), 1)
    cosines = counts / users[:, None] ** 0.5 / users**PARAMS.cosine_power
    np.fill_diagonal(cosines, 0)
    expected = cosines * found[among].sum() / cosines[among].sum()
    rest = np.ones((12, 12), bool)
    rest[among] = False
    np.testing.assert_allclose(found[rest], expected[rest], rtol=1e-4)
    assert found[rest].any() and not np.diagonal(found).any()


def test_few_neighbours_are_kept_of_many(log):
    counts = users_of_both(log.users_items)
    cosines = largest_of_rows(counts, params=CooccurrenceParams(max_pairs=24, min_neighbours=1))
    dense = cosines.toarray()
    assert (np.diff(cosines.indptr) <= 2).all()  # 24 pairs of 12 items
    np.testing.assert_array_equal(np.sort(dense, 1)[:, -2:], np.sort(counts, 1)[:, -2:])


@pytest.mark.parametrize("rows", [[], [[0], [3]]])
def test_logs_without_pairs_have_none(rows):
    log = log_of(rows, 4)
    found = pairs_of_users(log, np.zeros(4, np.float32), params=CooccurrenceParams(ease_items=2))
    assert not found.toarray().any()
