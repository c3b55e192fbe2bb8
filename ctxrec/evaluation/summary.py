"""From ranked lists to the numbers of `metrics.json`: means, intervals, slices and paired differences.

A system is anything that ranks: the model, the model before and after its encoder was tuned, an ablation, a baseline.

Legend: N requests, K longest list, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctxrec.data.events import ranges
from ctxrec.evaluation.feedback_metrics import DISLIKED, LIKED
from ctxrec.evaluation.slices import COLD_AMONG_COLD, action_slices, attribute_slices, history_slices, item_slices
from ctxrec.evaluation.systems import (
    ABLATIONS,
    FROZEN,
    MODEL,
    OTHER_RUN,
    RERANKED,
    SHUFFLED,
    SHUFFLED_SAME_TIME,
    TUNED,
    TUNED_MINUS_FROZEN,
    SystemMetrics,
)
from ctxrec.metrics.intervals import Interval, bootstrap_means, bootstrap_p, percentile_interval
from ctxrec.metrics.ranking import list_metrics, list_popularity, request_metrics, share_taken

SLICE_K = 10  # slices are reported at this cut-off
_ROLES = (MODEL, FROZEN, TUNED, SHUFFLED, SHUFFLED_SAME_TIME)

PerRequest = dict[str, dict[str, np.ndarray]]  # system -> metric -> float64 [N]


@dataclass(frozen=True)
class RankedLists:
    """N requests with their targets, their attributes and the lists of every system."""

    user_ids: np.ndarray  # object [N]
    target_offsets: np.ndarray  # int64 [N + 1]
    target_items: np.ndarray  # int32
    history_lengths: np.ndarray  # int64 [N]
    tops: dict[str, np.ndarray]  # int [N, K] of each system
    attributes: dict[str, np.ndarray] = field(default_factory=dict)  # object [N] labels or float [N], None/NaN missing
    target_actions: np.ndarray | None = None  # int64, like target_items: the actions by which each was taken
    actions: tuple[str, ...] = ()  # names of the action codes from 1 on
    cold_tops: dict[str, np.ndarray] = field(default_factory=dict)  # int [N, SLICE_K] with cold items alone eligible
    # Where values say what is liked: weights of the targets, float32, and what each user is known to dislike.
    target_weights: np.ndarray | None = None
    disliked_offsets: np.ndarray | None = None  # int64 [N + 1]
    disliked_items: np.ndarray | None = None  # int32

    def __len__(self) -> int:
        return len(self.user_ids)

    def targets(self, n: int) -> np.ndarray:
        """Items that request `n` counts as hits: int32 [targets of the request]."""
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
    """The keys `model`, `frozen`, `tuned`, `ablations`, `baselines`, `shuffled_context`, `paired`, `slices` of `metrics.json`.

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
        if lists.disliked_offsets is not None and lists.disliked_items is not None:
            per_request[system][DISLIKED] = share_taken(top, lists.disliked_offsets, lists.disliked_items, SLICE_K)
    overall, paired, drops = intervals(per_request, resamples=resamples, seed=seed)
    for system, top in lists.tops.items():
        overall[system] |= list_metrics(top, eligible, SLICE_K)
    roles = _by_role(overall)
    if TUNED in overall:  # the gain of the encoder's phase is the difference between these two, and nothing else
        apart = {name: values for name, values in per_request.items() if name in (FROZEN, TUNED)}
        apart = {MODEL: apart[TUNED], FROZEN: apart[FROZEN]}
        paired[TUNED_MINUS_FROZEN] = intervals(apart, resamples=resamples, seed=seed)[1][FROZEN]
    for system, drop in drops.items():
        roles[system]["drop"] = drop
    items = item_slices(item_counts, held_out)
    if lists.target_weights is not None:
        of_liked = _on_targets(lists, lists.tops, lists.target_weights > 0)
        roles[LIKED] = _liked(of_liked, resamples=resamples, seed=seed)
    return {
        **roles,
        "paired": paired,
        "slices": _slices(lists, per_request, items=items, resamples=resamples, seed=seed),
    }


def intervals(
    per_request: PerRequest, *, resamples: int, seed: int, drops_of: Sequence[str] = (SHUFFLED, SHUFFLED_SAME_TIME)
) -> tuple[dict[str, SystemMetrics], dict[str, SystemMetrics], dict[str, Interval]]:
    """Three kinds of intervals, all on the same resamples.

    Returns:
        The means of every system; the differences of the model to every other system; and, for shuffled context, the
        share of the model's NDCG that is lost.
    """
    systems = list(per_request)
    names = list(per_request[systems[0]])
    values = np.stack([per_request[s][name] for s in systems for name in names], axis=1)
    means = values.mean(axis=0).reshape(len(systems), len(names))
    resampled = bootstrap_means(values, num=resamples, seed=seed).reshape(-1, len(systems), len(names))

    def entry(mean: np.ndarray, samples: np.ndarray) -> SystemMetrics:
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
    for system in set(drops_of) & set(systems):
        s = systems.index(system)
        with_context, without = resampled[:, model, main], resampled[:, s, main]
        mean = 1 - means[s, main] / max(means[model, main], 1e-12)
        drops[system] = percentile_interval(mean, 1 - without / np.maximum(with_context, 1e-12))
    return alone, against, drops


def _by_role(systems: dict[str, SystemMetrics]) -> dict[str, Any]:
    """{"model": ..., "frozen": ..., "ablations": {...}, "baselines": {...}, ...}; a system without metrics is {}."""
    others = {name: metrics for name, metrics in systems.items() if name.startswith(OTHER_RUN)}
    rest = {name: metrics for name, metrics in systems.items() if name not in (*_ROLES, RERANKED, *others)}
    return {
        **{role: systems.get(role, {}) for role in _ROLES},
        **({RERANKED: systems[RERANKED]} if RERANKED in systems else {}),  # a second stage is an option
        **({"other_runs": others} if others else {}),
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
    """Every slice with its number of requests and all systems at SLICE_K; an empty slice has no metrics."""
    wanted = [f"{name}@{SLICE_K}" for name in ("hr", "recall", "mrr", "ndcg")]

    def entry(values: PerRequest) -> dict[str, Any]:
        num = len(next(iter(values.values()))[wanted[0]]) if values else 0
        systems = intervals(values, resamples=resamples, seed=seed)[0] if num else {}
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


def _liked(of_liked: PerRequest, *, resamples: int, seed: int) -> dict[str, Any]:
    """All systems and the model minus each, with liked targets alone."""
    num = len(next(iter(next(iter(of_liked.values())).values())))
    if not num:
        return {"requests": 0, **_by_role({}), "paired": {}}
    systems, paired, _ = intervals(of_liked, resamples=resamples, seed=seed, drops_of=())
    return {"requests": num, **_by_role(systems), "paired": paired}


def _on_targets(lists: RankedLists, tops: dict[str, np.ndarray], keep: np.ndarray) -> PerRequest:
    """Metrics at SLICE_K if only the targets of the mask `keep` count, over the requests that have such a target."""
    kept = np.concatenate([[0], np.cumsum(keep)])[lists.target_offsets]
    rows = np.flatnonzero(np.diff(kept))
    index, offsets = ranges(kept[rows], kept[rows + 1])
    items = lists.target_items[keep][index]
    return {system: request_metrics(top[rows], offsets, items, [SLICE_K]) for system, top in tops.items()}
