"""Whether two arms of a test differ: ratios of sums over users, their differences, and the sizes of the arms.

Users are what is drawn into an arm, so users are what varies: lists and events of one user depend on each other, and
a test that took them for independent would see differences where there are none.

Legend: U users of an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

_CONFIDENCE = 0.975  # quantile of two-sided 95 % intervals


@dataclass(frozen=True)
class Ratio:
    """An estimate sum(x) / sum(n) over users.

    variance: of the estimate; NaN for fewer than two users.
    """

    value: float
    variance: float
    num_users: int


def ratio(x_U: np.ndarray, n_U: np.ndarray) -> Ratio:
    """Sum of x over sum of n, with its variance by the delta method (Deng, Knoblich and Lu, "Applying the Delta Method
    in Metric Analytics", KDD 2018): that of the mean of x - value * n, over the squared mean of n. With n = 1 it is the
    mean of x and the variance of the mean."""
    num = len(x_U)
    total = float(n_U.sum())
    if num == 0 or total == 0:
        return Ratio(float("nan"), float("nan"), num)
    value = float(x_U.sum()) / total
    rest = x_U - value * n_U
    variance = float(rest.var(ddof=1)) / num / (total / num) ** 2 if num > 1 else float("nan")
    return Ratio(value, variance, num)


@dataclass(frozen=True)
class Comparison:
    """Treatment against control. lift: of the value, relative to the control's, with its 95 % interval; p: two-sided,
    of the difference."""

    lift: float
    low: float
    high: float
    p: float


def compare(treatment: Ratio, control: Ratio) -> Comparison:
    """Welch's test of the difference (Welch, 1947), and the interval of the relative lift by the delta method: with
    r = treatment / control, var(r) = r^2 (var_t / treatment^2 + var_c / control^2). NaN for what cannot be told."""
    t, c = treatment, control
    spread = t.variance + c.variance
    if not spread > 0:
        nothing = float("nan")
        return Comparison(t.value / c.value - 1 if c.value else nothing, nothing, nothing, nothing)
    freedom = spread**2 / (t.variance**2 / (t.num_users - 1) + c.variance**2 / (c.num_users - 1))
    p = 2 * float(scipy.stats.t.sf(abs(t.value - c.value) / np.sqrt(spread), freedom))
    if c.value == 0:
        return Comparison(float("nan"), float("nan"), float("nan"), p)
    r = t.value / c.value
    if t.variance == 0 or c.variance == 0:  # as when nobody did it: its users say nothing of how much they vary
        return Comparison(r - 1, float("nan"), float("nan"), p)
    error = np.sqrt(t.variance + r**2 * c.variance) / abs(c.value)  # the formula above without division by t.value
    wide = float(scipy.stats.t.ppf(_CONFIDENCE, freedom) * error)
    return Comparison(r - 1, r - 1 - wide, r - 1 + wide, p)


def sample_ratio_p(num_users: Sequence[int], shares: Sequence[float]) -> float:
    """P-value of arms having these sizes by chance when users were drawn with these shares (chi-square, Fabijan et al.,
    "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019). Below 0.001 something is wrong with
    the test, and its results mean nothing."""
    expected = np.asarray(shares) / np.sum(shares) * np.sum(num_users)
    return float(scipy.stats.chisquare(num_users, expected).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values of several comparisons, each raised so that the chance of any false one stays as it says (Holm, 1979);
    NaN stays.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = [n for n in np.argsort(ps, kind="stable").tolist() if not np.isnan(ps[n])]
    made, highest = [float("nan")] * len(ps), 0.0
    for rank, n in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[n]))
        made[n] = highest
    return made
