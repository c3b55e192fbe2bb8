"""The one top-k of the product: the best items of each row of a score matrix.

Equal scores go to the item that comes first in the catalogue. Search, evaluation, validation and the fit of the item
memory all select with this function, so the same scores give the same list everywhere.

Legend: N rows (requests), I items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.core.errors import UserError

NO_ITEM = -1  # fills up a row that has fewer than k eligible items

_BLOCK = 64  # columns of a row that are looked at by their maximum first
_COPIED_AT_ONCE = 1 << 22  # scores that are copied at a time to leave out excluded items (16 MB)


def top_k(scores: np.ndarray, k: int, excluded: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """The k best items of each row, best first; of equal scores the item that comes first in the catalogue.

    The catalogue is never sorted: the best k of a row lie in the k blocks of columns with the highest maxima, and a
    selection within these finds them.

    Args:
        scores: float [N, I]; -inf marks an item that is not eligible. They are not changed.
        k: length of the lists, at least 1.
        excluded: for each row the positions that may not be recommended, such as items of the history.

    Returns:
        int64 [N, k] item positions; `NO_ITEM` fills up where fewer than k items are eligible.

    Raises:
        UserError: a score is NaN or +inf.

    >>> top_k(np.array([[0.5, 0.9, 0.5, 0.5]]), 3).tolist()
    [[1, 0, 2]]
    >>> top_k(np.array([[0.5, 0.9, 0.5]]), 3, [np.array([1])]).tolist()
    [[0, 2, -1]]
    """
    assert k >= 1 and scores.ndim == 2, f"k is {k}, and scores have the shape {scores.shape}"
    num_rows, num_items = scores.shape
    best = np.full((num_rows, k), NO_ITEM, np.int64)
    width = min(k, num_items)
    if not num_rows or not width:
        return best
    if excluded is None:
        best[:, :width] = _select(scores, width)
        return best
    assert len(excluded) == num_rows, f"{len(excluded)} exclusions for {num_rows} rows"
    step = max(1, _COPIED_AT_ONCE // num_items)
    for start in range(0, num_rows, step):
        part, out = scores[start : start + step].copy(), excluded[start : start + step]
        _check(part.max(1))  # here, for an exclusion would hide a NaN
        columns = np.concatenate([np.asarray(e, np.int64) for e in out])
        part[np.repeat(np.arange(len(part)), [len(e) for e in out]), columns] = -np.inf
        best[start : start + step, :width] = _select(part, width)
    return best


def scores_of(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The scores of the items that `top_k` found, [N, k]; -inf for `NO_ITEM`."""
    if not scores.shape[1]:
        return np.full(best.shape, -np.inf, scores.dtype)
    found = np.take_along_axis(scores, np.maximum(best, 0), 1)
    found[best == NO_ITEM] = -np.inf
    return found


def _check(maxima: np.ndarray) -> None:
    """Refuse rows whose maximum is +inf or NaN; a maximum is NaN when any score is."""
    broken = ~(maxima < np.inf)
    if broken.any():
        raise UserError(
            f"{int(broken.sum())} of {len(maxima)} requests have scores that are NaN or infinite; expected finite "
            "scores. The training diverged: lower its learning rates or set train.precision=fp32"
        )


def _select(scores: np.ndarray, width: int) -> np.ndarray:
    """`top_k` for a width of 1 to the number of columns."""
    num_columns = scores.shape[1]
    maxima = None
    if num_columns > 2 * _BLOCK * width:
        maxima = _block_maxima(scores)
        _check(maxima.max(1))
        columns = _in_best_blocks(maxima, width, num_columns)
        values = np.take_along_axis(scores, np.minimum(columns, num_columns - 1), 1)
        values[columns >= num_columns] = -np.inf
    else:
        _check(scores.max(1))
        columns, values = np.broadcast_to(np.arange(num_columns), scores.shape), scores
    candidates = values
    if width < columns.shape[1]:
        top = np.argpartition(values, columns.shape[1] - width, axis=1)[:, columns.shape[1] - width :]
        columns, values = np.take_along_axis(columns, top, 1), np.take_along_axis(values, top, 1)
    order = np.lexsort((columns, -values), axis=-1)
    best, found = np.take_along_axis(columns, order, 1), np.take_along_axis(values, order, 1)
    # A selection takes any of several equal scores at the border of the list: such rows go the plain way.
    border = found[:, -1:]
    unsure = (candidates >= border).sum(1) > width
    if maxima is not None:  # a block that was not looked at reaches the border
        unsure |= (maxima >= border).sum(1) > width
    for n in np.flatnonzero(unsure):
        best[n], found[n] = _select_row(scores[n], width)
    best[found == -np.inf] = NO_ITEM
    return best


def _select_row(scores: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `width` columns of one row and their scores, equal ones by column."""
    border = np.partition(scores, len(scores) - width)[len(scores) - width]
    above = np.flatnonzero(scores > border)
    kept = np.concatenate([above, np.flatnonzero(scores == border)[: width - len(above)]])
    kept = kept[np.lexsort((kept, -scores[kept]))]
    return kept, scores[kept]


def _block_maxima(scores: np.ndarray) -> np.ndarray:
    """The highest score of every block: [N, blocks].

    A block holds columns at equal distances, so that the maxima of neighbours are found together; the last block
    holds the columns that are left over.
    """
    num_rows, num_columns = scores.shape
    whole = num_columns // _BLOCK
    maxima = scores[:, : whole * _BLOCK].reshape(num_rows, _BLOCK, whole).max(1)
    if whole * _BLOCK < num_columns:
        maxima = np.concatenate([maxima, scores[:, whole * _BLOCK :].max(1, keepdims=True)], 1)
    return maxima


def _in_best_blocks(maxima: np.ndarray, width: int, num_columns: int) -> np.ndarray:
    """Columns of the `width` blocks of each row that have the highest maxima; some may lie behind the last column."""
    blocks = np.argpartition(maxima, maxima.shape[1] - width, axis=1)[:, maxima.shape[1] - width :, None]
    whole, members = num_columns // _BLOCK, np.arange(_BLOCK)
    columns = np.where(blocks < whole, blocks + whole * members, whole * _BLOCK + members)
    return columns.reshape(len(maxima), -1)
