"""Log-loss, AUC and reliability against what a plain loop says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxrec.metrics.probability_metrics import auc, log_losses, reliability, wilson_interval

pairs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans(), st.integers(1, 4)),
    min_size=1,
    max_size=30,
)


@given(pairs=pairs)
def test_auc_counts_pairs(pairs):
    values, happened, weights = (np.array(column) for column in zip(*pairs, strict=True))
    won = total = 0.0
    for v, h, w in pairs:
        for v2, h2, w2 in pairs:
            if h and not h2:
                total += w * w2
                won += w * w2 * (1.0 if v > v2 else 0.5 if v == v2 else 0.0)
    found = auc(values, happened, weights.astype(float))
    assert np.isnan(found) if not total else found == pytest.approx(won / total)


@given(pairs=pairs, num=st.integers(1, 6))
def test_bins_hold_every_pair_once_and_keep_the_means(pairs, num):
    values, happened, weights = (np.array(column) for column in zip(*pairs, strict=True))
    found = reliability(values, happened, weights.astype(float), by=weights.astype(float), num=num)
    assert len(found.weights_B) <= num and found.weights_B.sum() == weights.sum()
    assert (np.diff(found.predicted_B) > 0).all()
    for of_bins, of_pairs in ((found.predicted_B, values), (found.observed_B, happened)):
        assert np.average(of_bins, weights=found.weights_B) == pytest.approx(np.average(of_pairs, weights=weights))


def test_an_impossible_outcome_costs_much_and_not_infinitely():
    losses = log_losses(np.array([0.0, 1.0, 1.0]), np.array([True, True, False]))
    assert losses[1] == 0 and 20 < losses[0] < 40 and losses[2] == losses[0]


def test_the_interval_of_a_share_covers_it_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(40, 0.1, 5000) / 40
    low, high = wilson_interval(draws, np.full(5000, 40.0))
    assert 0.93 < ((low <= 0.1) & (high >= 0.1)).mean() < 0.98
