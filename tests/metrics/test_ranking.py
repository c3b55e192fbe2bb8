"""Metrics by hand-worked cases, and against a naive implementation that sorts everything."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from ctxrec.evaluation import comparison_table, systems
from ctxrec.evaluation.report import charts
from ctxrec.metrics import intervals, ranking


def naive_metrics(top: list[int], targets: set[int], k: int) -> dict[str, float]:
    hits = [rank for rank, item in enumerate(top[:k], start=1) if item in targets]
    reachable = min(k, len(targets))
    return {
        f"hr@{k}": float(bool(hits)),
        f"recall@{k}": len(hits) / reachable,
        f"mrr@{k}": 1 / hits[0] if hits else 0.0,
        f"ndcg@{k}": sum(1 / math.log2(p + 1) for p in hits) / sum(1 / math.log2(p + 2) for p in range(reachable)),
    }


def test_one_target_by_hand():
    # The target stands at rank 3: NDCG = 1 / log2(4) = 1/2, MRR = 1/3.
    found = ranking.request_metrics(np.array([[4, 8, 6, 2]]), np.array([0, 1]), np.array([6]), [2, 3])
    assert {name: value[0] for name, value in found.items()} == {
        "hr@2": 0, "recall@2": 0, "mrr@2": 0, "ndcg@2": 0,
        "hr@3": 1, "recall@3": 1, "mrr@3": pytest.approx(1 / 3), "ndcg@3": pytest.approx(0.5),
    }  # fmt: skip


def test_several_targets_by_hand():
    # Targets {1, 5, 9}; hits at ranks 1 and 3 of 3. DCG = 1 + 1/2; ideal of min(3, 3) hits = 1 + 0.63093 + 0.5.
    found = ranking.request_metrics(np.array([[5, 0, 1]]), np.array([0, 3]), np.array([1, 5, 9]), [3, 2])
    assert found["ndcg@3"][0] == pytest.approx(1.5 / 2.1309297536)
    assert found["recall@3"][0] == pytest.approx(2 / 3)
    assert found["mrr@3"][0] == 1
    # More targets than places: at k = 2 the ideal has two hits, 1 + 0.63093, and recall is over 2.
    assert found["ndcg@2"][0] == pytest.approx(1 / 1.6309297536)
    assert found["recall@2"][0] == 0.5


def test_short_lists_are_no_hits():
    # One eligible item only; -1 is no item, and the missing places count as misses.
    found = ranking.request_metrics(np.array([[3, -1, -1]]), np.array([0, 2]), np.array([0, 3]), [3])
    assert found["recall@3"][0] == 0.5
    found = ranking.request_metrics(np.array([[-1, -1, -1]]), np.array([0, 1]), np.array([0]), [3])
    assert found["hr@3"][0] == found["ndcg@3"][0] == found["mrr@3"][0] == 0


@pytest.mark.parametrize("seed", range(20))
def test_against_the_naive_implementation(seed):
    rng = np.random.default_rng(seed)
    num_rows, num_items, k = 40, int(rng.integers(1, 60)), int(rng.integers(1, 30))
    lists = [rng.permutation(num_items)[: rng.integers(0, k + 1)].tolist() for _ in range(num_rows)]
    top = np.array([row + [-1] * (k - len(row)) for row in lists])
    targets = [rng.permutation(num_items)[: rng.integers(1, num_items + 1)] for _ in range(num_rows)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in targets])])
    found = ranking.request_metrics(top, offsets, np.concatenate(targets), [1, k])
    for n in range(num_rows):
        for cut in (1, k):
            for name, value in naive_metrics(lists[n], set(targets[n].tolist()), cut).items():
                assert found[name][n] == pytest.approx(value), (name, n)


def test_bootstrap_interval_has_the_known_width():
    # Standard error of a mean of 400 values of variance 1 is 0.05, so 95 % lie within 1.96 * 0.05 of the mean.
    values = np.random.default_rng(0).standard_normal((400, 1))
    values = (values - values.mean()) / values.std()
    resampled = intervals.bootstrap_means(values, num=4000, seed=1)
    interval = intervals.percentile_interval(0.0, resampled[:, 0])
    assert interval["low"] == pytest.approx(-0.098, abs=0.006)
    assert interval["high"] == pytest.approx(0.098, abs=0.006)


def test_bootstrap_is_repeatable_paired_and_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(0).random((50, 2))
    values[:, 1] = values[:, 0] + 0.25
    whole = intervals.bootstrap_means(values, num=300, seed=3)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 120)  # two resamples at a time
    np.testing.assert_allclose(intervals.bootstrap_means(values, num=300, seed=3), whole)
    np.testing.assert_allclose(whole[:, 1] - whole[:, 0], 0.25)
    assert not np.allclose(intervals.bootstrap_means(values, num=300, seed=4), whole)


def test_coverage_gini_and_popularity_by_hand():
    # Five items, the last not eligible. Shown: item 0 twice, item 1 once, item 2 once -> coverage 3/4.
    # Sorted counts 0 1 1 2: Gini = sum((2i - 5) x_i) / (4 * 4) = (-3*0 - 1*1 + 1*1 + 3*2) / 16 = 6/16.
    top = np.array([[0, 1, -1], [0, 2, -1]])
    eligible = np.array([True, True, True, True, False])
    found = ranking.list_metrics(top, eligible, 2)
    assert found["coverage@2"]["mean"] == 0.75
    assert found["gini@2"]["mean"] == pytest.approx(6 / 16)
    for value in found.values():
        assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
    assert ranking.list_popularity(top, np.array([10, 4, 0, 7, 9]), 3).tolist() == [7.0, 5.0]


def test_all_equal_lists_cover_k_items_and_equal_use_has_gini_zero():
    found = ranking.list_metrics(np.array([[1, 2]] * 5), np.ones(4, bool), 2)
    assert found["coverage@2"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert ranking.list_metrics(np.array([[0, 1], [2, 3]]), np.ones(4, bool), 2)["gini@2"]["mean"] == 0


def test_jackknife_of_gini_agrees_with_leaving_out_each_request():
    top = np.array([[0, 1, 2], [0, 3, 4], [0, 1, 5], [6, 7, 0], [2, 0, 9]])
    eligible = np.ones(12, bool)

    def gini(lists: np.ndarray) -> float:
        counts = np.sort(np.bincount(lists.ravel(), minlength=12))
        return float((2 * np.arange(1, 13) - 13) @ counts / (12 * counts.sum()))

    left_out = np.array([gini(np.delete(top, n, axis=0)) for n in range(5)])
    error = 1.959964 * np.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    found = ranking.list_metrics(top, eligible, 3)["gini@3"]
    assert found["mean"] == pytest.approx(gini(top))
    assert found["high"] - found["mean"] == pytest.approx(error, rel=0.35)  # ties of counts make it approximate


@pytest.mark.parametrize("module", [ranking, intervals, systems, comparison_table, charts])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
