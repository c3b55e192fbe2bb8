"""What a search takes and gives for each request of a batch: masks, exclusions, rows of results.

Legend: I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from ctxrec.index.exact import Allowed, Excluded
from ctxrec.index.topk import NO_ITEM


def all_of(own: Sequence[np.ndarray | None], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The conjunction of both masks of each request. Requests that share both masks share the result: bool
    [I] each."""
    made: dict[tuple[int, int], np.ndarray] = {}
    for first, second in zip(own, masks, strict=True):
        key = id(first), id(second)
        if key not in made:
            made[key] = second if first is None else first & second
    return [made[id(first), id(second)] for first, second in zip(own, masks, strict=True)]


def without_gaps(ids: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The results of a search without the `NO_ITEM` that pads short rows: for each request item
    positions, int64 [found], and scores, float32 [found]."""
    found = (ids != NO_ITEM).sum(1)
    return [(row[:n], row_scores[:n]) for row, row_scores, n in zip(ids, scores, found, strict=True)]


def rows_of(matrix: sp.csr_array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns, int64 [values], and values, float32 [values], of each row."""
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        yield matrix.indices[start:stop].astype(np.int64), matrix.data[start:stop]


def of_request(given: Excluded | Allowed, n: int) -> np.ndarray | None:
    """Request n's share of what is given for all requests (an array) or for each of them (a list):
    positions, int64 [any], or a mask, bool [I]."""
    return given if given is None or isinstance(given, np.ndarray) else given[n]
