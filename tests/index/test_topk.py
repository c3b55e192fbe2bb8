"""Top-k by hand-worked cases, and against a naive implementation that sorts everything."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from ctxrec.core.errors import UserError
from ctxrec.index import topk
from ctxrec.index.topk import NO_ITEM, scores_of, top_k


def naive_top_k(scores: np.ndarray, k: int, excluded: list[np.ndarray]) -> list[list[int]]:
    lists = []
    for row, out in zip(scores.tolist(), excluded, strict=True):
        allowed = [i for i in range(len(row)) if i not in set(out.tolist()) and row[i] > -math.inf]
        lists.append(sorted(allowed, key=lambda i, row=row: (-row[i], i))[:k])
    return lists


def test_ties_go_to_the_first_item_of_the_catalogue():
    scores = np.zeros((1, 50))
    scores[0, [10, 30, 40]] = 1
    assert top_k(scores, 5).tolist() == [[10, 30, 40, 0, 1]]
    assert top_k(scores, 5, [np.array([0, 10])]).tolist() == [[30, 40, 1, 2, 3]]


def test_one_row_by_hand():
    scores = np.array([[2.0, -np.inf, 5.0, 2.0, 2.0, 1.0]])
    assert top_k(scores, 3).tolist() == [[2, 0, 3]]
    assert top_k(scores, 7).tolist() == [[2, 0, 3, 4, 5, -1, -1]], "-inf is not eligible"
    assert top_k(np.zeros((1, 0)), 3).tolist() == [[-1, -1, -1]]
    assert scores_of(scores, top_k(scores, 7)).tolist() == [[5, 2, 2, 2, 1, -np.inf, -np.inf]]


def test_excluded_items_never_come_and_short_rows_end_in_no_item():
    scores = np.array([[3.0, 2.0, 1.0], [1.0, -np.inf, 2.0]])
    assert top_k(scores, 3, [np.array([0, 1, 1]), np.array([], int)]).tolist() == [[2, -1, -1], [2, 0, -1]]
    assert top_k(scores, 7).tolist() == [[0, 1, 2, -1, -1, -1, -1], [2, 0, -1, -1, -1, -1, -1]]
    assert top_k(np.zeros((0, 3)), 2).shape == (0, 2)
    assert scores[0, 0] == 3.0, "the caller's scores stay as they are"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("num_items", [2, 5000])
@pytest.mark.parametrize("excluded", [None, [np.array([1]), np.array([1])]])
def test_scores_that_are_no_numbers_are_refused(bad, num_items, excluded):
    scores = np.ones((2, num_items))
    scores[1, 1] = bad
    with pytest.raises(UserError, match="1 of 2 requests have scores that are NaN or infinite; expected finite"):
        top_k(scores, 1, excluded)


@pytest.mark.parametrize("seed", range(20))
def test_against_the_naive_implementation(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    num_rows, num_items, k = 40, int(rng.integers(1, 60)), int(rng.integers(1, 30))
    monkeypatch.setattr(topk, "_COPIED_AT_ONCE", int(rng.integers(1, 100)))
    # Few distinct values, so that ties at the border of the list are the rule.
    scores = rng.integers(0, rng.integers(1, 8), size=(num_rows, num_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    excluded = [rng.integers(num_items, size=rng.integers(0, num_items + 1)) for _ in range(num_rows)]
    top = top_k(scores, k, excluded)
    assert [[i for i in row if i >= 0] for row in top.tolist()] == naive_top_k(scores, k, excluded)


@pytest.mark.parametrize("num_columns", [1, 5, 64, 1000, 1291])
@pytest.mark.parametrize("width", [1, 3, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selection_by_blocks_equals_a_full_sort(num_columns, width, dtype):
    """With distinct scores, many equal ones, and rows that have fewer scores than are asked for."""
    rng = np.random.default_rng(num_columns + width)
    scores = rng.normal(size=(9, num_columns)).astype(dtype)
    scores[3:6] = rng.integers(0, 4, (3, num_columns))
    scores[6] = 1.5
    scores[7, width // 2 :] = -np.inf
    scores[8] = -np.inf
    best = top_k(scores, width)
    found = scores_of(scores, best)
    for n in range(9):
        wanted = [c for c in np.lexsort((np.arange(num_columns), -scores[n])) if scores[n, c] > -np.inf][:width]
        padding = width - len(wanted)
        assert best[n].tolist() == [*wanted, *[NO_ITEM] * padding]
        assert found[n].tolist() == [*scores[n, wanted].tolist(), *[-np.inf] * padding]


def test_the_examples_in_the_docstring():
    assert doctest.testmod(topk).attempted >= 2 and not doctest.testmod(topk).failed
