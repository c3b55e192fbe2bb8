"""A self-supervised start of the item tower: items that keep company in histories begin near each other.

What skip-gram with negative sampling learns from histories is a factorisation of the shifted positive pointwise mutual
information of items (Levy and Goldberg, 2014); here it is had in one step, by the largest eigenvalues. The text's
projection starts as the ridge regression of these vectors on the texts, so that an item without events begins
where its text says that it would be, and the ID starts as what the text leaves over.

Legend: I items, D width of item vectors, H encoder width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import eigsh

from ctxrec.data.log_statistics import TrainingEvents, count_followers
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.item_tower import ItemTower

WINDOW = 5  # steps between two items of a history that count as company, weighed by 1 / steps
_SHIFT = 1.0  # log of the number of negatives of a skip-gram
_LENGTH = 1.0  # of a vector


def company(parts: Iterable[TrainingEvents], num_items: int) -> sp.csr_array:
    """How often two items stood near each other in a history, the nearer the more: symmetric, float32 [I, I]."""
    total = sp.csr_array((num_items, num_items), dtype=np.float32)
    for part in parts:
        found = count_followers(part, num_items, steps=WINDOW)
        total = total + found + found.T
    total.setdiag(0)
    total.eliminate_zeros()
    return sp.csr_array(total)


def company_vectors(company_II: sp.csr_array, width: int, *, seed: int) -> np.ndarray:
    """Vectors whose products follow the mutual information of items, of unit length or 0: float32 [I, D].

    Fewer than `width` directions that say something leave the others 0.
    """
    num_items = company_II.shape[0]
    table = company_II.tocoo()
    of_item = np.asarray(company_II.sum(1)).ravel()
    total = max(float(of_item.sum()), 1e-9)
    information = np.log(table.data * total / (of_item[table.row] * of_item[table.col])) + _SHIFT
    more = information > 0
    matrix = sp.csr_array((information[more], (table.row[more], table.col[more])), shape=company_II.shape)
    num = min(width, num_items - 1)
    vectors = np.zeros((num_items, width), np.float32)
    if matrix.nnz and num > 0:
        start = np.random.default_rng(seed).standard_normal(num_items)
        # Negative ones would bring items near that are not: products of real vectors have none.
        values, axes = eigsh(matrix.astype(np.float64), k=num, which="LA", v0=start)
        vectors[:, :num] = axes * np.sqrt(np.maximum(values, 0))
        vectors[np.diff(matrix.indptr) == 0] = 0  # theirs are rounding errors
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@torch.no_grad()
def start_warm(tower: ItemTower, items: ItemTensors, text: TextTable | None, vectors_ID: np.ndarray) -> None:
    """Set the start of a tower's text projection and ID vectors."""
    wanted_ID = torch.from_numpy(vectors_ID).to(items.trained_I.device) * _LENGTH
    known_I = items.trained_I * (wanted_ID.abs().sum(1) > 0)
    if tower.text is not None and text is not None:
        texts_IH = (text.vectors_IH - text.mean_H) / text.scale_H * text.present_I[:, None]
        shown_IH = texts_IH * known_I[:, None]
        ridge = torch.eye(texts_IH.shape[1], device=texts_IH.device) * known_I.sum().clamp(min=1)
        weight_HD = torch.linalg.solve(shown_IH.T @ shown_IH + ridge, shown_IH.T @ wanted_ID)
        tower.text.weight.copy_(weight_HD.T)
        tower.text.bias.zero_()
        wanted_ID = wanted_ID - texts_IH @ weight_HD
    if tower.id is not None:
        tower.id.weight.zero_()
        tower.id.weight[items.id_rows_I] = (wanted_ID * known_I[:, None]).to(tower.id.weight.dtype)
