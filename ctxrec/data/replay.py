"""The events of a split as requests at their own times, and the stream of all events that passes by meanwhile.

Legend: N requests, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import Histories, action_sets
from ctxrec.data.requests import Requests


@dataclass(frozen=True)
class Stream:
    """Events of all users in the order of their times; those of one time in the order in which they were joined."""

    users: np.ndarray  # int64 [E] numbers of the users
    items: np.ndarray  # int32 [E]
    times: np.ndarray  # int64 [E] microseconds

    def __len__(self) -> int:
        return len(self.times)

    @staticmethod
    def of(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> Stream:
        """The stream of events in any order; `times` are microseconds."""
        order = np.argsort(times, kind="stable")
        return Stream(users[order], items[order], times[order])

    def where(self, keep: np.ndarray) -> Stream:
        """Those of the events that a mask keeps, bool [E]."""
        return Stream(self.users[keep], self.items[keep], self.times[keep])

    def before(self, at_us: int) -> int:
        """How many events come before a time, not those at it."""
        return int(np.searchsorted(self.times, at_us, side="left"))


class StreamParts:
    """Collects the stream of all events bucket by bucket, without those of negative feedback, as the service counts them."""

    def __init__(self) -> None:
        self._users, self._items, self._times = (
            [np.zeros(0, np.int64)],
            [np.zeros(0, np.int32)],
            [np.zeros(0, np.int64)],
        )
        self._first = 0

    def add(self, histories: Histories, *, until: int = schema.TEST) -> None:
        """Add the events of the users of a bucket, those of later splits than `until` left out."""
        kept = histories.split <= until
        if histories.weights is not None:
            kept = kept & (histories.weights >= 0)
        rows = np.repeat(self._first + np.arange(len(histories)), histories.events.lengths)
        self._users.append(rows[kept])
        self._items.append(histories.events.items[kept])
        self._times.append(histories.events.times[kept])
        self._first += len(histories)

    def stream(self) -> Stream:
        """All that was added."""
        return Stream.of(np.concatenate(self._users), np.concatenate(self._items), np.concatenate(self._times))


def event_requests(histories: Histories, split: int, *, repeats: bool, delay_us: int = 0) -> Requests:
    """One request for each moment at which a user has eligible events of `split`, in the context of the first of them.

    Its targets are the distinct items of that moment: the lines of one invoice are targets of one request.

    Args:
        histories: of some users.
        split: `schema.VALID` or `schema.TEST`.
        repeats: whether an item that the user had before may be a target, known or not.
        delay_us: how late events become known, microseconds: a history ends so long before its request.
    """
    events = histories.events
    of_row = np.repeat(np.arange(len(histories)), events.lengths)
    kept = (histories.split == split) & _is_target(of_row, events.items, events.times, repeats=repeats)
    at = np.flatnonzero(kept)
    rows, times = of_row[at], events.times[at]
    is_first = np.ones(len(at), bool)
    is_first[1:] = (np.diff(rows) != 0) | (np.diff(times) != 0)
    first = at[is_first]
    starts = events.offsets[of_row[first]]
    return Requests(
        users=histories.users.take(of_row[first]),
        history=events.cut(starts, _stops(events.times, starts, first, delay_us)),
        times=events.times[first],
        context=events.context.take(first),
        target_offsets=np.append(np.flatnonzero(is_first), len(at)).astype(np.int64),
        target_items=events.items[at],
        target_actions=action_sets(events.actions[at]),
        target_weights=None if histories.weights is None else histories.weights[at],
    )


def in_order(requests: Requests) -> Requests:
    """The requests in the order of their times."""
    return requests.take(np.argsort(requests.times, kind="stable"))


def _is_target(of_row: np.ndarray, items: np.ndarray, times: np.ndarray, *, repeats: bool) -> np.ndarray:
    """Events that may be targets, bool [E]: the first one of a user's item, of all times or of its moment."""
    keys = (of_row, items, times) if repeats else (of_row, items)
    order = np.lexsort((np.arange(len(items)), *reversed(keys)))
    is_first = np.ones(len(items), bool)
    is_first[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    first = np.zeros(len(items), bool)
    first[order[is_first]] = True
    return first


def _stops(times: np.ndarray, starts: np.ndarray, at: np.ndarray, delay_us: int) -> np.ndarray:
    """Where the known history of the event at each place ends: before its time less the delay. int64 [N]"""
    stops = np.empty(len(at), np.int64)
    for n, (start, place) in enumerate(zip(starts.tolist(), at.tolist(), strict=True)):
        stops[n] = start + int(np.searchsorted(times[start:place], times[place] - delay_us, side="left"))
    return stops
