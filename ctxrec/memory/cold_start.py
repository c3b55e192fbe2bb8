"""The bonus that items without events get on top of their scores, so that new items are shown.

The ranking that is best for a log shows few new items, because the log has no events of them. Cost and gain of showing
more of them are measured on the validation requests: some known items are made new, which removes their events.

Legend: N requests, I items, K longest list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics


@dataclass(frozen=True)
class NewItemParams:
    """Tuned numbers and limits of the choice of a bonus for new items. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        hidden_share: share of the known items that are made new for the choice. The lab book compares it with 1 % in a
            variant of this method alone: there the bonus became too large (simulated log: NDCG@10 .2022 to .1766).
        max_hidden: limit of time: number of those items at most.
        hit_value: a hit on a new item is worth so many hits on known ones. It is a decision and not a measurement: what
            may be lost is decided by `train.new_items_cost`.
        num_steps, step: bonuses that are tried, in standard deviations of the scores. No measurement supports them.
        k: cut-off of the NDCG by which the bonus is chosen.
        max_requests: limit of time: number of requests that are asked at most.
        scores_at_once: limit of memory: 128 MB of float32.
    """

    hidden_share: float = 0.05
    max_hidden: int = 5000
    hit_value: float = 10.0
    num_steps: int = 60
    step: float = 0.05
    k: int = 10
    max_requests: int = 5000
    scores_at_once: int = 1 << 25


NEW_ITEMS = NewItemParams()


@dataclass(frozen=True)
class Bonus:
    """The chosen bonus, with the NDCG of the validation requests without it and with it.

    Attributes:
        value: the bonus, 0 or more.
        ndcg: of all targets, without and with the bonus.
        new_ndcg: of the targets that are new items, over the requests that have some, without and with the bonus.
    """

    value: float
    ndcg: tuple[float, float]
    new_ndcg: tuple[float, float]


def hidden_items(known_I: np.ndarray, *, seed: int, params: NewItemParams = NEW_ITEMS) -> np.ndarray:
    """A share of the known items at random: bool [I]."""
    known = np.flatnonzero(known_I)
    num = min(round(params.hidden_share * len(known)), params.max_hidden)
    chosen = np.random.default_rng(seed).choice(known, num, replace=False)
    hidden = np.zeros(len(known_I), bool)
    hidden[chosen] = True
    return hidden


def without_items(requests: Requests, items_I: np.ndarray) -> Requests:
    """The requests as if their histories had no event of these items (bool [I])."""
    return dataclasses.replace(requests, history=requests.history.keep(~items_I[requests.history.items]))


def choose_bonus(
    scores: Callable[[Requests], np.ndarray],
    requests: Requests,
    new_I: np.ndarray,
    *,
    cost: float,
    repeats: bool,
    params: NewItemParams = NEW_ITEMS,
) -> Bonus:
    """The bonus for new items that gains most where a hit on one of them is worth `hit_value` hits on known ones, of
    the bonuses that leave at least 1 - cost of the best NDCG@k.

    Args:
        scores: of all items for some requests, float32 [N, I].
        requests: with targets; of many, `max_requests` drawn at random are asked.
        new_I: bool, the items that get the bonus.
        repeats: whether the items of a history compete.
        params: tuned numbers and limits.
    """
    k = params.k
    if len(requests) > params.max_requests:
        rows = np.random.default_rng(0).choice(len(requests), params.max_requests, replace=False)
        requests = requests.take(np.sort(rows))
    offsets, targets = requests.target_offsets, requests.target_items
    assert offsets is not None and targets is not None
    kept = new_I[targets]
    num_new = np.diff(np.concatenate([[0], np.cumsum(kept)])[offsets])
    asked = np.flatnonzero(num_new)
    if not len(asked):
        return Bonus(0.0, (0.0, 0.0), (0.0, 0.0))
    new_offsets = np.concatenate([[0], np.cumsum(num_new[asked])])
    best, spread = _best_of_both(scores, requests, new_I, repeats=repeats, params=params)
    bonuses = np.arange(params.num_steps) * params.step * spread
    every, new = [], []
    for bonus in bonuses:
        lists = _merged(*best, bonus, k)
        every.append(request_metrics(lists, offsets, targets, [k])[f"ndcg@{k}"].mean())
        new.append(request_metrics(lists[asked], new_offsets, targets[kept], [k])[f"ndcg@{k}"].mean())
    share = len(asked) / len(requests)
    allowed = np.array(every) >= (1 - cost) * max(every)
    value = np.where(allowed, np.array(every) + (params.hit_value - 1) * share * np.array(new), -np.inf)
    at = int(value.argmax())
    return Bonus(float(bonuses[at]), (every[0], every[at]), (new[0], new[at]))


def _best_of_both(
    scores: Callable[[Requests], np.ndarray],
    requests: Requests,
    new_I: np.ndarray,
    *,
    repeats: bool,
    params: NewItemParams,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
    """The K best known and the K best new items of each request, which contain the K best items for every bonus.

    Returns:
        (positions [N, 2K], -1 = none; scores [N, 2K]; whether they are new [N, 2K]), and the mean standard deviation
        of a request's scores.
    """
    found, values, spread = [], [], []
    rows, k = max(params.scores_at_once // len(new_I), 1), params.k
    for start in range(0, len(requests), rows):
        part = requests.take(np.arange(start, min(start + rows, len(requests))))
        scores_NI = scores(part)
        spread.append(scores_NI.std(1))
        seen = None if repeats else part.seen()
        lists = [top_k(np.where(group, scores_NI, -np.inf), k, seen) for group in (~new_I, new_I)]
        found.append(np.concatenate(lists, 1))
        picked = np.take_along_axis(scores_NI, np.maximum(found[-1], 0), 1)
        values.append(np.where(found[-1] >= 0, picked, -np.inf))
    positions = np.concatenate(found)
    new = np.broadcast_to(np.arange(2 * k) >= k, positions.shape)
    return (positions, np.concatenate(values), new), float(np.concatenate(spread).mean())


def _merged(positions: np.ndarray, values: np.ndarray, new: np.ndarray, bonus: float, k: int) -> np.ndarray:
    """The K best items of both lists after the bonus is added to the scores of new items: int64 [N, K]."""
    order = np.argsort(-(values + bonus * new), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(positions, order, 1)
