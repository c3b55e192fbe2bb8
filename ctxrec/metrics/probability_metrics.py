"""How good probabilities are: log-loss, AUC, calibration error and the bins of a reliability diagram.

A pair may stand for several pairs like it: its weight says for how many.

Legend: P pairs of a request and an item, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NORMAL_95 = 1.959964  # two-sided 95 % point of the normal distribution
_LEAST = 1e-12  # probability of what a log-loss counts as impossible


def log_losses(probabilities: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the probability of what came, in nats: float64 [P].

    Args:
        probabilities: float [P], that it happens.
        happened: bool [P].

    >>> log_losses(np.array([0.5, 0.25]), np.array([True, False])).round(4).tolist()
    [0.6931, 0.2877]
    """
    of_outcome = np.where(happened, probabilities, 1 - probabilities.astype(np.float64))
    return -np.log(np.clip(of_outcome, _LEAST, 1))


def auc(values: np.ndarray, happened: np.ndarray, weights: np.ndarray) -> float:
    """The chance that a pair where it happened has a higher value than one where it did not; ties count a half.

    It is the statistic of Mann and Whitney (1947), and the area under the ROC curve (Hanley and McNeil, 1982). NaN where
    all pairs have one outcome.

    Args:
        values: float [P].
        happened: bool [P].
        weights: float [P].

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]), np.ones(4))
    0.875
    """
    _, place = np.unique(values, return_inverse=True)
    with_it = np.bincount(place, weights * happened)
    without = np.bincount(place, weights * ~happened)
    total = with_it.sum() * without.sum()
    if not total:
        return float("nan")
    return float((with_it * (np.cumsum(without) - without / 2)).sum() / total)


@dataclass(frozen=True)
class Bins:
    """Pairs of like probability together: each bin has about the same sum of weights.

    predicted_B: float64, mean probability. observed_B: float64, share in which it happened. weights_B: float64, pairs.
    """

    predicted_B: np.ndarray
    observed_B: np.ndarray
    weights_B: np.ndarray

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean distance of prediction and share (Naeini, Cooper and Hauskrecht, 2015)."""
        return float(np.average(np.abs(self.predicted_B - self.observed_B), weights=self.weights_B))


def reliability(
    probabilities: np.ndarray, happened: np.ndarray, weights: np.ndarray, *, by: np.ndarray, num: int
) -> Bins:
    """The bins of a reliability diagram, in order of the probability; pairs of one probability share a bin.

    Args:
        probabilities: float [P].
        happened: bool [P].
        weights: float [P].
        by: float [P], what each bin has about the same sum of.
        num: number of bins, at most.

    >>> found = reliability(np.array([0.1, 0.1, 0.9]), np.array([False, True, True]), np.ones(3), by=np.ones(3), num=2)
    >>> found.predicted_B.tolist(), found.observed_B.tolist(), round(found.expected_error, 4)
    ([0.1, 0.9], [0.5, 1.0], 0.3)
    """
    place = np.unique(probabilities, return_inverse=True)[1]
    share = np.cumsum(np.bincount(place, by))
    bin_of_value = np.minimum((share - np.bincount(place, by) / 2) / share[-1] * num, num - 1).astype(np.int64)
    _, bin_of_value = np.unique(bin_of_value, return_inverse=True)
    bins = bin_of_value[place]
    totals = np.bincount(bins, weights)
    return Bins(
        predicted_B=np.bincount(bins, weights * probabilities) / totals,
        observed_B=np.bincount(bins, weights * happened) / totals,
        weights_B=totals,
    )


def wilson_interval(shares: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of shares, each of so many: two float64 arrays (Wilson, 1927).

    >>> [end.round(3).tolist() for end in wilson_interval(np.array([0.5]), np.array([10.0]))]
    [[0.237], [0.763]]
    """
    z2 = _NORMAL_95**2
    middle = (shares + z2 / (2 * counts)) / (1 + z2 / counts)
    half = _NORMAL_95 / (1 + z2 / counts) * np.sqrt(shares * (1 - shares) / counts + z2 / (4 * counts**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)
