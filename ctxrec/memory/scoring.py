"""How a request gets its scores: the one interface of calibration, evaluation, batch scoring and the service.

A score is an inner product of the request's query and the item's vector, plus what the item memory remembers of the
history. The first part can be searched by an index; the second part is sparse and never negative.

Legend: N requests, I items, P some of the items, W width of the towers' vectors, D width of the search vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from ctxrec.data.requests import Requests
from ctxrec.memory.blend import Blend
from ctxrec.memory.request_words import ReadTexts, word_queries


class Scorer(Protocol):
    """What scores requests: a trained model, in training or loaded (`ctxrec.retrieval.recommender.Recommender`)."""

    @property
    def vectors(self) -> np.ndarray:
        """Search vectors of all items: float32 [I, D]."""
        ...

    def queries(self, requests: Requests) -> np.ndarray:
        """Queries for `vectors`: float32 [N, D]."""
        ...

    def remembered(self, requests: Requests) -> sp.csr_array | None:
        """What the item memory adds to the inner products: float32 [N, I], 0 or more; None without a memory."""
        ...


@dataclass(frozen=True)
class Scored:
    """What gives requests their scores, computed once for all that reads it.

    queries: float32 [N, D].
    remembered: float32 [N, I], 0 or more; None without a memory.
    """

    queries: np.ndarray
    remembered: sp.csr_array | None

    @staticmethod
    def by(scorer: Scorer, requests: Requests) -> Scored:
        return Scored(scorer.queries(requests), scorer.remembered(requests))

    def take(self, rows: np.ndarray) -> Scored:
        """Those of some of the requests."""
        return Scored(self.queries[rows], None if self.remembered is None else self.remembered[rows])

    def scores_of(self, n: int, items: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Scores that request n gives to items (int64 [P] positions) with these search vectors (float32 [P, D]): float32 [P]."""
        scores = vectors @ self.queries[n]
        return scores if self.remembered is None else scores + self.remembered[[n]][:, items].toarray()[0]


def score_all(scorer: Scorer, requests: Requests) -> np.ndarray:
    """Scores of all items: float32 [N, I], higher is better."""
    made = Scored.by(scorer, requests)
    scores = made.queries @ scorer.vectors.T
    return scores if made.remembered is None else scores + made.remembered.toarray()


def score_items(scorer: Scorer, requests: Requests, items: np.ndarray) -> np.ndarray:
    """Scores of some items (int64 [P] positions) alone: float32 [N, P]."""
    made = Scored.by(scorer, requests)
    scores = made.queries @ scorer.vectors[items].T
    return scores if made.remembered is None else scores + made.remembered[:, items].toarray()


@dataclass(frozen=True)
class BlendScorer:
    """The scores of towers that are still in training.

    Attributes:
        tower_queries: the towers' queries of requests, float32 [N, W].
        item_vectors: the towers' vectors of all items, float32 [I, W].
        blend: weights of all sources; None scores by the towers alone.
        read_texts: vectors of the words of requests; None: words have no effect.
    """

    tower_queries: Callable[[Requests], np.ndarray]
    item_vectors: np.ndarray
    blend: Blend | None
    read_texts: ReadTexts | None = None

    @cached_property
    def vectors(self) -> np.ndarray:
        """See `Scorer`."""
        return self.item_vectors if self.blend is None else self.blend.vectors(self.item_vectors)

    def queries(self, requests: Requests) -> np.ndarray:
        """See `Scorer`."""
        found = self.tower_queries(requests)
        if self.blend is None:
            return found
        return self.blend.queries(found, requests.history, word_queries(requests, self.read_texts, self.blend.heard))

    def remembered(self, requests: Requests) -> sp.csr_array | None:
        """See `Scorer`."""
        return None if self.blend is None else self.blend.remembered(requests.history)


def in_parts(requests: Requests, size: int, ask: Callable[[Requests], np.ndarray], *, width: int) -> np.ndarray:
    """What `ask` gives for at most `size` requests at a time, as one float32 [N, width]."""
    if 0 < len(requests) <= size:
        return ask(requests)
    spans = [np.arange(start, min(start + size, len(requests))) for start in range(0, len(requests), size)]
    return np.concatenate([np.zeros((0, width), np.float32), *(ask(requests.take(rows)) for rows in spans)])
