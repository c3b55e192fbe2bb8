"""What the second stage learns from: validation requests, with candidates of a retriever that has not seen them.

The retriever is the run's own as it was before any validation event (`ctxrec.retrieval.pre_validation`).
The bundle itself cannot be used: its towers were refitted on the validation events, so it ranks these events higher
than it will rank future ones, and the second stage would learn to trust its scores blindly. The last training events
cannot be used either, because the towers were trained on them. Only the weights of the blend, two numbers a source, are
those fitted on the validation events; that favours the retriever in the comparison, not the second stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.index.topk import top_k
from ctxrec.retrieval.cross_encoder import Found, of_top

_BATCH = 64  # requests ranked at once


@dataclass(frozen=True)
class Examples:
    """Requests with what the retriever found for them."""

    requests: Requests
    found: Found
    hits: list[np.ndarray]  # of each request: bool, which candidates are targets

    def __len__(self) -> int:
        return len(self.found)

    def take(self, which: np.ndarray) -> Examples:
        return Examples(self.requests.take(which), [self.found[n] for n in which], [self.hits[n] for n in which])

    def with_hit(self) -> np.ndarray:
        """Rows whose order matters, those with a target among the candidates: int64 [such rows]."""
        return np.flatnonzero([hit.any() for hit in self.hits])


def find_candidates(recommender: Any, requests: Requests, num: int) -> Examples:
    """The best `num` items of a recommender for each request, as it would recommend them."""
    found: Found = []
    for start in range(0, len(requests), _BATCH):
        part = requests.take(np.arange(start, min(start + _BATCH, len(requests))))
        scores = recommender.scores(part)
        found += of_top(top_k(scores, num, None if recommender.repeats else part.seen()), scores)
    hits = [np.isin(items, requests.targets(n)) for n, (items, _) in enumerate(found)]
    return Examples(requests, found, hits)
