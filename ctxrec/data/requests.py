"""Requests to a recommender: who asks, when, in which context, after which history, for which targets.

Legend: N requests, E events.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import (
    Context,
    Events,
    Histories,
    Users,
    action_sets,
    concat_contexts,
    concat_events,
    concat_offsets,
    concat_users,
    histories_from_table,
    ranges,
)
from ctxrec.data.prepared import PreparedData


@dataclass(frozen=True)
class Requests:
    """N requests as arrays: who asks, when, in which context, after which history; targets where they are known.

    All models and baselines score this type. `split_requests` makes it from a log, and
    `ctxrec.retrieval.recommender.Recommender.make_requests` from what users ask.
    """

    users: Users
    history: Events
    times: np.ndarray  # int64 [N] microseconds
    context: Context  # [N]
    target_offsets: np.ndarray | None = None  # int64 [N + 1]
    target_items: np.ndarray | None = None  # int32
    target_actions: np.ndarray | None = None  # int64, like target_items: see `action_sets`
    target_weights: np.ndarray | None = (
        None  # float32, like target_items: of the event that counts most; None: not known
    )
    query: np.ndarray | None = None  # object [N], free text that a request asks with, or None; None: no request has one
    disliked: np.ndarray | None = None  # object [N], positions (int32) of items not liked; None: no request has any

    def __len__(self) -> int:
        return len(self.times)

    def seen(self) -> list[np.ndarray]:
        """Items of each request's history: N arrays, int32 [events of the request]."""
        return [self.history.items[self.history.row(n)] for n in range(len(self))]

    def targets(self, n: int) -> np.ndarray:
        """Target items of request n: int32 [targets of the request]."""
        assert self.target_offsets is not None and self.target_items is not None
        return self.target_items[self.target_offsets[n] : self.target_offsets[n + 1]]

    def evenly(self, limit: int) -> Requests:
        """At most `limit` of the requests, at even distances."""
        num = len(self)
        return self if num <= limit else self.take(np.linspace(0, num - 1, limit).astype(np.int64))

    def with_targets(self, keep: np.ndarray) -> Requests:
        """The requests with some of their targets alone (bool, like `target_items`); one that has none left is removed."""
        assert self.target_offsets is not None and self.target_items is not None
        if keep.all():
            return self
        offsets = np.concatenate([[0], np.cumsum(keep)])[self.target_offsets].astype(np.int64)
        kept = dataclasses.replace(
            self,
            target_offsets=offsets,
            target_items=self.target_items[keep],
            target_actions=None if self.target_actions is None else self.target_actions[keep],
            target_weights=None if self.target_weights is None else self.target_weights[keep],
        )
        return kept.take(np.flatnonzero(np.diff(offsets)))

    def take(self, index: np.ndarray) -> Requests:
        starts, stops = self.history.offsets[index], self.history.offsets[index + 1]
        targets: dict[str, np.ndarray] = {}
        if self.target_offsets is not None and self.target_items is not None:
            positions, offsets = ranges(self.target_offsets[index], self.target_offsets[index + 1])
            targets = {"target_offsets": offsets, "target_items": self.target_items[positions]}
            if self.target_actions is not None:
                targets["target_actions"] = self.target_actions[positions]
            if self.target_weights is not None:
                targets["target_weights"] = self.target_weights[positions]
        return Requests(
            users=self.users.take(index),
            history=self.history.cut(starts, stops),
            times=self.times[index],
            context=self.context.take(index),
            query=_taken(self.query, index),
            disliked=_taken(self.disliked, index),
            **targets,
        )


def _taken(wishes: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    """What some requests wish (object [N]); None where none of them wishes anything, whatever others of the batch wish."""
    if wishes is None:
        return None
    taken = wishes[index]
    return taken if any(wish is not None and len(wish) > 0 for wish in taken) else None


def split_requests(histories: Histories, split: int, *, repeats: bool) -> Requests:
    """One request for each user with an eligible event in `split` (schema.VALID or schema.TEST).

    The history is every event before the user's first one in the split; the request is made with the
    time and context of that first event. Targets are the distinct items of the split's events, without
    those of the history when `repeats` is False, each with all actions that the split's events have for it, and with the
    weight of the event that counts most where `histories` has weights; a user left without target makes no request.
    """
    events = histories.events
    of_row = np.repeat(np.arange(len(histories)), events.lengths)
    inside = np.flatnonzero(histories.split == split)
    rows, first = np.unique(of_row[inside], return_index=True)
    first = inside[first]  # absolute position of each row's first event in the split
    history = events.cut(events.offsets[rows], first)

    new_row = np.full(len(histories), -1, np.int64)
    new_row[rows] = np.arange(len(rows))
    span = int(events.items.max(initial=0)) + 1
    pair = new_row[of_row[inside]] * span + events.items[inside]
    pair, place = np.unique(pair, return_inverse=True)
    actions = np.zeros(len(pair), np.int64)
    np.bitwise_or.at(actions, place, action_sets(events.actions[inside]))
    weights = None
    if histories.weights is not None:
        weights = np.full(len(pair), -np.inf, np.float32)
        np.maximum.at(weights, place, histories.weights[inside])
    if not repeats:
        seen = np.repeat(np.arange(len(rows)), history.lengths) * span + history.items
        new = ~np.isin(pair, seen)
        pair, actions = pair[new], actions[new]
        weights = None if weights is None else weights[new]
    counts = np.bincount(pair // span, minlength=len(rows)) if len(pair) else np.zeros(len(rows), np.int64)
    kept = np.flatnonzero(counts)
    requests = Requests(
        users=histories.users.take(rows),
        history=history,
        times=events.times[first],
        context=events.context.take(first),
        target_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        target_items=(pair % span).astype(np.int32),
        target_actions=actions,
        target_weights=weights,
    )
    return requests.take(kept)


def concat_requests(parts: list[Requests]) -> Requests:
    """Requests of several buckets as one."""
    assert parts
    return Requests(
        users=concat_users([p.users for p in parts]),
        history=concat_events([p.history for p in parts]),
        times=np.concatenate([p.times for p in parts]),
        context=concat_contexts([p.context for p in parts]),
        target_offsets=concat_offsets([p.target_offsets for p in parts if p.target_offsets is not None]),
        target_items=np.concatenate([p.target_items for p in parts if p.target_items is not None]),
        target_actions=_concat_known([p.target_actions for p in parts]),
        target_weights=_concat_known([p.target_weights for p in parts]),
    )


def validation_requests(data: PreparedData, limit: int) -> Requests | None:
    """Requests of the validation split, at most `limit` (taken at even distances); None where it is empty."""
    buckets = range(len(data.bucket_paths))
    histories = (histories_from_table(data.read_bucket(bucket), data.features, data.kinds) for bucket in buckets)
    return join_requests([validation_share(part, data, limit) for part in histories], limit)


def validation_share(histories: Histories, data: PreparedData, limit: int) -> Requests:
    """The validation requests of one bucket of `data`, at most its share of `limit`.

    Where values or actions of a weight below 0 say what is liked, the targets are the liked ones alone, because a training chooses by them.
    """
    requests = split_requests(histories, schema.VALID, repeats=data.spec.split.repeats)
    if data.kinds.are_judged:
        assert requests.target_weights is not None
        return requests.with_targets(requests.target_weights > 0).evenly(-(-limit // len(data.bucket_paths)))
    requests = dataclasses.replace(requests, target_weights=None)
    return requests.evenly(-(-limit // len(data.bucket_paths)))


def join_requests(parts: list[Requests], limit: int) -> Requests | None:
    """Requests of several buckets, at most `limit` (taken at even distances); None where there are none."""
    some = [part for part in parts if len(part)]
    return concat_requests(some).evenly(limit) if some else None


def _concat_known(parts: list[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
