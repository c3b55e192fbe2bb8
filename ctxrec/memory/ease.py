"""The item-to-item weights of EASE, in closed form.

Legend: N requests, I items."""

from __future__ import annotations

import numpy as np
import scipy.linalg.lapack

from ctxrec.data.log_statistics import history_matrix
from ctxrec.data.requests import Requests

_ROWS_AT_ONCE = 1024  # rows of an item-by-item matrix worked on at a time


class EASE:
    """Embarrassingly shallow autoencoder in closed form (Steck, 2019, https://arxiv.org/abs/1905.03375).

    With the matrix G of items had by the same user and P = (G + weight·1)^-1, the item-to-item weights
    are B = -P / diag(P) with a zero diagonal; scores are the history times B.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def fit(self, users_II: np.ndarray) -> EASE:
        """`users_II`: how many users have two items, which is G (`ctxrec.data.log_statistics.users_of_both`)."""
        matrix = users_II.astype(np.float64)
        matrix[np.diag_indices_from(matrix)] += self.weight
        # Inverse by Cholesky, in place: half the time and a third of the memory of the general one. LAPACK
        # reads columns first, so it gets the transpose, a view, and fills the lower triangle of it.
        factor, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=True, overwrite_a=True)
        assert failed == 0, "G + weight·1 is positive definite"
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)
        assert failed == 0
        self.weights = _symmetric_float32(inverse)
        self.weights /= -np.diagonal(inverse).astype(np.float32)
        np.fill_diagonal(self.weights, 0)
        return self

    def scores(self, requests: Requests) -> np.ndarray:
        """The history times the item-to-item weights: float32 [N, I]."""
        history = history_matrix(requests.history.offsets, requests.history.items, len(self.weights))
        return history @ self.weights


def _symmetric_float32(lower: np.ndarray) -> np.ndarray:
    """The whole symmetric matrix of a lower triangle, block by block, without a second float64 one."""
    size = len(lower)
    made = np.empty((size, size), np.float32)
    for start in range(0, size, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, size)
        made[start:stop, :start] = lower[start:stop, :start]
        made[:start, start:stop] = lower[start:stop, :start].T
        corner = np.tril(lower[start:stop, start:stop])
        made[start:stop, start:stop] = corner + np.tril(corner, -1).T
    return made
