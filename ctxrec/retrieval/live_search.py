"""Search of a catalogue that has changed since its index was built: what is new or changed is ranked exactly beside it.

Legend: N queries, D width of the search vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctxrec.index.exact import Allowed, Excluded, exact_search
from ctxrec.index.faiss_index import Index
from ctxrec.index.topk import NO_ITEM, top_k
from ctxrec.retrieval.live_catalogue import LiveCatalogue

_FEW = 256  # stale items up to which the index fetches and drops them; more are masked out

Mask = np.ndarray | None


def search_live(
    index: Index, catalogue: LiveCatalogue, queries: np.ndarray, k: int, *, exclude: Excluded, allowed: Allowed
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best k items of each query among those of the index and those that it lacks.

    Args:
        index: of the bundle's items.
        catalogue: the bundle's items and what was added, changed or removed since.
        queries: float32 [N, D].
        k: at least 1.
        exclude: item positions that a query must not get.
        allowed: bool [I + J] for all queries, or such a mask for each; None: all items.

    Returns:
        Positions (int64) and scores (float32) of each query, best first, equal scores by position.
    """
    excluded = [np.zeros(0, np.int64)] * len(queries) if exclude is None else exclude
    ids, scores = _search_index(index, catalogue, queries, k, excluded, allowed)
    fresh_ids, fresh_scores = _search_fresh(catalogue, queries, k, excluded, allowed)
    found = []
    for n in range(len(queries)):
        both = np.concatenate([ids[n], fresh_ids[n]])
        both_scores = np.concatenate([scores[n], fresh_scores[n]])
        order = np.argsort(both, kind="stable")  # equal scores by position
        best = top_k(both_scores[None, order], k)[0]
        best = order[best[best != NO_ITEM]]
        found.append((both[best], both_scores[best]))
    return found


def _search_index(
    index: Index, catalogue: LiveCatalogue, queries: np.ndarray, k: int, excluded: Excluded, allowed: Allowed
) -> tuple[np.ndarray, np.ndarray]:
    size = catalogue.num_bundled
    dropped = [e[e < size] for e in excluded or ()]
    if len(catalogue.stale) <= _FEW:
        dropped = [np.concatenate([e, catalogue.stale]) for e in dropped]
        masks = _each(allowed, lambda mask: None if mask is None else mask[:size])
    else:
        usable = catalogue.is_in_index
        masks = _each(allowed, lambda mask: usable if mask is None else mask[:size] & usable)
    return index.search(queries, k, allowed=masks, excluded=dropped)


def _search_fresh(
    catalogue: LiveCatalogue, queries: np.ndarray, k: int, excluded: Excluded, allowed: Allowed
) -> tuple[np.ndarray, np.ndarray]:
    fresh = catalogue.fresh
    place = np.full(len(catalogue), -1, np.int64)
    place[fresh] = np.arange(len(fresh))
    dropped = [place[e][place[e] >= 0] for e in excluded or ()]
    masks = _each(allowed, lambda mask: None if mask is None else mask[fresh])
    found, scores = exact_search(catalogue.vectors[fresh], queries, k, allowed=masks, excluded=dropped)
    return np.where(found < 0, found, fresh[np.maximum(found, 0)] if len(fresh) else found), scores


def _each(allowed: Allowed, change: Callable[[Mask], Mask]) -> Allowed:
    """`change` on each mask, once for one that several rows share."""
    if allowed is None or isinstance(allowed, np.ndarray):
        return change(allowed)
    made = {id(mask): change(mask) for mask in allowed}
    return [made[id(mask)] for mask in allowed]
