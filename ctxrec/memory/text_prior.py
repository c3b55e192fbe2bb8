"""What texts alone say of pairs of items: the prior of the item memory, as a product of two narrow matrices.

Legend: I items, C width of text vectors, N and M some items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TextPrior:
    """Weights between items whose texts explain each other: EASE of the text vectors.

    EASE (Steck, 2019, https://arxiv.org/abs/1905.03375) of the C axes of the vectors T, as if each axis were a user,
    takes the inverse of T T' + ridge * 1. By the identity of Woodbury this needs an inverse of C rows alone: with
    M = (T' T + ridge * 1)^-1 and H = T M T', the weights are H_ij / (1 - H_jj) off the diagonal, and 0 on it.
    The matrix of all pairs is never made.

    Attributes:
        left_IC, right_IC: float32; off the diagonal, the weights are `left_IC @ right_IC.T`. An item without text has rows
            of zeros, so it has no weights.
    """

    left_IC: np.ndarray
    right_IC: np.ndarray

    @staticmethod
    def of(text_IC: np.ndarray, *, ridge: float) -> TextPrior:
        """The prior of text vectors of unit length (`ctxrec.memory.text_similarity.reduced`); `ridge` is above 0."""
        width = text_IC.shape[1]
        inverse_CC = np.linalg.inv((text_IC.T @ text_IC).astype(np.float64) + ridge * np.eye(width))
        left_IC = (text_IC @ inverse_CC).astype(np.float32)
        itself_I = (left_IC * text_IC).sum(1)
        return TextPrior(left_IC, (text_IC / (1 - itself_I)[:, None]).astype(np.float32))

    def take(self, items: np.ndarray) -> TextPrior:
        """The prior of these items alone, in this order; the other texts still count in their weights."""
        return TextPrior(self.left_IC[items], self.right_IC[items])

    def rows(self, items: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How much the texts of some items speak for others: float32 [N, M], 0 for the item itself.

        Args:
            items: positions, [N].
            columns: positions of the others in rising order, [M].
        """
        made = self.left_IC[items] @ self.right_IC[columns].T
        made[items[:, None] == columns] = 0
        return made
