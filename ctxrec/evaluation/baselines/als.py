"""Matrix factorisation by alternating least squares, fitted on the training events.

Legend: N requests, I items, F factors."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import threadpoolctl

from ctxrec.data.log_statistics import LogStatistics, history_matrix
from ctxrec.data.requests import Requests


class ALS:
    """Matrix factorisation of implicit feedback by alternating least squares (Hu, Koren and Volinsky, 2008).

    Items are fitted by the package `implicit`. A request's user is solved anew from its history with the
    same equations, (YᵀY + (alpha - 1) YₕᵀYₕ + regularization·1) x = alpha Σ yₕ over the items h of the
    history. A history that was not in the training events therefore gets factors, too.
    """

    def __init__(
        self, *, factors: int, alpha: float = 10.0, regularization: float = 0.05, iterations: int = 20, seed: int = 0
    ) -> None:
        self.factors, self.alpha, self.regularization = factors, alpha, regularization
        self.iterations, self.seed = iterations, seed

    def fit(self, log: LogStatistics) -> ALS:
        from implicit.cpu.als import AlternatingLeastSquares  # takes a second to import

        matrix = log.users_items
        # implicit starts threads itself; more threads of BLAS would only wait for them. It warns of them when it is made.
        with threadpoolctl.threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.iterations,
                random_state=self.seed,
            )
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
        """Inner products of the factors of users and items: float32 [N, I]."""
        return self.users(requests) @ self.items.T
