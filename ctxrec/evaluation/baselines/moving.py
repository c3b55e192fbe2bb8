"""Baselines that move with the stream: popularity of the last hour, day and week, and what follows an item now.

Each reads the stream up to a request's time less the delay, as the live sources do, and is asked in the order of time.

Legend: N requests, I items.
"""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np

from ctxrec.data.events import US
from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.evaluation.baselines.markov import last_items

HOUR_US, DAY_US = 3_600 * US, 86_400 * US
WINDOWS = {"popularity_1h": HOUR_US, "popularity_1d": DAY_US, "popularity_1w": 7 * DAY_US}


class MovingPopularity:
    """The number of events of an item in a window that ends at the request's time less the delay."""

    def __init__(self, stream: Stream, num_items: int, window_us: int, delay_us: int = 0) -> None:
        self._stream, self._window_us, self._delay_us = stream, window_us, delay_us
        self._counts_I = np.zeros(num_items, np.float32)
        self._entered = self._left = 0

    def scores(self, requests: Requests) -> np.ndarray:
        """Counts of the window of each request: float32 [N, I]."""
        found = np.empty((len(requests), len(self._counts_I)), np.float32)
        for n in np.argsort(requests.times, kind="stable").tolist():
            end = int(requests.times[n]) - self._delay_us
            stop, first = self._stream.before(end), self._stream.before(end - self._window_us)
            np.add.at(self._counts_I, self._stream.items[self._entered : stop], 1)
            np.subtract.at(self._counts_I, self._stream.items[self._left : first], 1)
            self._entered, self._left = max(stop, self._entered), max(first, self._left)
            found[n] = self._counts_I
        return found


class MovingFollowers:
    """How often an item came soon after each of the last items of the history, so far: item-to-item of the session.

    The counts are those of a Markov chain over the last ten items (`ctxrec.evaluation.baselines.markov`), with what
    followed at most five steps later in the same session. Popularity of the last day breaks ties.
    """

    def __init__(self, stream: Stream, num_items: int, delay_us: int = 0, *, gap_us: int = 30 * 60 * US) -> None:
        self._stream, self._num_items, self._delay_us, self._gap_us = stream, num_items, delay_us, gap_us
        self._next = 0
        self._last: dict[int, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=5))
        self._followers: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._popular = MovingPopularity(stream, num_items, DAY_US, delay_us)

    def scores(self, requests: Requests) -> np.ndarray:
        """Weighted counts: float32 [N, I]."""
        popular_NI = self._popular.scores(requests)
        found = popular_NI / (popular_NI.max(1, keepdims=True) + 1) * np.float32(1e-3)
        lasts = last_items(requests, num=10, decay=0.7, num_items=self._num_items)
        for n in np.argsort(requests.times, kind="stable").tolist():
            self._advance(self._stream.before(int(requests.times[n]) - self._delay_us))
            span = slice(lasts.indptr[n], lasts.indptr[n + 1])
            for item, weight in zip(lasts.indices[span].tolist(), lasts.data[span].tolist(), strict=True):
                row = self._followers.get(item)
                if row:
                    found[n, list(row)] += np.float32(weight) * np.fromiter(row.values(), np.float32, len(row))
        return found

    def _advance(self, stop: int) -> None:
        part = slice(self._next, stop)
        columns = self._stream.users[part], self._stream.items[part], self._stream.times[part]
        for user, item, at_us in zip(*(column.tolist() for column in columns), strict=True):
            before = self._last[user]
            for steps, (earlier, then_us) in enumerate(reversed(before), 1):
                if at_us - then_us <= self._gap_us and earlier != item:
                    self._followers[earlier][item] += 1 / steps
            before.append((item, at_us))
        self._next = max(stop, self._next)
