"""The report of an A/B test: sizes of the arms, and each arm's behaviour against the control."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ctxrec.core.errors import UserError
from ctxrec.experiments.ab_test import CONTROL
from ctxrec.experiments.event_credit import Observed
from ctxrec.experiments.statistics import Ratio, compare, holm, ratio, sample_ratio_p

USERS, LISTS = "users who did", "events per list"  # the two metrics of each action
MISMATCH = 0.001  # below this p-value of the arms' sizes the test is broken


def report(observed: Observed, *, experiment: str, window_s: float) -> dict[str, Any]:
    """The report that `python -m ctxrec.ab` writes.

    Args:
        observed: what users saw and did.
        experiment: name of the test.
        window_s: seconds after a list within which events count.

    Raises:
        UserError: there is no control, or no arm to compare with it.
    """
    if CONTROL not in observed.arms or len(observed.arms) < 2:
        raise UserError(
            f"test {experiment!r} has lists of {', '.join(observed.arms) or 'no arm'} alone; expected {CONTROL} and others"
        )
    comparisons = [
        _comparison(observed, arm, a, metric)
        for arm in observed.arms
        if arm != CONTROL
        for a in range(len(observed.actions))
        for metric in (USERS, LISTS)
    ]
    for entry, p in zip(comparisons, holm([entry["p"] for entry in comparisons]), strict=True):
        entry["p_holm"] = p
    made = {
        "experiment": experiment,
        "window_hours": window_s / 3600,
        "arms": {arm: _arm(observed, arm) for arm in observed.arms},
        "sample_ratio": _sample_ratio(observed),
        "users_in_several_arms": observed.num_left_out,
        "lists_without_user": observed.num_nameless,
        "comparisons": comparisons,
    }
    return _without_nan(made)


def _ratio(observed: Observed, arm: str, action: int, metric: str) -> Ratio:
    rows = observed.users(arm)
    events = observed.events_AU[action, rows]
    if metric == USERS:
        return ratio((events > 0).astype(np.float64), np.ones(len(rows)))
    return ratio(events.astype(np.float64), observed.lists_U[rows].astype(np.float64))


def _comparison(observed: Observed, arm: str, action: int, metric: str) -> dict[str, Any]:
    of_arm, control = (_ratio(observed, name, action, metric) for name in (arm, CONTROL))
    return {
        "arm": arm,
        "action": observed.actions[action],
        "metric": metric,
        "control": control.value,
        "treatment": of_arm.value,
        **dataclasses.asdict(compare(of_arm, control)),
    }


def _arm(observed: Observed, arm: str) -> dict[str, Any]:
    rows = observed.users(arm)
    return {
        "share": float(observed.shares[observed.arms.index(arm)]),
        "users": len(rows),
        "lists": int(observed.lists_U[rows].sum()),
        "events": dict(zip(observed.actions, observed.events_AU[:, rows].sum(1).tolist(), strict=True)),
        "versions": {
            version: {"lists": counts[""], "events": {a: n for a, n in counts.items() if a}}
            for version, counts in observed.versions[arm].items()
        },
    }


def _sample_ratio(observed: Observed) -> dict[str, Any]:
    """Whether the sizes of the arms fit their shares; not checked if shares changed during the test."""
    if np.isnan(observed.shares).any():
        return {"p": float("nan"), "mismatch": None}
    p = sample_ratio_p([len(observed.users(arm)) for arm in observed.arms], observed.shares.tolist())
    return {"p": p, "mismatch": p < MISMATCH}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_report(made: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [
        f"test {made['experiment']}; an event counts for {made['window_hours']:g} hours after the last list before it"
    ]
    for name, arm in made["arms"].items():
        share = "changed" if arm["share"] is None else f"{arm['share']:.1%}"
        versions = ", ".join(f"{version} ({counts['lists']:,} lists)" for version, counts in arm["versions"].items())
        lines.append(f"{name}: share {share}, {arm['users']:,} users, {arm['lists']:,} lists, of {versions}")
    ratio_p = made["sample_ratio"]["p"]
    if ratio_p is None:
        lines.append("the sizes of the arms are not checked, because shares changed during the test")
    elif made["sample_ratio"]["mismatch"]:
        lines.append(
            f"SIZES OF THE ARMS DO NOT FIT THEIR SHARES (p {ratio_p:.2g}): find the cause first; do not use the rest"
        )
    else:
        lines.append(f"sizes of the arms fit their shares (p {ratio_p:.2g})")
    if made["users_in_several_arms"]:
        lines.append(f"left out: {made['users_in_several_arms']:,} users who got lists of several arms")
    if made["lists_without_user"]:
        lines.append(f"left out: {made['lists_without_user']:,} lists without a user id")
    header = ["arm", "action", "metric", "control", "treatment", "lift", "95 % interval", "p", "p (Holm)"]
    return "\n".join([*lines, "", *_aligned([header, *map(_cells, made["comparisons"])])])


def _cells(entry: dict[str, Any]) -> list[str]:
    def shown(value: float | None, pattern: str) -> str:
        return "-" if value is None else format(value, pattern)

    interval = "-" if entry["low"] is None else f"{entry['low']:+.1%} to {entry['high']:+.1%}"
    values = [shown(entry[name], ".4f") for name in ("control", "treatment")]
    ps = [shown(entry[name], ".3g") for name in ("p", "p_holm")]
    return [entry["arm"], entry["action"], entry["metric"], *values, shown(entry["lift"], "+.1%"), interval, *ps]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if c < 3 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return [line.rstrip() for line in lines]
