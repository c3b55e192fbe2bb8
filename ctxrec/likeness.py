"""Likeness of items by their text alone, as an encoder has it: for histories, and for items that nobody had yet.

Legend: N requests, I items, H encoder width, C reduced width.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.events import Events

DECAY, LAST = 0.7, 10  # weight of a step back in the history, and how many of them count
STAND_INS = 5  # items whose texts are nearest to that of an item without events, which speak for it
_SHARPNESS = 10.0  # of their weights, exp(sharpness * cosine)
_CELLS = 1 << 24  # cosines held at once
_MOST_PAIRS = 1 << 36  # of items without and with events; beyond, nobody speaks for the former


def principal_axes(centred_NH: np.ndarray, width: int) -> np.ndarray:
    """The `width` directions in which vectors vary most, by falling variance: float32 [H, width]."""
    _, axes = np.linalg.eigh((centred_NH.T @ centred_NH).astype(np.float64))
    return np.ascontiguousarray(axes[:, ::-1][:, :width], dtype=np.float32)


def reduced(vectors_IH: np.ndarray, present_I: np.ndarray, width: int) -> np.ndarray:
    """Centred text vectors on their principal axes, of unit length; 0 where there is no text. float32 [I, C]"""
    has_text = present_I.astype(bool)
    made = np.zeros((len(vectors_IH), min(width, vectors_IH.shape[1])), np.float32)
    if has_text.any():
        centred = vectors_IH[has_text] - vectors_IH[has_text].mean(0)
        made[has_text] = normalised(centred @ principal_axes(centred, width))
    return made


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; a row of zeros stays."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def history_weights(history: Events, num_items: int, *, decay: float, last: int | None = None) -> sp.csr_array:
    """Each history as weights of items, decay ** age summed over an item's events, age 0 the latest: float32 [N, I]."""
    age = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.items))
    weights = (decay**age).astype(np.float32)
    if last is not None:
        weights[age >= last] = 0
    shape = (len(history.lengths), num_items)
    matrix = sp.csr_array((weights, history.items, history.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    return matrix


def history_queries(history: Events, text_IC: np.ndarray) -> np.ndarray:
    """Directions of the latest texts of each history: float32 [N, C], of unit length or 0."""
    return normalised(history_weights(history, len(text_IC), decay=DECAY, last=LAST) @ text_IC)


def stand_ins(text_IC: np.ndarray, known_I: np.ndarray) -> sp.csr_array:
    """For every item the items that speak for it: itself if it is known, else the known ones of nearest text.

    Returns:
        float32 [I, I]; rows sum to 1, or are 0 for an unknown item without text.
    """
    num_items = len(text_IC)
    has_text = np.abs(text_IC).sum(1) > 0
    asked, answers = np.flatnonzero(~known_I & has_text), np.flatnonzero(known_I & has_text)
    own = sp.diags_array(known_I.astype(np.float32)).tocsr()
    num = min(STAND_INS, len(answers))
    if not num or len(asked) * len(answers) > _MOST_PAIRS:
        return own
    found, weights = [np.zeros((0, num), np.int64)], [np.zeros((0, num), np.float32)]
    rows = max(_CELLS // len(answers), 1)
    for start in range(0, len(asked), rows):
        cosine = text_IC[asked[start : start + rows]] @ text_IC[answers].T
        nearest = np.argpartition(-cosine, num - 1, axis=1)[:, :num]
        near = np.take_along_axis(cosine, nearest, axis=1)
        odds = np.exp(_SHARPNESS * (near - near.max(1, keepdims=True)))
        found.append(answers[nearest])
        weights.append(odds / odds.sum(1, keepdims=True))
    where = (np.repeat(asked, num), np.concatenate(found).ravel())
    others = sp.coo_array((np.concatenate(weights).ravel(), where), shape=(num_items, num_items)).tocsr()
    return sp.csr_array(own + others, dtype=np.float32)
