"""Evidence of a change: what it promises is summed exactly over all that can happen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from ctxrec.metrics.sequential import log_evidence_above, log_evidence_of_rise


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("fall", [0.0, 0.1])
def test_its_mean_is_at_most_one_without_a_rise(share, fall):
    before, after = 12, 9
    mean = sum(
        binom.pmf(b, before, share) * binom.pmf(a, after, max(share - fall, 0.0))
        * math.exp(log_evidence_of_rise(a, after, b, before))
        for b in range(before + 1) for a in range(after + 1)
    )  # fmt: skip
    assert mean <= 1 + 1e-9
    alone = sum(binom.pmf(a, after, share) * math.exp(log_evidence_above(a, after, share)) for a in range(after + 1))
    assert 0.1 < alone <= 1 + 1e-9


def reached(share: float, before: int, longest: int, level: float) -> float:
    """The chance that the evidence ever exceeds a level while observations come one after another: exact."""
    total = 0.0
    for b in range(before + 1):
        chances, out = np.array([1.0]), 0.0
        for n in range(1, longest + 1):
            chances = np.append(chances * (1 - share), 0.0) + np.insert(chances * share, 0, 0.0)
            over = np.array([log_evidence_of_rise(a, n, b, before) > level for a in range(n + 1)])
            out += chances[over].sum()
            chances[over] = 0.0
        total += binom.pmf(b, before, share) * out
    return total


def test_looking_after_every_observation_keeps_the_promise():
    share, before, longest = 0.2, 15, 40
    level = math.log(1 / 0.05)
    assert 0 < reached(share, before, longest, level) <= 0.05
    # A rise of the share is found: the chance is that of most cases, by the same sum.
    assert reached(share, before, longest, 0.0) > reached(share, before, longest, level)


def test_cases_by_hand():
    # One of one against none of one. Mixtures: B(3/2, 1/2) / B(1/2, 1/2) = 1/2 each; with one share for both, at most 1/4.
    assert log_evidence_of_rise(1, 1, 0, 1) == pytest.approx(math.log(0.5 * 0.5 / 0.25))
    # No rise: the two sequences may have shares of their own, and the mixtures lose against these.
    assert log_evidence_of_rise(0, 1, 1, 1) == pytest.approx(math.log(0.5 * 0.5))
    assert log_evidence_of_rise(0, 0, 0, 0) == 0.0
    assert log_evidence_above(1, 1, 0.1) == pytest.approx(math.log(0.5 / 0.1))
    assert log_evidence_above(0, 1, 0.1) == pytest.approx(math.log(0.5))
