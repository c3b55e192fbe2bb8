"""Markov chain over the last items of a history.

Legend: N requests, I items."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import ranges
from ctxrec.data.log_statistics import LogStatistics
from ctxrec.data.requests import Requests


class Markov:
    """Markov chain over the last items of the history: how often the item followed each of them.

    The last item has weight 1, and an item that is `age` items older has weight `decay ** age`. With `last` = 1 this is
    the first-order chain. Most pairs never occur, so popularity orders the items of equal count; it is scaled to less
    than the smallest of the counts.

    Shani, Heckerman and Brafman (2005) recommend by such chains.
    """

    def __init__(self, *, last: int = 1, decay: float = 0.7) -> None:
        self.last, self.decay = last, decay

    def fit(self, log: LogStatistics) -> Markov:
        self.transitions = log.transitions
        smallest = self.decay ** (self.last - 1)
        self.tie_breaks = smallest * log.item_counts / (log.item_counts.max(initial=0) + 1)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """Weighted counts of what followed the last items: float [N, I]."""
        lasts = last_items(requests, num=self.last, decay=self.decay, num_items=len(self.tie_breaks))
        return (lasts @ self.transitions).toarray() + self.tie_breaks


def last_items(requests: Requests, *, num: int, decay: float, num_items: int) -> sp.csr_array:
    """The last `num` items of each history with the weights 1, decay, decay², ...: float32 [N, I]."""
    history = requests.history
    starts = np.maximum(history.offsets[1:] - num, history.offsets[:-1])
    index, offsets = ranges(starts, history.offsets[1:])
    age = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(index))
    weights = (decay**age).astype(np.float32)
    return sp.csr_array((weights, history.items[index], offsets), shape=(len(requests), num_items))
