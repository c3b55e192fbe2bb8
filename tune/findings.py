"""What the trials of a sweep show together: the Pareto front, and how much each option mattered."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from tune.sweep_options import Sweep

_FEWEST = 6  # with fewer trials, the importance of an option would be chance


def pareto_front(rows: Sequence[dict[str, Any]], metrics: Sequence[str], modes: Sequence[str]) -> list[int]:
    """Numbers of the rows that are on the Pareto front: no other row is as good in all metrics and better in one.

    >>> rows = [{"number": n, "result": {"a": a, "b": b}} for n, (a, b) in enumerate([(1, 5), (2, 9), (1, 6), (0, 1)])]
    >>> pareto_front(rows, ["a", "b"], ["max", "min"])
    [0, 1, 3]
    """
    signs = [1 if mode == "max" else -1 for mode in modes]
    known = {
        r["number"]: [s * r["result"][m] for s, m in zip(signs, metrics, strict=True)]
        for r in rows
        if all(m in r["result"] for m in metrics)
    }
    return [n for n, own in known.items() if not any(_beats(other, own) for other in known.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def importance(rows: Sequence[dict[str, Any]], plan: Sweep) -> dict[str, float]:
    """Importance of each option of the space, largest first, in shares that add up to 1 (PED-ANOVA, arXiv:2304.10255).

    It says what sets the better half of the trials apart. It is empty if there are too few trials.
    """
    metric, mode = plan.options.metric[0], plan.options.mode[0]
    known = [r for r in rows if metric in r["result"]]
    if len(known) < _FEWEST or len({r["result"][metric] for r in known}) < 3:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    space = {p.key: p.distribution() for p in plan.space}
    for row in known:
        study.add_trial(
            optuna.trial.create_trial(params=row["values"], distributions=space, value=row["result"][metric])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}
