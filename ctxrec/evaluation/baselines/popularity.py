"""Popularity, over the whole log and of the last seven days.

Legend: N requests, I items."""

from __future__ import annotations

import numpy as np

from ctxrec.data.events import US
from ctxrec.data.log_statistics import LogStatistics
from ctxrec.data.requests import Requests

WEEK_US = 7 * 86_400 * US


class Popularity:
    """The number of training events of an item; its logarithm, log(1 + n), where scores are added up."""

    def __init__(self, *, logarithm: bool = False) -> None:
        self.logarithm = logarithm

    def fit(self, log: LogStatistics) -> Popularity:
        self.counts = np.log1p(log.item_counts) if self.logarithm else log.item_counts.astype(np.float64)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """The same counts for every request: float64 [N, I]."""
        return np.broadcast_to(self.counts, (len(requests), len(self.counts)))


class RecentPopularity:
    """The number of training events of an item in the seven days before the request.

    Where the request comes after the end of the training events (a split by time), the window is the
    last seven days of those.
    """

    def fit(self, log: LogStatistics) -> RecentPopularity:
        self.times, self.items, self.num_items = log.times, log.items, len(log.item_counts)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """Counts of the seven days before each request: float32 [N, I]."""
        scores = np.zeros((len(requests), self.num_items), np.float32)
        if not len(self.times):
            return scores
        ends = np.minimum(requests.times, self.times[-1] + 1)
        first = np.searchsorted(self.times, ends - WEEK_US, side="left")
        stop = np.searchsorted(self.times, ends, side="left")
        # In order of time the window only moves forward: each event enters and leaves it once.
        counts = np.zeros(self.num_items, np.int64)
        entered = left = 0
        for n in np.argsort(ends, kind="stable"):
            counts += np.bincount(self.items[entered : stop[n]], minlength=self.num_items)
            counts -= np.bincount(self.items[left : first[n]], minlength=self.num_items)
            entered, left = stop[n], first[n]
            scores[n] = counts
        return scores
