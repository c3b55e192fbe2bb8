"""The item-to-item weights of EASE, in closed form.

Legend: N requests, I items, C width of text vectors.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.lapack

from ctxrec.data.log_statistics import history_matrix
from ctxrec.data.requests import Requests
from ctxrec.memory.text_prior import TextPrior

_ROWS_AT_ONCE = 1024  # rows of an item-by-item matrix worked on at a time


class EASE:
    """Embarrassingly shallow autoencoder in closed form (Steck, 2019, https://arxiv.org/abs/1905.03375).

    With the matrix G of items had by the same user and P = (G + weight·1)^-1, the item-to-item weights
    are B = -P / diag(P) with a zero diagonal; scores are the history times B.

    With a prior C of the weights, the penalty weight·|B|^2 becomes (weight - pull)·|B|^2 + pull·|B - C|^2, so B is near C
    where the log says little. Its minimum with a zero diagonal is B = pull·P C - P diag((1 + pull·diag(P C)) / diag(P))
    (L3AE; Moon, Park and Lee, 2025, https://arxiv.org/abs/2508.13500).
    """

    def __init__(self, *, weight: float, pull: float = 0.0) -> None:
        assert 0 <= pull <= weight
        self.weight, self.pull = weight, pull

    def fit(self, users_II: np.ndarray, prior: TextPrior | None = None) -> EASE:
        """Find the weights.

        Args:
            users_II: how many users have two items, which is G (`ctxrec.data.log_statistics.users_of_both`).
            prior: C; None: the weights are pulled towards 0 alone.
        """
        matrix = users_II.astype(np.float64)
        matrix[np.diag_indices_from(matrix)] += self.weight
        # Inverse by Cholesky, in place: half the time and a third of the memory of the general one. LAPACK
        # reads columns first, so it gets the transpose, a view, and fills the lower triangle of it.
        factor, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=True, overwrite_a=True)
        assert failed == 0, "G + weight·1 is positive definite"
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)
        assert failed == 0
        self.weights = _symmetric_float32(inverse)
        diagonal = np.diagonal(inverse).astype(np.float32)
        if prior is None:
            self.weights /= -diagonal
        else:
            self._pull(prior, diagonal)
        np.fill_diagonal(self.weights, 0)
        return self

    def _pull(self, prior: TextPrior, diagonal: np.ndarray) -> None:
        """Turn P in `weights` into B, whose diagonal is not 0 yet.

        C is left·right' but for its diagonal c. P C is P left·right' - P diag(c), and c cancels out of B, so P C is never
        made: only P left has to be.
        """
        pulled_IC = self.pull * (self.weights @ prior.left_IC)
        divisor = diagonal / (1 + (pulled_IC * prior.right_IC).sum(1))
        for start in range(0, len(self.weights), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self.weights[rows] /= -divisor
            self.weights[rows] += pulled_IC[rows] @ prior.right_IC.T

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
