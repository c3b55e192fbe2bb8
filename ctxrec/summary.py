"""From ranked lists to the numbers of `metrics.json`: means, intervals, slices and paired differences.

Legend: N requests, K longest list, I items. A system is whatever ranks: the model, the model before
fine-tuning, a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctxrec.events import ranges
from ctxrec.metrics import bootstrap_means, list_metrics, list_popularity, percentile_interval, request_metrics

MODEL, BEFORE = "model", "before"
SLICE_K = 10  # slices are reported at this cut-off
HISTORY_BINS = ((0, 0), (1, 5), (6, 20), (21, 100), (101, None))
MAX_VALUES = 10  # values of a user attribute with a slice of their own; the others share one
QUANTILES = (0.25, 0.5, 0.75)

Interval = dict[str, float]
Metrics = dict[str, Interval]


@dataclass(frozen=True)
class RankedLists:
    """N requests, their targets, what describes them, and the lists of every system."""

    user_ids: np.ndarray  # object [N]
    target_offsets: np.ndarray  # int64 [N + 1]
    target_items: np.ndarray  # int32
    history_lengths: np.ndarray  # int64 [N]
    tops: dict[str, np.ndarray]  # int [N, K] of each system
    attributes: dict[str, np.ndarray] = field(default_factory=dict)  # object [N] labels or float [N], None/NaN missing

    def __len__(self) -> int:
        return len(self.user_ids)

    def targets(self, n: int) -> np.ndarray:
        return self.target_items[self.target_offsets[n] : self.target_offsets[n + 1]]


def summarise(
    lists: RankedLists,
    *,
    item_counts: np.ndarray,
    eligible: np.ndarray,
    ks: Sequence[int],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The keys `model`, `before`, `baselines`, `paired` and `slices` of `metrics.json`.

    Args:
        lists: at least one request, with a system called "model".
        item_counts: int64 [I] training events of each item; 0 is a cold item.
        eligible: bool [I] items that may be recommended.
        ks: cut-offs.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    assert len(lists) and MODEL in lists.tops
    per_request = {}
    for system, top in lists.tops.items():
        per_request[system] = request_metrics(top, lists.target_offsets, lists.target_items, ks)
        per_request[system][f"popularity@{SLICE_K}"] = list_popularity(top, item_counts, SLICE_K)
    overall, paired = _intervals(per_request, resamples=resamples, seed=seed)
    for system, top in lists.tops.items():
        overall[system] |= list_metrics(top, eligible, SLICE_K)
    return {
        **_by_role(overall),
        "paired": paired,
        "slices": _slices(lists, per_request, item_counts=item_counts, resamples=resamples, seed=seed),
    }


def _intervals(
    per_request: dict[str, dict[str, np.ndarray]], *, resamples: int, seed: int
) -> tuple[dict[str, Metrics], dict[str, Metrics]]:
    """Intervals of every system's means, and of the model minus every other system on the same resamples."""
    systems = list(per_request)
    names = list(per_request[systems[0]])
    values = np.stack([per_request[s][name] for s in systems for name in names], axis=1)
    means = values.mean(axis=0).reshape(len(systems), len(names))
    resampled = bootstrap_means(values, num=resamples, seed=seed).reshape(-1, len(systems), len(names))

    def entry(mean: np.ndarray, samples: np.ndarray) -> Metrics:
        return {name: percentile_interval(mean[m], samples[:, m]) for m, name in enumerate(names)}

    alone = {system: entry(means[s], resampled[:, s]) for s, system in enumerate(systems)}
    model = systems.index(MODEL)
    against = {
        system: entry(means[model] - means[s], resampled[:, model] - resampled[:, s])
        for s, system in enumerate(systems)
        if s != model
    }
    return alone, against


def _by_role(systems: dict[str, Metrics]) -> dict[str, Any]:
    """{"model": ..., "before": ..., "baselines": {name: ...}}; what was not evaluated is empty."""
    baselines = {name: metrics for name, metrics in systems.items() if name not in (MODEL, BEFORE)}
    return {MODEL: systems.get(MODEL, {}), BEFORE: systems.get(BEFORE, {}), "baselines": baselines}


def _slices(
    lists: RankedLists,
    per_request: dict[str, dict[str, np.ndarray]],
    *,
    item_counts: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Every slice with its number of requests and all systems at SLICE_K; an empty one has no metrics."""
    wanted = [f"{name}@{SLICE_K}" for name in ("hr", "recall", "mrr", "ndcg")]

    def entry(values: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
        num = len(values[MODEL][wanted[0]])
        systems = _intervals(values, resamples=resamples, seed=seed)[0] if num else {}
        return {"requests": num, **_by_role(systems)}

    slices = {}
    for name, of_items in (("cold_items", item_counts == 0), ("warm_items", item_counts > 0)):
        slices[name] = entry(_on_targets(lists, of_items))
    masks = history_slices(lists.history_lengths)
    for name, values in lists.attributes.items():
        masks |= attribute_slices(name, values)
    for name, mask in masks.items():
        slices[name] = entry({s: {m: v[m][mask] for m in wanted} for s, v in per_request.items()})
    return slices


def _on_targets(lists: RankedLists, of_items: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Metrics at SLICE_K when only the targets in `of_items` (bool [I]) count; requests without one are left out."""
    keep = of_items[lists.target_items]
    kept = np.concatenate([[0], np.cumsum(keep)])[lists.target_offsets]
    rows = np.flatnonzero(np.diff(kept))
    index, offsets = ranges(kept[rows], kept[rows + 1])
    items = lists.target_items[keep][index]
    return {system: request_metrics(top[rows], offsets, items, [SLICE_K]) for system, top in lists.tops.items()}


def history_slices(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by the number of events before the request; bins that nobody is in are left out."""
    slices = {}
    for low, high in HISTORY_BINS:
        mask = (lengths >= low) & (lengths <= (np.inf if high is None else high))
        label = f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"
        if mask.any():
            slices[f"history_{label}"] = mask
    return slices


def attribute_slices(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by a user attribute: its most frequent values, or four ranges with equal shares for numbers.

    >>> {k: v.tolist() for k, v in attribute_slices("age", np.array([20.0, 60.0, np.nan])).items()}
    {'age=20': [True, False, False], 'age=60': [False, True, False], 'age missing': [False, False, True]}
    """
    if values.dtype.kind == "f":
        missing = np.isnan(values)
        slices = _number_slices(name, values, ~missing)
    else:
        missing = np.equal(values, None)
        slices = _value_slices(name, values, ~missing)
    return slices | ({f"{name} missing": missing} if missing.any() else {})


def _number_slices(name: str, values: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    if not present.any():
        return {}
    edges = np.unique(np.quantile(values[present], QUANTILES))
    place = np.searchsorted(edges, values, side="right")
    slices = {}
    for p in np.unique(place[present]):
        mask = present & (place == p)
        low, high = values[mask].min(), values[mask].max()
        slices[f"{name}={low:g}" if low == high else f"{name}={low:g}-{high:g}"] = mask
    return slices


def _value_slices(name: str, values: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    found, counts = np.unique(values[present].astype(str), return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][:MAX_VALUES]
    slices = {f"{name}={value}": present & (values == value) for value in frequent}
    others = present & ~np.isin(values.astype(str), frequent)
    return slices | ({f"{name}: other values": others} if others.any() else {})


def best_baseline(metrics: dict[str, Any], metric: str = "ndcg@10") -> str | None:
    """Name of the baseline with the highest mean; None without baselines."""
    baselines = metrics["baselines"]
    return max(baselines, key=lambda name: baselines[name][metric]["mean"]) if baselines else None


_COLUMNS = ("ndcg@10", "hr@10", "recall@10", "mrr@10", "coverage@10")
NAMES = {
    MODEL: "ctxrec",
    BEFORE: "ctxrec before encoder tuning",
    "popularity": "popularity",
    "popularity_7d": "popularity, last 7 days",
    "markov": "Markov chain",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "untuned_encoder": "un-tuned encoder, text only",
}


def ranked_systems(metrics: dict[str, Any], metric: str = "ndcg@10") -> list[tuple[str, Metrics]]:
    """(system, its metrics) of everything evaluated, best first."""
    systems = {MODEL: metrics[MODEL], BEFORE: metrics[BEFORE], **metrics["baselines"]}
    return sorted(((s, m) for s, m in systems.items() if m), key=lambda pair: -pair[1][metric]["mean"])


def format_table(metrics: dict[str, Any]) -> str:
    """The main metrics as a table for a terminal, best system first, with 95 % intervals of NDCG@10."""
    rows = [["", "NDCG@10", "95 % interval", "HR@10", "Recall@10", "MRR@10", "Coverage@10"]]
    for system, values in ranked_systems(metrics):
        main = values["ndcg@10"]
        numbers = [f"{values[c]['mean']:.4f}" for c in _COLUMNS]
        rows.append([NAMES.get(system, system), numbers[0], f"{main['low']:.4f} - {main['high']:.4f}", *numbers[1:]])
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    title = f"{metrics['split']}: {metrics['requests']:,} requests, full ranking"
    best = best_baseline(metrics)
    if best is not None:
        gain = metrics["paired"][best]["ndcg@10"]
        lines.append(
            f"ctxrec minus {NAMES.get(best, best)}: NDCG@10 {gain['mean']:+.4f} "
            f"(95 % interval {gain['low']:+.4f} to {gain['high']:+.4f}, same users)"
        )
    return "\n".join([title, *(line.rstrip() for line in lines), *(f"note: {n}" for n in metrics["notes"])])
