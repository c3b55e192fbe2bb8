"""Item-based nearest neighbours, fitted on the training events.

Legend: N requests, I items."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.data.log_statistics import history_matrix
from ctxrec.data.requests import Requests
from ctxrec.index.topk import top_k

_ROWS_AT_ONCE = 1024  # rows of an item-by-item matrix worked on at a time


class ItemKNN:
    """Item-based nearest neighbours: cosine of the users-by-items matrix (Sarwar et al., 2001).

    Each item keeps its `neighbours` most similar ones; an item's score is the sum of its similarities
    to the history.
    """

    def __init__(self, *, neighbours: int) -> None:
        self.neighbours = neighbours

    def fit(self, users_II: np.ndarray) -> ItemKNN:
        """`users_II`: how many users have two items (`ctxrec.data.log_statistics.users_of_both`)."""
        num_items = len(users_II)
        norms = np.sqrt(np.maximum(np.diagonal(users_II), 1))
        rows, columns, values = [], [], []
        for start in range(0, num_items, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, num_items)
            block = users_II[start:stop] / norms[start:stop, None] / norms
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            nearest = top_k(block, min(self.neighbours, num_items))
            similarity = np.take_along_axis(block, nearest, axis=1)
            row, place = np.nonzero(similarity)
            rows.append(row + start)
            columns.append(nearest[row, place])
            values.append(similarity[row, place].astype(np.float32))
        self.similarity = sp.coo_array(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(num_items, num_items)
        ).tocsr()
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """Sum of an item's similarities to the items of the history: float32 [N, I]."""
        history = history_matrix(requests.history.offsets, requests.history.items, self.similarity.shape[0])
        return (history @ self.similarity).toarray()
