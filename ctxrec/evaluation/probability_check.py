"""Whether the model's probabilities hold on a split: log-loss, AUC, calibration error and the bins of a reliability diagram.

Legend: P pairs of a request and an item, U users, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxrec.data.outcomes import outcome_requests
from ctxrec.data.prepared import PreparedData
from ctxrec.memory.calibration import SUCCESS
from ctxrec.memory.calibration_fit import CALIBRATION, Pairs, outcome_pairs
from ctxrec.metrics.intervals import Interval, percentile_interval
from ctxrec.metrics.probability_metrics import auc, log_losses, reliability, wilson_interval
from ctxrec.retrieval.recommender import Recommender

PROBABILITY = "probability"  # the key in `metrics.json`
_BINS = 10
_BEST, _DRAWN = 100, 300  # items that stand against a next event: those with the highest scores, and others by chance
_RESAMPLES = 200


def measure_probabilities(
    model: Recommender, prepared: PreparedData, split: int, *, seed: int
) -> dict[str, Any] | None:
    """The figures of the model's probabilities; None where it tells none, or the split has too few outcomes.

    Every moment of the split is a request at its own time. Outcomes are those of `ctxrec.data.outcomes`. Intervals are of
    resampled users.

    Args:
        model: knows the events before the split alone.
        prepared: its data.
        split: `schema.VALID` or `schema.TEST`.
        seed: of draws and resamples.
    """
    calibration = None if model.calibration is None else model.calibration.plain
    requests = None if calibration is None else outcome_requests(prepared, split, CALIBRATION.requests)
    if calibration is None or requests is None:
        return None
    requests = requests.evenly(CALIBRATION.requests)
    pairs = outcome_pairs(
        model,
        requests,
        prepared.kinds,
        calibration.sample,
        repeats=prepared.spec.split.repeats,
        draw=(_BEST, _DRAWN),
        rng=np.random.default_rng(seed),
        base_rate=calibration.base_rate,
    )
    if pairs.happened.all() or not pairs.happened.any():
        return None
    told = pairs.probabilities(calibration)
    # Next events are rare, so bins of as many pairs would all but one hold none: they have as many next events.
    by = pairs.weights if calibration.of == SUCCESS else pairs.weights * pairs.happened
    bins = reliability(told, pairs.happened, pairs.weights, by=by, num=_BINS)
    low, high = wilson_interval(bins.observed_B, bins.weights_B)
    columns = {
        "predicted": bins.predicted_B,
        "observed": bins.observed_B,
        "low": low,
        "high": high,
        "pairs": bins.weights_B,
    }
    return {
        "of": calibration.of,
        "requests": len(requests),
        "pairs": float(pairs.weights.sum()),
        "happened": int(pairs.happened.sum()),
        "line": {"score": calibration.slope, **calibration.weights},
        "curve": "isotonic" if len(calibration.curve.log_odds) else "logistic",
        "predicted": float(np.average(told, weights=pairs.weights)),
        "observed": pairs.base_rate,
        **_intervals(pairs, told, calibration.base_rate, seed=seed),
        "calibration_error": bins.expected_error,
        "bins": [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)],
    }


def _intervals(pairs: Pairs, told: np.ndarray, base_rate: float, *, seed: int) -> dict[str, Interval]:
    """Log-loss, that of the base rate of the validation events, the difference, and AUC, each with its interval."""
    users = pairs.users[pairs.rows]
    num = int(pairs.users.max()) + 1
    losses = log_losses(told, pairs.happened)
    of_base = log_losses(np.full(len(told), base_rate), pairs.happened)
    sums_U3 = np.stack([np.bincount(users, pairs.weights * v, num) for v in (np.ones(len(told)), losses, of_base)], 1)
    rng, found = np.random.default_rng(seed), []
    ranks = np.unique(told, return_inverse=True)[1]
    for _ in range(_RESAMPLES):
        times_U = np.bincount(rng.integers(num, size=num), minlength=num)
        total, loss, base = times_U @ sums_U3
        found.append(
            (
                loss / total,
                base / total,
                (base - loss) / total,
                auc(ranks, pairs.happened, pairs.weights * times_U[users]),
            )
        )
    total, loss, base = sums_U3.sum(0)
    whole = (loss / total, base / total, (base - loss) / total, auc(ranks, pairs.happened, pairs.weights))
    names = ("log_loss", "log_loss_of_base_rate", "log_loss_gain", "auc")
    return {
        name: percentile_interval(float(mean), column[np.isfinite(column)])
        for name, mean, column in zip(names, whole, np.array(found).T, strict=True)
    }


def describe_probabilities(facts: dict[str, Any]) -> str:
    """The figures of `measure_probabilities` in one line for people."""
    what = "of a success if the user meets the item" if facts["of"] == SUCCESS else "that an item is the next event"
    area, loss, base = facts["auc"], facts["log_loss"], facts["log_loss_of_base_rate"]
    return (
        f"probabilities {what}: AUC {area['mean']:.3f} ({area['low']:.3f} to {area['high']:.3f}), log-loss {loss['mean']:.4g} "
        f"(the base rate alone: {base['mean']:.4g}), calibration error {facts['calibration_error']:.2g}, on average "
        f"{facts['predicted']:.3g} told and {facts['observed']:.3g} seen, at {facts['requests']:,} moments"
    )
