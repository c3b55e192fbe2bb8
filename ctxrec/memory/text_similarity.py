"""Similarity of items by their text vectors: to the latest texts of a history, and to items without events.

Legend: N requests, I items, H encoder width, C reduced width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import Events
from ctxrec.data.vectors import normalised, principal_axes


@dataclass(frozen=True)
class TextSimilarityParams:
    """Tuned numbers and limits of text similarity. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        decay: weight of a text, relative to the text one step later in the history. Other decays did not improve the
            likelihood of the validation events on any data set of the lab book.
        last: number of the latest texts of a history that count. No measurement supports it.
        num_proxies: number of proxies of an item without events. No measurement supports it.
        sharpness: the weight of a proxy is proportional to exp(sharpness * cosine). No measurement supports it.
        cosines_at_once: limit of memory: 64 MB of float32.
        max_pairs: limit of time: with more pairs of items without and with events, items without events have no proxies.
    """

    decay: float = 0.7
    last: int = 10
    num_proxies: int = 5
    sharpness: float = 10.0
    cosines_at_once: int = 1 << 24
    max_pairs: int = 1 << 36


TEXT_SIMILARITY = TextSimilarityParams()


def text_axes(vectors_IH: np.ndarray, present_I: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre [H] and principal axes [H, C] of the text vectors.

    Args:
        vectors_IH: vectors of an encoder.
        present_I: whether an item has a text; the others do not count. All axes are 0 where no item has one.
        width: C, at most.
    """
    shown = vectors_IH[present_I.astype(bool)]
    num_axes = min(width, vectors_IH.shape[1])
    if not len(shown):
        return np.zeros(vectors_IH.shape[1], np.float32), np.zeros((vectors_IH.shape[1], num_axes), np.float32)
    centre_H = shown.mean(0)
    return centre_H, principal_axes(shown - centre_H, width)


def on_axes(vectors_IH: np.ndarray, present_I: np.ndarray, centre_H: np.ndarray, axes_HC: np.ndarray) -> np.ndarray:
    """Text vectors on the axes of `text_axes`, of unit length; 0 where there is no text. float32 [I, C]"""
    has_text = present_I.astype(bool)
    made = np.zeros((len(vectors_IH), axes_HC.shape[1]), np.float32)
    made[has_text] = normalised((vectors_IH[has_text] - centre_H) @ axes_HC)
    return made


def reduced(vectors_IH: np.ndarray, present_I: np.ndarray, width: int) -> np.ndarray:
    """Text vectors on their own principal axes (`text_axes`, `on_axes`): float32 [I, C]."""
    return on_axes(vectors_IH, present_I, *text_axes(vectors_IH, present_I, width))


def history_weights(
    history: Events, num_items: int, *, decay: float, last: int | None = None, speaks_A: np.ndarray | None = None
) -> sp.csr_array:
    """Each history as weights of items: sparse float32 [N, I].

    The weight of an item is the sum of decay ** age over its events; the latest event has age 0. With `last`, only the
    latest events of a history count, so many of them. With `speaks_A`, each event counts what it says (`spoken`).
    """
    age = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.items))
    weights = (decay**age).astype(np.float32)
    if last is not None:
        weights[age >= last] = 0
    if speaks_A is not None:
        weights *= spoken(history, speaks_A)
    shape = (len(history.lengths), num_items)
    matrix = sp.csr_array((weights, history.items, history.offsets), shape=shape, copy=True)
    matrix.sum_duplicates()
    return matrix


def spoken(history: Events, speaks_A: np.ndarray) -> np.ndarray:
    """How much each event speaks for items like its own: float32 [E].

    That is `speaks_A` (float32, by the code of an event) of the latest event of the row's item, because somebody who rates
    an item again has changed their mind about it.
    """
    span = int(history.items.max(initial=0)) + 1
    pair = np.repeat(np.arange(len(history.lengths)), history.lengths) * span + history.items
    _, from_end, group = np.unique(pair[::-1], return_index=True, return_inverse=True)
    latest = len(pair) - 1 - from_end
    return speaks_A[history.actions[latest]][group[::-1]]


def history_queries(
    history: Events,
    text_IC: np.ndarray,
    speaks_A: np.ndarray | None = None,
    *,
    params: TextSimilarityParams = TEXT_SIMILARITY,
) -> np.ndarray:
    """Weighted mean of the latest texts of each history, of unit length: float32 [N, C], 0 without any text.

    With `speaks_A`, each event counts what it says (`spoken`), in units of the length that the mean has when all count 1:
    the query of a history of dislikes alone is short, and points away from them.
    """
    age = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.items))
    near = np.flatnonzero(age < params.last)
    ends = np.concatenate([[0], np.cumsum(np.minimum(history.lengths, params.last))])
    parts = ((params.decay ** age[near]).astype(np.float32), np.arange(len(near)), ends)
    weights = sp.csr_array(parts, shape=(len(history.lengths), len(near)))
    texts = text_IC[history.items[near]]  # only these rows: the table may be a large view
    mean = weights @ texts
    if speaks_A is None:
        return normalised(mean)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    signed = (weights @ sp.diags_array(spoken(history, speaks_A)[near])) @ texts
    return np.divide(signed, length, out=np.zeros_like(mean), where=length > 0).astype(np.float32)


def proxy_weights(
    text_IC: np.ndarray, known_I: np.ndarray, *, params: TextSimilarityParams = TEXT_SIMILARITY
) -> sp.csr_array:
    """Weights of the proxies of every item: of itself if it is known, else of the known items of nearest text.

    Returns:
        Sparse float32 [I, I]; a row sums to 1, or is 0 for an unknown item without text.
    """
    itself = sp.diags_array(known_I.astype(np.float32)).tocsr()
    asked = np.flatnonzero(~known_I)
    found = nearest_known(text_IC[asked], text_IC, known_I, params=params)
    lengths = np.zeros(len(text_IC), np.int64)
    lengths[asked] = np.diff(found.indptr)
    parts = (found.data, found.indices, np.concatenate([[0], np.cumsum(lengths)]))
    return sp.csr_array(itself + sp.csr_array(parts, shape=itself.shape), dtype=np.float32)


def nearest_known(
    asked_NC: np.ndarray,
    text_IC: np.ndarray,
    known_I: np.ndarray,
    *,
    params: TextSimilarityParams = TEXT_SIMILARITY,
) -> sp.csr_array:
    """For each asked text the known items of nearest text, with weights that sum to 1.

    Args:
        asked_NC: float32 text vectors; a row of zeros is an item without text, for which nothing is found.
        text_IC: float32 text vectors of the catalogue.
        known_I: bool, which items of the catalogue have events.

    Returns:
        float32 [N, I]; all zeros where the pairs to compare are more than `params.max_pairs`.
    """
    shape = (len(asked_NC), len(text_IC))
    asked = np.flatnonzero(np.abs(asked_NC).sum(1) > 0)
    answers = np.flatnonzero(known_I & (np.abs(text_IC).sum(1) > 0))
    num = min(params.num_proxies, len(answers))
    if not num or not len(asked) or len(asked) * len(answers) > params.max_pairs:
        return sp.csr_array(shape, dtype=np.float32)
    nearest, weights = nearest_texts(asked_NC[asked], text_IC[answers], num, params=params)
    where = (np.repeat(asked, num), answers[nearest].ravel())
    return sp.csr_array(sp.coo_array((weights.ravel(), where), shape=shape), dtype=np.float32)


def nearest_texts(
    asked_NC: np.ndarray, answers_MC: np.ndarray, num: int, *, params: TextSimilarityParams = TEXT_SIMILARITY
) -> tuple[np.ndarray, np.ndarray]:
    """The `num` rows of `answers_MC` with the nearest text for each asked one (int64 [N, num]), and their weights.

    The weights (float32 [N, num]) are a softmax of the cosines and sum to 1.
    """
    found, weights = [np.zeros((0, num), np.int64)], [np.zeros((0, num), np.float32)]
    rows = max(params.cosines_at_once // len(answers_MC), 1)
    for start in range(0, len(asked_NC), rows):
        cosine = asked_NC[start : start + rows] @ answers_MC.T
        nearest = np.argpartition(-cosine, num - 1, axis=1)[:, :num]
        near = np.take_along_axis(cosine, nearest, axis=1)
        odds = np.exp(params.sharpness * (near - near.max(1, keepdims=True)))
        found.append(nearest)
        weights.append(odds / odds.sum(1, keepdims=True))
    return np.concatenate(found), np.concatenate(weights)
