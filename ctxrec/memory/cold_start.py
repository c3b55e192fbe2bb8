"""What an item without events gets on top of its score, so that new items are shown often enough to be taken.

A ranking that is best for the log as it is shows few new items: the log never had any. What showing more of them costs
and brings is measured on the validation requests, with some known items made new: their events are forgotten.

Legend: N requests, I items, K longest list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.metrics.ranking import request_metrics, top_k

HIDDEN, _MOST_HIDDEN = 0.05, 5000  # share of the known items that are made new, and their number at most
_K = 10  # NDCG@10 is what the bonus is chosen by
_WORTH = 10.0  # of a hit on a new item, in hits on known ones, at most
_STEPS, _STEP = 60, 0.05  # bonuses that are tried, in standard deviations of the scores
_REQUESTS = 5000
_CELLS = 1 << 25  # scores held at once (128 MB)


@dataclass(frozen=True)
class Bonus:
    """The chosen bonus, and NDCG@10 of the validation requests without and with it: of all their targets, and of the
    new items among them (of requests that have such targets)."""

    value: float
    ndcg: tuple[float, float]
    new_ndcg: tuple[float, float]


def hidden_items(known_I: np.ndarray, *, seed: int) -> np.ndarray:
    """A share of the known items at random: bool [I]."""
    known = np.flatnonzero(known_I)
    num = min(round(HIDDEN * len(known)), _MOST_HIDDEN)
    chosen = np.random.default_rng(seed).choice(known, num, replace=False)
    hidden = np.zeros(len(known_I), bool)
    hidden[chosen] = True
    return hidden


def without_items(requests: Requests, items_I: np.ndarray) -> Requests:
    """The requests as if their histories had no event of these items (bool [I])."""
    return dataclasses.replace(requests, history=requests.history.keep(~items_I[requests.history.items]))


def choose_bonus(
    scores: Callable[[Requests], np.ndarray], requests: Requests, new_I: np.ndarray, *, cost: float, repeats: bool
) -> Bonus:
    """The bonus for new items that gains most where a hit on one of them is worth `_WORTH` on known ones, of those
    that leave at least 1 - cost of the best NDCG@10.

    Args:
        scores: of all items for some requests, float32 [N, I].
        requests: with targets; of many, `_REQUESTS` drawn at random are asked.
        new_I: bool, the items that get the bonus.
        repeats: whether the items of a history compete.
    """
    if len(requests) > _REQUESTS:
        requests = requests.take(np.sort(np.random.default_rng(0).choice(len(requests), _REQUESTS, replace=False)))
    offsets, targets = requests.target_offsets, requests.target_items
    assert offsets is not None and targets is not None
    kept = new_I[targets]
    num_new = np.diff(np.concatenate([[0], np.cumsum(kept)])[offsets])
    asked = np.flatnonzero(num_new)
    if not len(asked):
        return Bonus(0.0, (0.0, 0.0), (0.0, 0.0))
    new_offsets = np.concatenate([[0], np.cumsum(num_new[asked])])
    best, spread = _best_of_both(scores, requests, new_I, repeats=repeats)
    bonuses = np.arange(_STEPS) * _STEP * spread
    every, new = [], []
    for bonus in bonuses:
        lists = _merged(*best, bonus)
        every.append(request_metrics(lists, offsets, targets, [_K])[f"ndcg@{_K}"].mean())
        new.append(request_metrics(lists[asked], new_offsets, targets[kept], [_K])[f"ndcg@{_K}"].mean())
    share = len(asked) / len(requests)
    allowed = np.array(every) >= (1 - cost) * max(every)
    value = np.where(allowed, np.array(every) + (_WORTH - 1) * share * np.array(new), -np.inf)
    at = int(value.argmax())
    return Bonus(float(bonuses[at]), (every[0], every[at]), (new[0], new[at]))


def _best_of_both(
    scores: Callable[[Requests], np.ndarray], requests: Requests, new_I: np.ndarray, *, repeats: bool
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
    """The K best known and the K best new items of each request, which hold the K best for every bonus.

    Returns:
        (positions [N, 2K], -1 = none; scores [N, 2K]; whether they are new [N, 2K]), and the mean standard deviation
        of a request's scores.
    """
    found, values, spread = [], [], []
    rows = max(_CELLS // len(new_I), 1)
    for start in range(0, len(requests), rows):
        part = requests.take(np.arange(start, min(start + rows, len(requests))))
        scores_NI = scores(part)
        spread.append(scores_NI.std(1))
        seen = None if repeats else part.seen()
        lists = [top_k(np.where(group, scores_NI, -np.inf), _K, seen) for group in (~new_I, new_I)]
        found.append(np.concatenate(lists, 1))
        picked = np.take_along_axis(scores_NI, np.maximum(found[-1], 0), 1)
        values.append(np.where(found[-1] >= 0, picked, -np.inf))
    positions = np.concatenate(found)
    new = np.broadcast_to(np.arange(2 * _K) >= _K, positions.shape)
    return (positions, np.concatenate(values), new), float(np.concatenate(spread).mean())


def _merged(positions: np.ndarray, values: np.ndarray, new: np.ndarray, bonus: float) -> np.ndarray:
    """The K best of both lists where the new items' scores are higher by the bonus: int64 [N, K]."""
    order = np.argsort(-(values + bonus * new), axis=1, kind="stable")[:, :_K]
    return np.take_along_axis(positions, order, 1)
