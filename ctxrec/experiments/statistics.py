"""Statistics of an A/B test: ratios of sums over users, their differences, and the sizes of the arms.

Users are drawn into arms, so the user is the unit of observation. Lists and events of one user depend on each other; a
test that treated them as independent would find differences where there are none.

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

    Attributes:
        value: the estimate.
        variance: the variance of the estimate; NaN for fewer than two users.
        num_users: number of users.
    """

    value: float
    variance: float
    num_users: int


def ratio(x_U: np.ndarray, n_U: np.ndarray) -> Ratio:
    """Sum of x over sum of n, with its variance by the delta method.

    The variance is that of the mean of x - value * n, over the squared mean of n (Deng, Knoblich and Lu, "Applying the
    Delta Method in Metric Analytics", KDD 2018). With n = 1 the ratio is the mean of x, with the variance of that mean.

    Args:
        x_U: float, the numerator of each user.
        n_U: float, the denominator of each user.
    """
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
    """Treatment against control.

    Attributes:
        lift: treatment over control, minus 1.
        low, high: 95 % interval of the lift.
        p: two-sided p-value of the difference.
    """

    lift: float
    low: float
    high: float
    p: float


def compare(treatment: Ratio, control: Ratio) -> Comparison:
    """Welch's test of the difference (Welch, 1947), and the interval of the lift by the delta method.

    With r = treatment / control, var(r) = r^2 (var_t / treatment^2 + var_c / control^2). A figure that the data cannot
    tell is NaN, such as the lift over a control of 0.
    """
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
    if t.variance == 0 or c.variance == 0:  # such as an action that no user did: the variance cannot be estimated
        return Comparison(r - 1, float("nan"), float("nan"), p)
    error = np.sqrt(t.variance + r**2 * c.variance) / abs(c.value)  # the formula above without division by t.value
    wide = float(scipy.stats.t.ppf(_CONFIDENCE, freedom) * error)
    return Comparison(r - 1, r - 1 - wide, r - 1 + wide, p)


def sample_ratio_p(num_users: Sequence[int], shares: Sequence[float]) -> float:
    """P-value of the sizes of the arms if users are drawn with these shares, by a chi-square test.

    Below 0.001 the test is broken and its results must not be used (Fabijan et al., "Diagnosing Sample Ratio Mismatch in
    Online Controlled Experiments", KDD 2019).
    """
    expected = np.asarray(shares) / np.sum(shares) * np.sum(num_users)
    return float(scipy.stats.chisquare(num_users, expected).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values of several comparisons, corrected so that the chance of any false discovery is bounded (Holm, 1979).

    NaN stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = [n for n in np.argsort(ps, kind="stable").tolist() if not np.isnan(ps[n])]
    made, highest = [float("nan")] * len(ps), 0.0
    for rank, n in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[n]))
        made[n] = highest
    return made
