"""Intervals of means by bootstrap and jackknife, and p-values of paired differences.

Legend: N requests, M metrics (or columns).
"""

from __future__ import annotations

import numpy as np

Interval = dict[str, float]  # "mean", "low" and "high"; that of a paired difference also has "p"

_DRAWS_AT_ONCE = 1 << 23  # 64 MB of resampled row numbers in memory at a time
_NORMAL_95 = 1.959964  # two-sided 95 % point of the normal distribution


def bootstrap_means(values: np.ndarray, *, num: int, seed: int) -> np.ndarray:
    """Means of `num` resamples of the rows, with replacement (Efron, 1979).

    All columns see the same resamples, so differences of columns are paired. Resamples are made a
    few at a time: memory does not grow with `num` times the number of rows.

    Args:
        values: float [N, M], N at least 1.
        num: number of resamples.
        seed: makes the resamples repeatable.

    Returns:
        float64 [num, M].
    """
    num_rows = len(values)
    assert num_rows >= 1
    rng = np.random.default_rng(seed)
    means = np.empty((num, values.shape[1]))
    at_once = max(1, _DRAWS_AT_ONCE // num_rows)
    for start in range(0, num, at_once):
        size = min(at_once, num - start)
        draws = rng.integers(num_rows, size=(size, num_rows)) + np.arange(size)[:, None] * num_rows
        counts = np.bincount(draws.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        means[start : start + size] = counts.astype(np.float64) @ values / num_rows
    return means


def percentile_interval(mean: float, resampled: np.ndarray) -> Interval:
    """The mean with the central 95 % of the resampled means.

    It is the percentile interval of Efron and Tibshirani (1993).
    """
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference from its resampled means: twice the smaller share beyond 0.

    It is at least 1 / the number of resamples, because these can tell no less.

    >>> bootstrap_p(np.array([0.1, 0.2, 0.3, -0.1]))
    0.5

    See Efron and Tibshirani (1993).
    """
    num = len(differences)
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / num)))


def jackknife_interval(value: float, left_out: np.ndarray) -> Interval:
    """The interval of a share from its values with one request left out each time (Efron and Stein, 1981).

    Args:
        value: the share of all requests.
        left_out: float [N], the share without each request.
    """
    num = len(left_out)
    error = _NORMAL_95 * float(np.sqrt((num - 1) / num * ((left_out - left_out.mean()) ** 2).sum()))
    return {"mean": value, "low": max(0.0, value - error), "high": min(1.0, value + error)}
