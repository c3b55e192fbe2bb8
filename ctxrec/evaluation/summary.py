"""From ranked lists to the numbers of `metrics.json`: means, intervals, slices and paired differences.

Legend: N requests, K longest list, I items. A system is whatever ranks: the model, the model before
fine-tuning, an ablation, a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctxrec.data.events import ranges
from ctxrec.evaluation.slices import COLD_AMONG_COLD, action_slices, attribute_slices, history_slices, item_slices
from ctxrec.metrics.ranking import bootstrap_means, list_metrics, list_popularity, percentile_interval, request_metrics

MODEL, BEFORE, RERANKED = "model", "before", "reranked"
ABLATIONS = ("text_only", "id_only", "no_context", "frozen_encoder")
SHUFFLED, SHUFFLED_SAME_TIME = "shuffled_context", "shuffled_context_same_time"
# Know the true preferences of a simulated log: limits, not rivals.
ORACLES = ("oracle", "oracle_of_log", "oracle_no_context")
SLICE_K = 10  # slices are reported at this cut-off
_ROLES = (MODEL, BEFORE, SHUFFLED, SHUFFLED_SAME_TIME)

Interval = dict[str, float]
Metrics = dict[str, Interval]
PerRequest = dict[str, dict[str, np.ndarray]]  # system -> metric -> float64 [N]


@dataclass(frozen=True)
class RankedLists:
    """N requests, their targets, what describes them, and the lists of every system."""

    user_ids: np.ndarray  # object [N]
    target_offsets: np.ndarray  # int64 [N + 1]
    target_items: np.ndarray  # int32
    history_lengths: np.ndarray  # int64 [N]
    tops: dict[str, np.ndarray]  # int [N, K] of each system
    attributes: dict[str, np.ndarray] = field(default_factory=dict)  # object [N] labels or float [N], None/NaN missing
    target_actions: np.ndarray | None = None  # int64, like target_items: the actions by which each was taken
    actions: tuple[str, ...] = ()  # names of the action codes from 1 on
    cold_tops: dict[str, np.ndarray] = field(default_factory=dict)  # int [N, SLICE_K] with cold items alone eligible

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
    held_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """The keys `model`, `before`, `ablations`, `baselines`, `shuffled_context`, `paired`, `slices` of `metrics.json`.

    Args:
        lists: at least one request and one system.
        item_counts: int64 [I] training events of each item; 0 is a cold item.
        eligible: bool [I] items that may be recommended.
        ks: cut-offs.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
        held_out: bool [I] items of a cold hold-out, which get a slice.
    """
    assert len(lists) and lists.tops
    information = -np.log2((item_counts + 1) / (item_counts.sum() + len(item_counts)))
    per_request: PerRequest = {}
    for system, top in lists.tops.items():
        per_request[system] = request_metrics(top, lists.target_offsets, lists.target_items, ks)
        per_request[system][f"popularity@{SLICE_K}"] = list_popularity(top, item_counts, SLICE_K)
        per_request[system][f"novelty@{SLICE_K}"] = list_popularity(top, information, SLICE_K)
    overall, paired, drops = _intervals(per_request, resamples=resamples, seed=seed)
    for system, top in lists.tops.items():
        overall[system] |= list_metrics(top, eligible, SLICE_K)
    roles = _by_role(overall)
    for system, drop in drops.items():
        roles[system]["drop"] = drop
    items = item_slices(item_counts, held_out)
    return {
        **roles,
        "paired": paired,
        "slices": _slices(lists, per_request, items=items, resamples=resamples, seed=seed),
    }


def _intervals(
    per_request: PerRequest, *, resamples: int, seed: int
) -> tuple[dict[str, Metrics], dict[str, Metrics], dict[str, Interval]]:
    """Intervals of every system's means; of the model minus every other system, on the same resamples; and of the
    share of the model's NDCG that shuffled context costs."""
    systems = list(per_request)
    names = list(per_request[systems[0]])
    values = np.stack([per_request[s][name] for s in systems for name in names], axis=1)
    means = values.mean(axis=0).reshape(len(systems), len(names))
    resampled = bootstrap_means(values, num=resamples, seed=seed).reshape(-1, len(systems), len(names))

    def entry(mean: np.ndarray, samples: np.ndarray) -> Metrics:
        return {name: percentile_interval(mean[m], samples[:, m]) for m, name in enumerate(names)}

    alone = {system: entry(means[s], resampled[:, s]) for s, system in enumerate(systems)}
    if MODEL not in systems:
        return alone, {}, {}
    model, against = systems.index(MODEL), {}
    for s, system in enumerate(systems):
        if s != model:
            differences = resampled[:, model] - resampled[:, s]
            against[system] = entry(means[model] - means[s], differences)
            for m, name in enumerate(names):
                against[system][name]["p"] = bootstrap_p(differences[:, m])
    main, drops = names.index(f"ndcg@{SLICE_K}"), {}
    for system in {SHUFFLED, SHUFFLED_SAME_TIME} & set(systems):
        s = systems.index(system)
        with_context, without = resampled[:, model, main], resampled[:, s, main]
        mean = 1 - means[s, main] / max(means[model, main], 1e-12)
        drops[system] = percentile_interval(mean, 1 - without / np.maximum(with_context, 1e-12))
    return alone, against, drops


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference from its resampled means: twice the smaller share beyond 0.

    It never falls below one resample's share, which is all that the resamples can tell.

    >>> bootstrap_p(np.array([0.1, 0.2, 0.3, -0.1]))
    0.5
    """
    num = len(differences)
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / num)))


def _by_role(systems: dict[str, Metrics]) -> dict[str, Any]:
    """{"model": ..., "before": ..., "ablations": {...}, "baselines": {...}, ...}; what was not evaluated is empty."""
    rest = {name: metrics for name, metrics in systems.items() if name not in (*_ROLES, RERANKED)}
    return {
        **{role: systems.get(role, {}) for role in _ROLES},
        **({RERANKED: systems[RERANKED]} if RERANKED in systems else {}),  # a second stage is an option
        "ablations": {name: metrics for name, metrics in rest.items() if name in ABLATIONS},
        "baselines": {name: metrics for name, metrics in rest.items() if name not in ABLATIONS},
    }


def _slices(
    lists: RankedLists,
    per_request: PerRequest,
    *,
    items: dict[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Every slice with its number of requests and all systems at SLICE_K; an empty one has no metrics."""
    wanted = [f"{name}@{SLICE_K}" for name in ("hr", "recall", "mrr", "ndcg")]

    def entry(values: PerRequest) -> dict[str, Any]:
        num = len(next(iter(values.values()))[wanted[0]]) if values else 0
        systems = _intervals(values, resamples=resamples, seed=seed)[0] if num else {}
        return {"requests": num, **_by_role(systems)}

    targets = lists.target_items
    slices = {name: entry(_on_targets(lists, lists.tops, of_items[targets])) for name, of_items in items.items()}
    if lists.cold_tops:
        slices[COLD_AMONG_COLD] = entry(_on_targets(lists, lists.cold_tops, items["cold_items"][targets]))
    if lists.target_actions is not None:
        for name, taken in action_slices(lists.target_actions, lists.actions).items():
            slices[name] = entry(_on_targets(lists, lists.tops, taken))
    masks = history_slices(lists.history_lengths)
    for name, values in lists.attributes.items():
        masks |= attribute_slices(name, values)
    for name, mask in masks.items():
        slices[name] = entry({s: {m: v[m][mask] for m in wanted} for s, v in per_request.items()})
    return slices


def _on_targets(lists: RankedLists, tops: dict[str, np.ndarray], keep: np.ndarray) -> PerRequest:
    """Metrics at SLICE_K when only the targets of the mask `keep` count; requests without one are left out."""
    kept = np.concatenate([[0], np.cumsum(keep)])[lists.target_offsets]
    rows = np.flatnonzero(np.diff(kept))
    index, offsets = ranges(kept[rows], kept[rows + 1])
    items = lists.target_items[keep][index]
    return {system: request_metrics(top[rows], offsets, items, [SLICE_K]) for system, top in tops.items()}


def best_baseline(metrics: dict[str, Any], metric: str = "ndcg@10") -> str | None:
    """Name of the baseline with the highest mean; oracles do not count; None without baselines."""
    baselines = {name: values for name, values in metrics["baselines"].items() if name not in ORACLES}
    return max(baselines, key=lambda name: baselines[name][metric]["mean"]) if baselines else None


def focus(metrics: dict[str, Any]) -> str:
    """The system that a report is about: the model, or the best baseline where there is none."""
    return MODEL if metrics[MODEL] else best_baseline(metrics) or next(iter(metrics["baselines"]))


def verdict(gain: dict[str, float]) -> str:
    """In words whether the 95 % interval of a paired difference leaves out 0."""
    if gain["low"] > 0:
        return "clearly better"
    return "clearly worse" if gain["high"] < 0 else "no clear difference"


_COLUMNS = ("ndcg@10", "hr@10", "recall@10", "mrr@10", "coverage@10")
NAMES = {
    MODEL: "ctxrec",
    BEFORE: "ctxrec before encoder tuning",
    RERANKED: "ctxrec, re-ranked",
    SHUFFLED: "ctxrec, shuffled context",
    SHUFFLED_SAME_TIME: "ctxrec, shuffled context, same time",
    "text_only": "ctxrec, text only",
    "id_only": "ctxrec, IDs only",
    "no_context": "ctxrec, no context",
    "frozen_encoder": "ctxrec, encoder not tuned",
    "popularity": "popularity",
    "popularity_7d": "popularity, last 7 days",
    "markov": "Markov chain",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "als": "ALS",
    "sasrec": "SASRec",
    "untuned_encoder": "un-tuned encoder, text only",
    "ensemble": "linear ensemble",
    "oracle": "best possible (simulation)",
    "oracle_of_log": "best possible by the log",
    "oracle_no_context": "best possible without context",
}


def ranked_systems(metrics: dict[str, Any], metric: str = "ndcg@10") -> list[tuple[str, Metrics]]:
    """(system, its metrics) of everything evaluated on the requests as they are, best first."""
    alone = {name: metrics.get(name, {}) for name in (MODEL, BEFORE, RERANKED)}
    systems = {**alone, **metrics["ablations"], **metrics["baselines"]}
    return sorted(((s, m) for s, m in systems.items() if m), key=lambda pair: -pair[1][metric]["mean"])


def format_table(metrics: dict[str, Any]) -> str:
    """The main metrics as a table for a terminal, best system first, with 95 % intervals of NDCG@10."""
    rows = [["", "NDCG@10", "95 % interval", "HR@10", "Recall@10", "MRR@10", "Coverage@10", "ctxrec minus it"]]
    for system, values in ranked_systems(metrics):
        main = values["ndcg@10"]
        numbers = [f"{values[c]['mean']:.4f}" for c in _COLUMNS]
        gain = metrics["paired"].get(system, {}).get("ndcg@10")
        paired = "" if gain is None else f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        interval = f"{main['low']:.4f} - {main['high']:.4f}"
        rows.append([NAMES.get(system, system), numbers[0], interval, *numbers[1:], paired])
    if not metrics["paired"]:
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    title = f"{metrics['split']}: {metrics['requests']:,} requests, full ranking"
    return "\n".join([title, *(line.rstrip() for line in lines), *_remarks(metrics)])


def _remarks(metrics: dict[str, Any]) -> list[str]:
    """One sentence each: against the best baseline, cold items, shuffled context; then notes."""
    lines, best = [], best_baseline(metrics)
    if best is not None and metrics["paired"]:
        gain = metrics["paired"][best]["ndcg@10"]
        lines.append(
            f"ctxrec minus {NAMES.get(best, best)}, the best baseline: NDCG@10 {gain['mean']:+.4f} (95 % interval "
            f"{gain['low']:+.4f} to {gain['high']:+.4f}, same users, p {_p(gain['p'])}): {verdict(gain)}"
        )
    for name, words in (("cold_items", "among everything"), (COLD_AMONG_COLD, "among cold items only")):
        entry = metrics["slices"].get(name, {"requests": 0})
        shown = {s: m for s, m in _flat(entry) if s in (MODEL, "untuned_encoder")} if entry["requests"] else {}
        if shown:
            values = ", ".join(f"{NAMES[s]} {m['ndcg@10']['mean']:.4f}" for s, m in shown.items())
            lines.append(f"cold items {words} ({entry['requests']:,} requests): NDCG@10 {values}")
    for system, words in ((SHUFFLED, ""), (SHUFFLED_SAME_TIME, " but for the request's own time")):
        if metrics.get(system):
            drop = metrics[system]["drop"]
            lines.append(
                f"context shuffled among requests{words}: NDCG@10 falls by {_percent(drop['mean'])} % "
                f"(95 % interval {_percent(drop['low'])} to {_percent(drop['high'])} %)"
            )
    return lines + [f"note: {note}" for note in metrics["notes"]]


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) or 0.0:.1f}"  # without the sign of what rounds to nothing


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.01 else "< 0.01"


def _flat(entry: dict[str, Any]) -> list[tuple[str, Metrics]]:
    return [(MODEL, entry[MODEL]), *entry["baselines"].items()] if entry[MODEL] else list(entry["baselines"].items())
