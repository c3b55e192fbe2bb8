"""Live sources over a log that is played again: what each request of it could know, and nothing later.

Legend: N requests, I items, H half-lives.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import US
from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.memory.live_counts import LiveCounts, once_a_day
from ctxrec.memory.live_sources import LiveSources, source_values


class Replayed:
    """Feeds a stream to counts as far as a moment may know it; time goes forward only. A user counts once a day for an item.

    Args:
        stream: all events.
        counts: take the events.
        delay_us: how late an event becomes known, microseconds.
    """

    def __init__(self, stream: Stream, counts: LiveCounts, *, delay_us: int = 0) -> None:
        self._stream = stream.where(once_a_day(stream.users, stream.items, stream.times))
        self.counts, self._next, self._delay_us = counts, 0, delay_us

    def advance(self, at_us: int) -> None:
        """Count the events that are known at a time: those before it, less the delay."""
        stop = self._stream.before(at_us - self._delay_us)
        if stop > self._next:
            part = slice(self._next, stop)
            self.counts.add(self._stream.items[part], self._stream.times[part])
            self._next = stop

    def newest_us(self, times_us: np.ndarray) -> np.ndarray:
        """Times of the latest events that are known at these times (microseconds): int64 [N], -1 without any."""
        known = np.searchsorted(self._stream.times, times_us - self._delay_us, side="left")
        return np.where(known > 0, self._stream.times[np.maximum(known - 1, 0)], -1)

    def each(self, times_us: np.ndarray) -> Iterator[int]:
        """Places of requests (int64 [N] times) in the order of their times; at each the counts are as its request may
        know them."""
        for n in np.argsort(times_us, kind="stable").tolist():
            self.advance(int(times_us[n]))
            yield n


class ReplayedSources:
    """Live scores of requests at their own times (`ctxrec.memory.live_sources.AddsNow`); asked in the order of time."""

    def __init__(self, replayed: Replayed, sources: LiveSources) -> None:
        assert replayed.counts is sources.counts
        self._replayed, self._sources = replayed, sources

    def are_current(self, times_us: np.ndarray) -> np.ndarray:
        """See `AddsNow`: those that come soon enough after the latest event that they may know."""
        newest = self._replayed.newest_us(times_us)
        longest_us = round(self._sources.weights.half_lives_s[-1] * US)
        return (newest >= 0) & (times_us <= newest + longest_us)

    def scores(self, requests: Requests, num_items: int) -> sp.csr_array:
        """See `AddsNow`."""
        rows: list[sp.csr_array | None] = [None] * len(requests)
        for n in self._replayed.each(requests.times):
            rows[n] = self._sources.scores(requests.take(np.array([n])), num_items)
        if not rows:
            return sp.csr_array((0, num_items), dtype=np.float32)
        return sp.csr_array(sp.vstack(rows, format="csr"))


def source_features(replayed: Replayed, times_us: np.ndarray, pool: np.ndarray, num_items: int) -> np.ndarray:
    """Every live source of requests at their times, for the items of the pool (int64 [I] positions): float32 [N, I, H]."""
    found = np.zeros((len(times_us), len(pool), len(replayed.counts.params.half_lives_s)), np.float32)
    place = np.full(max(num_items, replayed.counts.num_items), -1)
    place[pool] = np.arange(len(pool))
    for n in replayed.each(times_us):
        items, counts_HA = replayed.counts.recent(int(times_us[n]))
        inside = place[items] >= 0
        found[n, place[items[inside]]] = source_values(counts_HA[:, inside]).T
    return found
