"""Which items the same users have, and which follow each other.

Of the first, EASE ranks far better than cosines, but works on a full matrix: its time grows with the cube of the
items. Where a catalogue has more than EASE_ITEMS, what is left are rare items, whose pairs a cosine, damped towards
popular items and brought to EASE's scale, tells about.

Legend: U users, I items, F frequent items.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.data.log_statistics import LogStatistics, users_of_both
from ctxrec.memory.ease import EASE

EASE_ITEMS = 10_000  # of the most frequent: a matrix of 800 MB, inverted in half a minute
NEIGHBOURS = 256  # of an item that are kept
RIDGE = 500.0  # weight of EASE's ridge penalty
DAMPING = 0.75  # of EASE's weights towards popular items
COSINE_POWER = 0.75  # of the other item's users in a cosine, which has 0.5; more is less for popular ones

_MOST_PAIRS = 50_000_000  # that are kept of a catalogue (400 MB); a very large one keeps fewer of each item
_FEWEST = 16
_CELLS = 1 << 22  # cosines held at once


def pairs_of_users(log: LogStatistics, popularity_I: np.ndarray) -> sp.csr_array:
    """How much having an item (row) speaks for another one (column), 0 or more, the NEIGHBOURS largest of each row.

    Among the EASE_ITEMS most frequent items: positive weights of EASE (Steck, 2019), times exp(-DAMPING *
    `popularity_I`) of the other. All other pairs: the users of both over those of the item to the power of 0.5 and of
    the other to COSINE_POWER, times what makes such cosines among frequent items sum to what EASE has there.

    Args:
        popularity_I: standardised logarithm of events.

    Returns:
        float32 [I, I]
    """
    num_items = len(popularity_I)
    frequent = np.sort(np.argsort(-log.item_counts, kind="stable")[:EASE_ITEMS])
    counts_FF = users_of_both(log.users_items[:, frequent])
    ease_FF = EASE(weight=RIDGE).fit(counts_FF).weights
    np.maximum(ease_FF, 0, out=ease_FF)
    ease_FF *= np.exp(-DAMPING * popularity_I[frequent])
    kept_FF = nearest(sp.csr_array(ease_FF))
    if len(frequent) == num_items:
        return kept_FF
    pairs = kept_FF.tocoo()
    ease_II = sp.coo_array((pairs.data, (frequent[pairs.row], frequent[pairs.col])), shape=(num_items, num_items))
    users_F = np.maximum(np.diagonal(counts_FF), 1)
    counts_FF /= np.outer(users_F**0.5, users_F**COSINE_POWER)
    np.fill_diagonal(counts_FF, 0)
    of_cosines = nearest(sp.csr_array(counts_FF)).sum()
    scale = np.float32(kept_FF.sum() / of_cosines if of_cosines > 0 else 1)
    return nearest(ease_II.tocsr() + _other_cosines(log, np.isin(np.arange(num_items), frequent)) * scale)


def pairs_in_order(log: LogStatistics) -> sp.csr_array:
    """How much an item (row) speaks for another one to follow (column): the log's transitions over the square root of
    the events of both, the NEIGHBOURS largest of each row. float32 [I, I]"""
    factor = sp.diags_array(1 / np.sqrt(np.maximum(log.item_counts, 1, dtype=np.float32)))
    return nearest(factor @ log.transitions @ factor)


def _other_cosines(log: LogStatistics, frequent_I: np.ndarray) -> sp.csr_array:
    """The largest damped cosines of each item, of the pairs that are not both frequent: float32 [I, I]."""
    users_IU = log.users_items.T.tocsr()
    num_users_I = np.maximum(np.diff(users_IU.indptr), 1).astype(np.float32)
    left_IU = (sp.diags_array(num_users_I**-0.5) @ users_IU).tocsr()
    right_UI = (log.users_items @ sp.diags_array(num_users_I**-COSINE_POWER)).tocsr()
    most_I = np.minimum(users_IU @ np.diff(log.users_items.indptr), len(frequent_I))  # pairs of an item, at most
    block_I = np.cumsum(most_I, dtype=np.int64) // _CELLS
    made = []
    for block in np.unique(block_I):
        first, stop = np.searchsorted(block_I, block), np.searchsorted(block_I, block, side="right")
        found = left_IU[first:stop] @ right_UI
        row = np.repeat(np.arange(first, stop), np.diff(found.indptr))
        found.data[(row == found.indices) | (frequent_I[row] & frequent_I[found.indices])] = 0
        made.append(nearest(found))
    return sp.vstack(made, format="csr")


def nearest(matrix: sp.sparray | np.ndarray) -> sp.csr_array:
    """The NEIGHBOURS largest positive values of each row, float32; fewer where the catalogue (columns) is very large."""
    matrix = sp.csr_array(matrix, dtype=np.float32)
    limit = int(np.clip(_MOST_PAIRS // max(matrix.shape[1], 1), _FEWEST, NEIGHBOURS))
    kept = matrix.data > 0
    lengths = np.diff(matrix.indptr)
    for row in np.flatnonzero(lengths > limit):
        start, more = matrix.indptr[row], lengths[row] - limit
        smallest = np.argpartition(matrix.data[start : start + lengths[row]], more)[:more]
        kept[start + smallest] = False
    offsets = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_array((matrix.data[kept], matrix.indices[kept], offsets), shape=matrix.shape)
