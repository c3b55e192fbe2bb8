"""Ranking metrics over the full catalogue, and their intervals.

Legend: N requests, I items, K longest list, M metrics (or columns), E targets of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.metrics.intervals import jackknife_interval


def request_metrics(
    top: np.ndarray, target_offsets: np.ndarray, target_items: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """HR, recall, MRR and NDCG of each request at each cut-off; names such as "ndcg@10".

    With targets T and the first k recommendations L: hr = 1 when L has any of T; recall =
    |L and T| / min(k, |T|); mrr = 1 / rank of the first hit, else 0; ndcg = sum over hits at rank p of
    1 / log2(p + 1), divided by the same sum for min(k, |T|) hits at the top (Järvelin and Kekäläinen, 2002).

    Args:
        top: int [N, K] item positions, best first, -1 = none (`ctxrec.index.topk.top_k`).
        target_offsets: int64 [N + 1]; request n has the targets [offsets[n], offsets[n + 1]), at least one.
        target_items: int [E] distinct within a request.
        ks: cut-offs.

    Returns:
        float64 [N] for each metric.

    >>> found = request_metrics(np.array([[7, 3, 5]]), np.array([0, 2]), np.array([3, 9]), [3])
    >>> {name: round(float(value[0]), 4) for name, value in found.items()}
    {'hr@3': 1.0, 'recall@3': 0.5, 'mrr@3': 0.5, 'ndcg@3': 0.3869}
    """
    num_targets = np.diff(target_offsets)
    assert len(top) == len(num_targets) and (num_targets > 0).all()
    hits = _hits(top, num_targets, target_items)
    discounts = 1 / np.log2(np.arange(max(*ks, top.shape[1])) + 2)
    ideals = np.concatenate([[0.0], np.cumsum(discounts)])
    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        of_k = hits[:, :k]
        any_hit = np.asarray(of_k.any(axis=1))
        reachable = np.minimum(num_targets, k)
        metrics[f"hr@{k}"] = any_hit.astype(np.float64)
        metrics[f"recall@{k}"] = np.asarray(of_k.sum(axis=1) / reachable)
        metrics[f"mrr@{k}"] = any_hit / (of_k.argmax(axis=1) + 1)
        metrics[f"ndcg@{k}"] = of_k @ discounts[: of_k.shape[1]] / ideals[reachable]
    return metrics


def share_taken(top: np.ndarray, offsets: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k places that some items take, such as those that are disliked: float64 [N].

    Args:
        top: int [N, K] item positions, -1 = none.
        offsets: int64 [N + 1]; the items of list n are [offsets[n], offsets[n + 1]), maybe none.
        items: int.
        k: cut-off, at most K; a list that is shorter counts k places all the same.

    >>> share_taken(np.array([[7, 3, 5], [1, 2, -1]]), np.array([0, 2, 2]), np.array([3, 9]), 2).tolist()
    [0.5, 0.0]
    """
    return _hits(top[:, :k], np.diff(offsets), items).sum(1) / k


def _hits(top: np.ndarray, num_targets: np.ndarray, target_items: np.ndarray) -> np.ndarray:
    """Whether each recommendation is a target of its request: bool [N, K]."""
    span = int(max(top.max(initial=0), target_items.max(initial=0))) + 1
    rows = np.arange(len(top))
    wanted = np.repeat(rows, num_targets) * span + target_items
    return np.isin(rows[:, None] * span + top, wanted) & (top >= 0)


def list_metrics(top: np.ndarray, eligible: np.ndarray, k: int) -> dict[str, dict[str, float]]:
    """Catalogue coverage of the first k recommendations, and the Gini coefficient of how often items are shown.

    Coverage is the share of eligible items in any list; Gini is 0 when all are shown equally often and near
    1 when few items get every place. Both belong to all lists together, and a resample with repeated
    requests has fewer distinct lists, so a bootstrap would be biased: the intervals are jackknife ones,
    1.96 standard errors each side (Efron and Stein, 1981).

    Args:
        top: int [N, K] item positions, -1 = none.
        eligible: bool [I].
        k: cut-off.

    Returns:
        {"coverage@k": {"mean", "low", "high"}, "gini@k": ...}.
    """
    shown = top[:, :k]
    valid = shown >= 0
    all_counts = np.bincount(shown[valid], minlength=len(eligible))
    num_items = int(eligible.sum())
    assert num_items > 0 and not all_counts[~eligible].any()

    # What each request alone contributes: items that only it shows, and its part of the rank sum of Gini.
    only_here = ((all_counts[shown] == 1) & valid).sum(axis=1)
    counts = np.sort(all_counts[eligible])
    first_rank = np.searchsorted(counts, all_counts, side="left") + 1
    weight = 2 * first_rank - num_items - 1
    total = counts.sum()
    rank_sum = float((2 * np.arange(1, num_items + 1) - num_items - 1) @ counts)
    left_rank_sum = rank_sum - np.where(valid, weight[shown], 0).sum(axis=1)
    left_total = np.maximum(total - valid.sum(axis=1), 1)
    coverage = float((counts > 0).sum() / num_items)
    gini = rank_sum / (num_items * max(int(total), 1))
    return {
        f"coverage@{k}": jackknife_interval(coverage, coverage - only_here / num_items),
        f"gini@{k}": jackknife_interval(gini, left_rank_sum / (num_items * left_total)),
    }


def list_popularity(top: np.ndarray, item_counts: np.ndarray, k: int) -> np.ndarray:
    """Mean number of training events of the first k recommendations of each request: float64 [N].

    It is the average recommendation popularity of Abdollahpouri, Burke and Mobasher (2019).
    """
    shown = top[:, :k]
    valid = shown >= 0
    return np.where(valid, item_counts[shown], 0).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
