"""Pairs of items that the same users have: EASE where it fits, cosines beyond, each worked out on full matrices."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.data.log_statistics import LogStatistics, TrainingEvents, gather_statistics, users_of_both
from ctxrec.memory.cooccurrence import CooccurrenceParams, largest_of_rows, pairs_of_users
from ctxrec.memory.ease import EASE
from ctxrec.memory.text_prior import TextPrior

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


def damped_cosines(log: LogStatistics) -> np.ndarray:
    counts = users_of_both(log.users_items)
    users = np.maximum(np.diagonal(counts), 1)
    cosines = counts / users[:, None] ** 0.5 / users**PARAMS.cosine_power
    np.fill_diagonal(cosines, 0)
    return cosines


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

    cosines = damped_cosines(log)
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


@pytest.fixture
def texts():
    """Text vectors of 12 items of unit length; the last one has no text."""
    rng = np.random.default_rng(1)
    text = rng.normal(size=(12, 5))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text[-1] = 0
    return text.astype(np.float32)


def ease_of_texts(texts: np.ndarray, ridge: float) -> np.ndarray:
    """The same as `TextPrior`, from the inverse of the matrix of all pairs of items."""
    inverse = np.linalg.inv(texts.astype(np.float64) @ texts.T + ridge * np.eye(len(texts)))
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def test_the_prior_is_ease_of_the_texts(texts):
    prior, everything = TextPrior.of(texts, ridge=2.0), np.arange(12)
    expected = ease_of_texts(texts, 2.0)
    np.testing.assert_allclose(prior.rows(everything, everything), expected, atol=1e-6)
    some = np.array([7, 2])
    np.testing.assert_allclose(prior.rows(some, np.array([1, 2, 9])), expected[some][:, [1, 2, 9]], atol=1e-6)
    np.testing.assert_allclose(prior.take(some).rows(np.array([0]), np.array([1])), expected[7, 2], atol=1e-6)


@pytest.mark.parametrize("pull", [0.0, 2.0, 5.0])
def test_ease_with_a_prior_is_the_least_squares_solution_of_each_column(log, texts, pull):
    """Each column is solved by itself, without the item's own row: that is what a zero diagonal means."""
    weight, users_UI = 5.0, log.users_items.toarray().astype(np.float64)
    found = EASE(weight=weight, pull=pull).fit(users_of_both(log.users_items), TextPrior.of(texts, ridge=2.0)).weights
    prior = ease_of_texts(texts, 2.0)
    for item in range(12):
        rest = np.arange(12) != item
        penalised = users_UI[:, rest].T @ users_UI[:, rest] + weight * np.eye(11)
        wanted = users_UI[:, rest].T @ users_UI[:, item] + pull * prior[rest, item]
        np.testing.assert_allclose(found[rest, item], np.linalg.solve(penalised, wanted), atol=1e-5)
    assert not np.diagonal(found).any()
    if not pull:
        plain = EASE(weight=weight).fit(users_of_both(log.users_items)).weights
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_texts_decide_where_the_log_is_silent():
    """Items 0 to 3 are of one kind by their texts and 4 to 7 of another. Nobody has 1 and 3 together, or 1 and 7."""
    text = np.zeros((8, 2), np.float32)
    text[:4, 0], text[4:, 1] = 1, 1
    log = log_of([[0, 1], [2, 3], [4, 5], [6, 7]] * 20, 8)
    flat = np.zeros(8, np.float32)
    plain, found = pairs_of_users(log, flat).toarray(), pairs_of_users(log, flat, text).toarray()
    assert plain[1, 3] == plain[1, 7] == 0
    assert found[1, 3] > 0 and found[1, 7] == 0
    assert found[1, 0] > found[1, 3], "what the log says counts more"


@pytest.mark.parametrize("max_text_pairs", [1 << 34, 10])
def test_rare_items_are_pulled_by_their_texts_too(log, texts, max_text_pairs):
    """By one step of the closed form; beyond the limit, towards the frequent items alone."""
    params = CooccurrenceParams(ease_items=5, cosines_at_once=30, max_text_pairs=max_text_pairs)
    found = pairs_of_users(log, popularity(log), texts, params=params).toarray()
    users = log.users_items.toarray().sum(0)
    prior = ease_of_texts(texts, params.text_ridge).clip(0)
    pull = params.text_share * params.ridge * prior / (users[:, None] + params.ridge)
    pull *= np.exp(-params.damping * popularity(log))
    frequent = np.isin(np.arange(12), np.argsort(-log.item_counts, kind="stable")[:5])
    if max_text_pairs == 10:
        pull[:, ~frequent] = 0
    among = np.outer(frequent, frequent)
    cosines = damped_cosines(log)
    expected = pull + cosines * found[among].sum() / cosines[among].sum()
    np.testing.assert_allclose(found[~among], expected[~among], rtol=1e-4, atol=1e-8)
    assert pull[~among].max() > 0
