"""Greedy selection by score and likeness, and the diversity of a list, by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ctxrec.retrieval.slate.mmr import NO_VALUE, mean_distance, mean_set_distance, pick

# Items 0 and 1 are alike (cosine 0.8), 2 is like neither, 3 is the opposite of 0.
VECTORS = np.array([[[1.0, 0], [0.8, 0.6], [0, 1], [-1, 0]]], np.float32)
RELEVANCE = np.array([[1.0, 0.9, 0.5, 0.0]], np.float32)


def picked(strength: float, k: int = 4, **options) -> list[int]:
    return pick(RELEVANCE, VECTORS, np.array([strength], np.float32), k, **options)[0].tolist()


def test_without_strength_the_order_stays():
    assert picked(0) == [0, 1, 2, 3]


def test_mmr_by_hand():
    # After 0, at 1/2: 1 has (0.9 - 0.8) / 2 = 0.05, 2 has (0.5 - 0) / 2 = 0.25, 3 has (0 + 1) / 2 = 0.5.
    # After 0 and 3: 1 has 0.05 still (0.8 to 0), 2 has 0.25 (0 to both).
    assert picked(0.5) == [0, 3, 2, 1]
    # At 0.2: 1 has 0.72 - 0.16 = 0.56, 2 has 0.4, 3 has 0.2; then 2 has 0.4 - 0.2 * 0.6 = 0.28, 3 has 0.2.
    assert picked(0.2) == [0, 1, 2, 3]
    # At 0.3: 1 has 0.63 - 0.24 = 0.39, 2 has 0.35, 3 has 0.3; then 2 has 0.35 - 0.18 = 0.17, 3 has 0 + 0.3 = 0.3.
    assert picked(0.3) == [0, 1, 3, 2]
    assert picked(1)[:2] == [0, 3], "at 1 likeness alone counts"


def test_each_request_has_its_own_strength_and_number_of_candidates():
    relevance = np.concatenate([RELEVANCE, RELEVANCE, RELEVANCE])
    relevance[2, 2:] = -np.inf
    found = pick(relevance, np.repeat(VECTORS, 3, 0), np.array([0.5, 0, 1], np.float32), 4)
    assert found.tolist() == [[0, 3, 2, 1], [0, 1, 2, 3], [0, 1, -1, -1]]


def test_caps_count_every_value_of_an_item():
    codes = np.array([[[5, 7], [7, NO_VALUE], [5, NO_VALUE], [NO_VALUE, NO_VALUE]]])
    assert picked(0, caps=[(codes, 1)]) == [0, 3, -1, -1], "0 has both values; 3 has none, so that no cap holds it"
    assert picked(0, caps=[(codes, 2)]) == [0, 1, 2, 3]
    other = np.array([[[1], [2], [3], [1]]])
    assert picked(0, caps=[(codes, 2), (other, 1)]) == [0, 1, 2, -1]


def test_equal_relevance_keeps_the_order():
    found = pick(np.zeros((1, 4), np.float32), VECTORS, np.zeros(1, np.float32), 3)
    assert found.tolist() == [[0, 1, 2]]


def test_distances_against_every_pair():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10, 4))
    vectors[3] = 0
    unit = np.delete(vectors, 3, 0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = [1 - unit[a] @ unit[b] for a in range(9) for b in range(a)]
    assert mean_distance(vectors) == pytest.approx(np.mean(pairs))
    assert np.isnan(mean_distance(vectors[:1])) and np.isnan(mean_set_distance(np.array([[1]])))


@pytest.mark.parametrize("width", [64, 384])
def test_a_diverse_list_of_a_thousand_takes_little_cpu_time(width):
    """The longest list of the API, with and without the similarities of all pairs; CPU time of this thread alone."""
    rng = np.random.default_rng(0)
    relevance = -np.sort(-rng.random((4, 1000)).astype(np.float32))
    vectors = rng.normal(size=(4, 1000, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    pick(relevance[:1, :50], vectors[:1, :50], np.ones(1), 50)
    start = time.thread_time()
    picked = pick(relevance, vectors, np.full(4, 0.5), 1000)
    assert (time.thread_time() - start) / 4 < 0.15, "8 and 29 ms were measured; the goal is 50 ms on an idle machine"
    assert (np.sort(picked) == np.arange(1000)).all()
    short = pick(relevance, vectors, np.full(4, 0.5), 20)
    np.testing.assert_array_equal(short, picked[:, :20])
