"""Slices of the requests, which have metrics of their own: by item, history, user attribute and context.

Legend: N requests, I items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.data.events import ACTION_BITS, DAYS, HOURS, MONTHS

HISTORY_BINS = ((1, 5), (6, 20), (21, 100), (101, None))
FEW_SHOT = 5  # items with at most so many training events, and at least one
MAX_VALUES = 10  # so many values of an attribute have a slice each; all other values share one
QUANTILES = (0.25, 0.5, 0.75)
COLD, WARM, FEW, HELD_OUT = "cold_items", "warm_items", "few_shot_items", "held_out_items"
COLD_AMONG_COLD, NEW_USERS = "cold_among_cold", "new_users"


def item_slices(item_counts: np.ndarray, held_out: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Masks over items (bool [I]) by their training events, and of items that a cold hold-out names."""
    slices = {
        COLD: item_counts == 0,
        FEW: (item_counts >= 1) & (item_counts <= FEW_SHOT),
        WARM: item_counts > 0,
    }
    return slices if held_out is None else slices | {HELD_OUT: held_out}


def action_slices(sets: np.ndarray, actions: Sequence[str]) -> dict[str, np.ndarray]:
    """Masks over targets by how they were taken, the most frequent actions first; none for a log of one action.

    Args:
        sets: int64, the actions of each target (see `ctxrec.data.events.action_sets`).
        actions: names of the codes from 1 on.

    Returns:
        bool [number of targets] for each action.
    """
    if len(actions) < 2:
        return {}
    named = enumerate(actions[: ACTION_BITS - 2], 1)  # the last bit is no single action's
    masks = {f"action={name}": (sets >> code) & 1 > 0 for code, name in named}
    frequent = sorted((name for name in masks if masks[name].any()), key=lambda name: -masks[name].sum())
    return {name: masks[name] for name in frequent[:MAX_VALUES]}


def history_slices(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by the number of events before the request; new users always have one, a bin only if it has requests.

    Returns:
        bool [N] for each bin.
    """
    slices = {NEW_USERS: lengths == 0}
    for low, high in HISTORY_BINS:
        mask = (lengths >= low) & (lengths <= (np.inf if high is None else high))
        if mask.any():
            slices[f"history_{low}+" if high is None else f"history_{low}-{high}"] = mask
    return slices


def time_labels(hour: np.ndarray, weekday: np.ndarray, month: np.ndarray) -> dict[str, np.ndarray]:
    """Names for the time of requests: a quarter of the day, the weekday and the month; object [N] each.

    >>> {k: str(v[0]) for k, v in time_labels(np.array([7]), np.array([0]), np.array([12])).items()}
    {'hour': '06-11 h', 'weekday': 'Monday', 'month': 'December'}
    """
    return {
        "hour": np.array(HOURS, object)[hour // 6],
        "weekday": np.array(DAYS, object)[weekday],
        "month": np.array(MONTHS, object)[month - 1],
    }


def attribute_slices(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by an attribute: its most frequent values, or four ranges with equal shares for numbers.

    >>> {k: v.tolist() for k, v in attribute_slices("age", np.array([20.0, 60.0, np.nan])).items()}
    {'age=20': [True, False, False], 'age=60': [False, True, False], 'age missing': [False, False, True]}
    """
    if values.dtype.kind == "f":
        missing = np.isnan(values)
        slices = _number_slices(name, values, ~missing)
    else:
        missing = np.array([value is None for value in values], bool)
        slices = _value_slices(name, values, ~missing)
    return slices | ({f"{name} missing": missing} if missing.any() else {})


def _number_slices(name: str, values: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    if not present.any():
        return {}
    edges = np.unique(np.quantile(values[present], QUANTILES))
    place = np.searchsorted(edges, values, side="right")
    masks = [present & (place == p) for p in np.unique(place[present])]
    ends = [(values[mask].min(), values[mask].max()) for mask in masks]
    # As few digits as tell the ranges apart.
    digits = next(
        d for d in range(6, 18) if d == 17 or len({(f"{a:.{d}g}", f"{b:.{d}g}") for a, b in ends}) == len(ends)
    )
    names = [f"{low:.{digits}g}" if low == high else f"{low:.{digits}g}-{high:.{digits}g}" for low, high in ends]
    return {f"{name}={range_}": mask for range_, mask in zip(names, masks, strict=True)}


def _value_slices(name: str, values: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    found, counts = np.unique(values[present].astype(str), return_counts=True)
    for order in (HOURS, DAYS, MONTHS):
        if len(found) and set(found) <= set(order):  # time has an order of its own, and all of it is shown
            return {f"{name}={value}": present & (values == value) for value in order if value in found}
    frequent = found[np.argsort(-counts, kind="stable")][:MAX_VALUES]
    slices = {f"{name}={value}": present & (values == value) for value in frequent}
    others = present & ~np.isin(values.astype(str), frequent)
    return slices | ({f"{name}: other values": others} if others.any() else {})
