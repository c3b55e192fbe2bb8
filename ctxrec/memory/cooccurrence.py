"""Pairs of items from the log: items of the same users, and items that follow each other.

For items of the same users EASE ranks far better than cosines, but it works on a full matrix, and its time grows with
the cube of the number of items. In a larger catalogue EASE therefore gets the most frequent items alone, and all pairs
with a rare item get a cosine, damped towards popular items and scaled to EASE's weights.

Texts are the prior of these weights: EASE is pulled towards what the texts alone say of a pair, so texts decide where the
log says little. Pairs with a rare item get the same pull as an addend.

Legend: U users, I items, F frequent items, C width of text vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.log_statistics import LogStatistics, users_of_both
from ctxrec.memory.ease import EASE
from ctxrec.memory.text_prior import TextPrior


@dataclass(frozen=True)
class CooccurrenceParams:
    """Tuned numbers and limits of the pairs of items. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        ridge: weight of EASE's ridge penalty. Of 100, 500 and 2000, 500 is best on Online Retail (test NDCG@10 .1181,
            .1241, .1217) and within .005 of the best on every other data set of the lab book.
        text_share: share of the ridge that pulls the weights towards those of the texts instead of towards 0. With .25 and
            `text_ridge` 20, the likelihood of the validation events is better than without texts on all data sets of the
            lab book, and within .004 of the best of 25 pairs of values on each.
        text_ridge: weight of the ridge penalty of the texts' own weights (`ctxrec.memory.text_prior`).
        damping: EASE's weights are multiplied by exp(-damping * standardised log popularity) of the item that they speak
            for. Of 0, 0.75, 1 and 1.25, 0.75 has the best likelihood of the validation events on every data set.
        cosine_power: power of the number of the other item's users in a cosine; the usual cosine has 0.5, and more is
            less for popular items. Of 0.5, 0.75 and 1, 0.75 has the best likelihood on all but two data sets.
        ease_items: EASE is computed for so many of the most frequent items. It is a limit of time and memory: the matrix
            takes 800 MB, and that of 13,618 items (trivago) took 70 s on one core.
        neighbours: pairs that are kept for each item. No measurement supports it; damping before this selection gained
            more than damping after it.
        max_pairs, min_neighbours: limit of memory: a catalogue keeps at most `max_pairs` pairs (400 MB), so a very large
            one keeps fewer neighbours for each item, and at least `min_neighbours`.
        cosines_at_once: limit of memory: 32 MB of values and positions.
        max_text_pairs: limit of time: with more pairs of items, a rare item gets the pull of the texts towards the
            frequent items alone.
    """

    ridge: float = 500.0
    text_share: float = 0.25
    text_ridge: float = 20.0
    damping: float = 0.75
    cosine_power: float = 0.75
    ease_items: int = 10_000
    neighbours: int = 256
    max_pairs: int = 50_000_000
    min_neighbours: int = 16
    cosines_at_once: int = 1 << 22
    max_text_pairs: int = 1 << 34


COOCCURRENCE = CooccurrenceParams()


def pairs_of_users(
    log: LogStatistics,
    popularity_I: np.ndarray,
    text_IC: np.ndarray | None = None,
    *,
    params: CooccurrenceParams = COOCCURRENCE,
) -> sp.csr_array:
    """How much having an item (row) speaks for another one (column): 0 or more, the largest values of each row.

    Pairs of the `ease_items` most frequent items have the positive weights of EASE with the texts as prior
    (`ctxrec.memory.ease`), times exp(-damping * `popularity_I`) of the column's item. All other pairs have damped cosines:
    the number of users of both items, over the number of users of the row's item to the power of 0.5 and of the column's
    item to `cosine_power`. A factor scales the cosines so that those of the frequent items would sum to their EASE
    weights. The pull of the texts is added to them (`_other_texts`).

    Args:
        log: statistics of the training events.
        popularity_I: standardised logarithm of events.
        text_IC: text vectors of unit length; None: no prior.
        params: tuned numbers and limits.

    Returns:
        float32 [I, I]
    """
    num_items = len(popularity_I)
    prior = None if text_IC is None else TextPrior.of(text_IC, ridge=params.text_ridge)
    frequent = np.sort(np.argsort(-log.item_counts, kind="stable")[: params.ease_items])
    counts_FF = users_of_both(log.users_items[:, frequent])
    ease = EASE(weight=params.ridge, pull=params.text_share * params.ridge)
    ease_FF = ease.fit(counts_FF, None if prior is None else prior.take(frequent)).weights
    del ease
    np.maximum(ease_FF, 0, out=ease_FF)
    ease_FF *= np.exp(-params.damping * popularity_I[frequent])
    kept_FF = largest_of_rows(sp.csr_array(ease_FF), params=params)
    if len(frequent) == num_items:
        return kept_FF
    pairs = kept_FF.tocoo()
    ease_II = sp.coo_array((pairs.data, (frequent[pairs.row], frequent[pairs.col])), shape=(num_items, num_items))
    users_F = np.maximum(np.diagonal(counts_FF), 1)
    counts_FF /= np.outer(users_F**0.5, users_F**params.cosine_power)
    np.fill_diagonal(counts_FF, 0)
    of_cosines = largest_of_rows(sp.csr_array(counts_FF), params=params).sum()
    scale = np.float32(kept_FF.sum() / of_cosines if of_cosines > 0 else 1)
    frequent_I = np.isin(np.arange(num_items), frequent)
    total_II = ease_II.tocsr() + _other_cosines(log, frequent_I, params) * scale
    if prior is not None:
        total_II = total_II + _other_texts(log, prior, popularity_I, frequent_I, params)
    return largest_of_rows(total_II, params=params)


def pairs_in_order(log: LogStatistics, *, params: CooccurrenceParams = COOCCURRENCE) -> sp.csr_array:
    """How much an item (row) speaks for another one that follows (column): sparse float32 [I, I].

    It is the number of transitions over the square roots of the numbers of events of both items, for the largest values
    of each row.
    """
    factor = sp.diags_array(1 / np.sqrt(np.maximum(log.item_counts, 1, dtype=np.float32)))
    return largest_of_rows(factor @ log.transitions @ factor, params=params)


def _other_cosines(log: LogStatistics, frequent_I: np.ndarray, params: CooccurrenceParams) -> sp.csr_array:
    """The largest damped cosines of each item, for pairs with a rare item: sparse float32 [I, I]."""
    users_IU = log.users_items.T.tocsr()
    num_users_I = np.maximum(_num_users(log), 1)
    left_IU = (sp.diags_array(num_users_I**-0.5) @ users_IU).tocsr()
    right_UI = (log.users_items @ sp.diags_array(num_users_I**-params.cosine_power)).tocsr()
    most_I = np.minimum(users_IU @ np.diff(log.users_items.indptr), len(frequent_I))  # pairs of an item, at most
    block_I = np.cumsum(most_I, dtype=np.int64) // params.cosines_at_once
    made = []
    for block in np.unique(block_I):
        first, stop = np.searchsorted(block_I, block), np.searchsorted(block_I, block, side="right")
        found = left_IU[first:stop] @ right_UI
        row = np.repeat(np.arange(first, stop), np.diff(found.indptr))
        found.data[(row == found.indices) | (frequent_I[row] & frequent_I[found.indices])] = 0
        made.append(largest_of_rows(found, params=params))
    return sp.vstack(made, format="csr")


def _other_texts(
    log: LogStatistics, prior: TextPrior, popularity_I: np.ndarray, frequent_I: np.ndarray, params: CooccurrenceParams
) -> sp.csr_array:
    """The largest pulls of the texts for pairs with a rare item, damped: sparse float32 [I, I].

    EASE with a prior C solves (G + ridge·1) B = G + pull·C off the diagonal. Where the pairs of an item are few, G is
    near its diagonal of numbers of users, and the part of C in B is near pull·C over users + ridge of the row's item.
    """
    num_items = len(frequent_I)
    damping_I = np.exp(-params.damping * popularity_I)
    factor_I = params.text_share * params.ridge / (_num_users(log) + params.ridge)
    columns = np.flatnonzero(frequent_I) if num_items**2 > params.max_text_pairs else np.arange(num_items)
    frequent_M = frequent_I[columns]
    made, step = [], max(params.cosines_at_once // len(columns), 1)
    for start in range(0, num_items, step):
        rows = np.arange(start, min(start + step, num_items))
        pull_NM = prior.rows(rows, columns) * factor_I[rows, None] * damping_I[columns]
        pull_NM[np.ix_(frequent_I[rows], frequent_M)] = 0
        found = sp.csr_array(np.maximum(pull_NM, 0))
        parts = (found.data, columns[found.indices], found.indptr)
        made.append(largest_of_rows(sp.csr_array(parts, shape=(len(rows), num_items)), params=params))
    return sp.vstack(made, format="csr")


def _num_users(log: LogStatistics) -> np.ndarray:
    """How many users have each item: float32 [I]."""
    return np.bincount(log.users_items.indices, minlength=log.users_items.shape[1]).astype(np.float32)


def largest_of_rows(matrix: sp.sparray | np.ndarray, *, params: CooccurrenceParams = COOCCURRENCE) -> sp.csr_array:
    """The largest positive values of each row of an [I, I] matrix: float32 [I, I] with `neighbours` values a row,
    fewer of a very large catalogue."""
    matrix = sp.csr_array(matrix, dtype=np.float32)
    limit = int(np.clip(params.max_pairs // max(matrix.shape[1], 1), params.min_neighbours, params.neighbours))
    kept = matrix.data > 0
    lengths = np.diff(matrix.indptr)
    for row in np.flatnonzero(lengths > limit):
        start, more = matrix.indptr[row], lengths[row] - limit
        smallest = np.argpartition(matrix.data[start : start + lengths[row]], more)[:more]
        kept[start + smallest] = False
    offsets = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_array((matrix.data[kept], matrix.indices[kept], offsets), shape=matrix.shape)
