"""The un-tuned encoder alone: cosines of item texts.

Legend: N requests, I items, H width of a text vector."""

from __future__ import annotations

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.evaluation.baselines.markov import last_items


class UntunedEncoder:
    """Content alone: cosine of an item's text vector to a decayed mean of the last items of the history.

    Vectors are centred first, because the vectors of language models crowd in one direction (anisotropy). An item without
    text scores 0, and so does every item for a user without history.
    """

    def __init__(self, *, last: int = 10, decay: float = 0.7) -> None:
        self.last, self.decay = last, decay

    def fit(self, vectors: np.ndarray, present: np.ndarray) -> UntunedEncoder:
        """Take text vectors [I, H] and whether each item has text [I]."""
        has_text = present.astype(bool)
        centred = np.zeros(vectors.shape, np.float32)
        if has_text.any():
            centred[has_text] = vectors[has_text] - vectors[has_text].mean(axis=0)
        self.vectors = _normalised(centred)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """Cosines of item texts to the mean of the latest texts: float32 [N, I]."""
        lasts = last_items(requests, num=self.last, decay=self.decay, num_items=len(self.vectors))
        return _normalised(lasts @ self.vectors) @ self.vectors.T


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
