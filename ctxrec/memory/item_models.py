"""Recommenders that weigh items by items or by latent factors, fitted on the training events (numpy, scipy, implicit).

Legend: N requests, I items, F factors. See `ctxrec.evaluation.baselines.baselines` for what they are fitted on.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.lapack
import scipy.sparse as sp
import threadpoolctl

from ctxrec.data.events import Requests
from ctxrec.evaluation.baselines.baselines import LogStatistics, history_matrix
from ctxrec.metrics.ranking import top_k

_ROWS_AT_ONCE = 1024  # rows of an item-by-item matrix worked on at a time


class ItemKNN:
    """Item-based nearest neighbours: cosine of the users-by-items matrix (Sarwar et al., 2001).

    Each item keeps its `neighbours` most similar ones; an item's score is the sum of its similarities
    to the history.
    """

    def __init__(self, *, neighbours: int) -> None:
        self.neighbours = neighbours

    def fit(self, users_II: np.ndarray) -> ItemKNN:
        """`users_II`: how many users have two items (`ctxrec.evaluation.baselines.baselines.users_of_both`)."""
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
        history = history_matrix(requests.history.offsets, requests.history.items, self.similarity.shape[0])
        return (history @ self.similarity).toarray()


class EASE:
    """Embarrassingly shallow autoencoder in closed form (Steck, 2019, https://arxiv.org/abs/1905.03375).

    With the matrix G of items had by the same user and P = (G + weight·1)^-1, the item-to-item weights
    are B = -P / diag(P) with a zero diagonal; scores are the history times B.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def fit(self, users_II: np.ndarray) -> EASE:
        """`users_II`: how many users have two items, which is G (`ctxrec.evaluation.baselines.baselines.users_of_both`)."""
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


class ALS:
    """Matrix factorisation of implicit feedback by alternating least squares (Hu, Koren and Volinsky, 2008).

    Items are fitted by the package `implicit`. A request's user is solved anew from its history with the
    same equations, (YᵀY + (alpha - 1) YₕᵀYₕ + regularization·1) x = alpha Σ yₕ over the items h of the
    history, so that any history can ask.
    """

    def __init__(
        self, *, factors: int, alpha: float = 10.0, regularization: float = 0.05, iterations: int = 20, seed: int = 0
    ) -> None:
        self.factors, self.alpha, self.regularization = factors, alpha, regularization
        self.iterations, self.seed = iterations, seed

    def fit(self, log: LogStatistics) -> ALS:
        from implicit.cpu.als import AlternatingLeastSquares  # takes a second to import

        model = AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            iterations=self.iterations,
            random_state=self.seed,
        )
        matrix = log.users_items
        # implicit has threads of its own; those of BLAS beside them only wait for each other.
        with threadpoolctl.threadpool_limits(1, "blas"):
            model.fit(sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape), show_progress=False)
        self.items = np.asarray(model.item_factors, np.float32)
        self.gram = self.items.T @ self.items + self.regularization * np.eye(self.factors, dtype=np.float32)
        return self

    def users(self, requests: Requests) -> np.ndarray:
        """Factors of each request's user: float32 [N, F]."""
        history = history_matrix(requests.history.offsets, requests.history.items, len(self.items))
        left = np.repeat(self.gram[None], len(requests), axis=0)
        for n in range(len(requests)):
            had = self.items[history.indices[history.indptr[n] : history.indptr[n + 1]]]
            left[n] += (self.alpha - 1) * (had.T @ had)
        right = self.alpha * (history @ self.items)
        return np.linalg.solve(left, right[..., None])[..., 0]

    def scores(self, requests: Requests) -> np.ndarray:
        return self.users(requests) @ self.items.T
