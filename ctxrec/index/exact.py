"""Exact top-k search by inner product: products of one BLAS call, and no Python for each candidate.

Legend: I items, D width of a vector, N queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from ctxrec.index.topk import NO_ITEM, scores_of, top_k

Allowed = np.ndarray | Sequence[np.ndarray | None] | None  # one mask [I] for all rows, or one a row
Excluded = Sequence[np.ndarray] | None  # item positions, one array a row

_GATHERED_SHARE = 0.2  # of the items: fewer are ranked by themselves, more among all
_SCORES_AT_ONCE = 1 << 24  # floats of a score matrix held at a time (64 MiB)


class ByColumn:
    """Vectors in column-major order, which halves the time of products with few queries; they can grow.

    Args:
        vectors: float32 [I, D], which are copied.
    """

    def __init__(self, vectors: np.ndarray):
        self._columns = np.ascontiguousarray(vectors.T)
        self._num = len(vectors)

    @property
    def vectors(self) -> np.ndarray:
        """[I, D], a view."""
        return self._columns[:, : self._num].T

    def put(self, vectors: np.ndarray, places: np.ndarray) -> None:
        """Copy changed rows, and rows that were added at the end, from `vectors` [I, D]."""
        if len(vectors) > self._columns.shape[1]:
            room = np.empty((self._columns.shape[0], len(vectors) + len(vectors) // 8), np.float32)
            room[:, : self._num] = self._columns[:, : self._num]
            self._columns = room
        self._num = len(vectors)
        self._columns[:, places] = vectors[places].T


def exact_search(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    allowed: Allowed = None,
    excluded: Excluded = None,
    added: sp.csr_array | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`Index.search` by ranking every item, without an index; the same arguments and results.

    `added` (sparse [N, I], no entry twice) is what comes on top of the inner products.
    """
    assert k >= 1, f"k is {k}"
    width = min(k, len(vectors))
    ids, scores = blank(len(queries), width)
    for rows, mask in by_mask(allowed, len(queries)):
        few = mask is not None and mask.sum() < _GATHERED_SHARE * len(mask)
        positions = np.flatnonzero(mask) if mask is not None and few else None
        candidates = vectors if positions is None else _gather(vectors, positions)
        rows_at_once = max(1, _SCORES_AT_ONCE // max(len(candidates), 1))
        for part in np.split(rows, range(rows_at_once, len(rows), rows_at_once)):
            part_scores = queries[part] @ candidates.T
            if added is not None:
                _add(part_scores, added, part, positions)
            if mask is not None and not few:
                part_scores[:, ~mask] = -np.inf
            if excluded is not None:
                _drop(part_scores, [excluded[n] for n in part], positions)
            if not len(candidates):
                continue
            best = top_k(part_scores, min(width, len(candidates)))
            num = best.shape[1]
            ids[part, :num] = best if positions is None else np.where(best < 0, best, positions[best])
            scores[part, :num] = scores_of(part_scores, best)
    return ids, scores


def _gather(vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return vectors[positions] if vectors.flags.c_contiguous else np.take(vectors.T, positions, axis=1).T


def _add(scores: np.ndarray, added: sp.csr_array, rows: np.ndarray, positions: np.ndarray | None) -> None:
    """Add rows of a sparse matrix to dense ones whose columns are `positions` (None: all)."""
    part = added if len(rows) == added.shape[0] else added[rows]
    owner, columns, values = np.repeat(np.arange(len(rows)), np.diff(part.indptr)), part.indices, part.data
    if positions is not None:
        columns, inside = _columns_of(positions, columns)
        owner, columns, values = owner[inside], columns[inside], values[inside]
    scores[owner, columns] += values


def _drop(scores: np.ndarray, excluded: Sequence[np.ndarray], positions: np.ndarray | None) -> None:
    """Set the scores of the excluded items of each row to -inf."""
    owner = np.repeat(np.arange(len(excluded)), [len(e) for e in excluded])
    columns = np.concatenate([*excluded, np.zeros(0, np.int64)]).astype(np.int64)
    if positions is not None:
        columns, inside = _columns_of(positions, columns)
        owner, columns = owner[inside], columns[inside]
    scores[owner, columns] = -np.inf


def _columns_of(positions: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the sorted array `positions` has those of `wanted` that it holds, and which these are."""
    if not len(positions):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(positions, wanted), len(positions) - 1)
    return places, positions[places] == wanted


def blank(num_rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int64) and scores (float32) of rows in which nothing was found yet: [num_rows, width] each."""
    return np.full((num_rows, width), NO_ITEM, np.int64), np.full((num_rows, width), -np.inf, np.float32)


def by_mask(allowed: Allowed, num_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Groups of rows that share one mask, the same object: int64 [rows of the group], and the mask, bool [I] or None."""
    if allowed is None or isinstance(allowed, np.ndarray):
        if num_rows:
            yield np.arange(num_rows), allowed
        return
    assert len(allowed) == num_rows, f"{len(allowed)} masks for {num_rows} queries"
    keys = np.array([id(mask) for mask in allowed], np.int64)
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        yield rows, allowed[rows[0]]
