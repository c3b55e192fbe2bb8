"""A catalogue that changes while it is searched: what has changed is ranked exactly, beside the index.

Legend: I items of the bundle, J items behind them, D width of the search vectors, N queries.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.index.exact import Allowed, Excluded, exact_search, top_positions
from ctxrec.index.faiss_index import Index
from ctxrec.retrieval.item_encoder import EncodedItems
from ctxrec.retrieval.recommender import Recommender

_ROOM = 1024  # rows by which the vectors grow at least
_FEW = 256  # items out of place that a flat index rather fetches and drops than skips


class LiveVectors:
    """Vectors of the bundle's items and of later ones, in one block that has room to grow.

    Attributes:
        alive: bool [I + J], which items may be found.
        fresh: positions, in order, of what is searched beside the index: later items, and changed ones.
        stale: positions, in order, of what the index must not give: changed items, and removed ones.
    """

    def __init__(self, recommender: Recommender):
        self._recommender = recommender
        self._num_bundled = len(recommender.item_ids)
        self._block = recommender.vectors  # replaced by one with room at the first new item
        self._changed = np.zeros(self._num_bundled, bool)
        self._spoken_for = sp.csr_array((0, self._num_bundled), dtype=np.float32)
        self.alive = np.ones(self._num_bundled, bool)
        self._all_alive = True
        self.fresh = self.stale = np.zeros(0, np.int64)

    def put(self, items: EncodedItems) -> np.ndarray:
        """Take over items, the last row of an id; returns their positions, int64 [n]."""
        recommender = self._recommender
        ids = items.table.column(0).to_pylist()
        new = [item for item in dict.fromkeys(ids) if item not in recommender.item_position]
        first = len(recommender.item_ids)
        self._make_room(first + len(new))
        for item in new:
            recommender.item_position[item] = len(recommender.item_ids)
            recommender.item_ids.append(item)
        places = np.array([recommender.item_position[item] for item in ids], np.int64)
        self._block[places] = items.vectors
        self.alive = np.concatenate([self.alive, np.ones(len(new), bool)])
        self.alive[places] = True
        self._changed[places[places < self._num_bundled]] = True
        self._speak(places, items.spoken_for, len(new))
        recommender.grow(self._block[: first + len(new)], self._spoken_for, changed=places)
        self._sort()
        return places

    def remove(self, places: np.ndarray) -> None:
        """Take items out of what may be found; histories may still have them."""
        self.alive[places] = False
        self._sort()

    def among_alive(self, allowed: Allowed) -> Allowed:
        """Masks for a search of all vectors."""
        if self._all_alive:
            return allowed
        if allowed is None or isinstance(allowed, np.ndarray):
            return self.alive if allowed is None else allowed & self.alive
        made = {id(mask): self.alive if mask is None else mask & self.alive for mask in allowed}
        return [made[id(mask)] for mask in allowed]

    def search(
        self, index: Index, queries: np.ndarray, k: int, *, exclude: Excluded, allowed: Allowed
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The best k of the index and of what is not in it: positions and scores of each query."""
        excluded = [np.zeros(0, np.int64)] * len(queries) if exclude is None else exclude
        ids, scores = self._search_index(index, queries, k, excluded, allowed)
        fresh_ids, fresh_scores = self._search_fresh(queries, k, excluded, allowed)
        found = []
        for n in range(len(queries)):
            both = np.concatenate([ids[n], fresh_ids[n]])
            both_scores = np.concatenate([scores[n], fresh_scores[n]])
            order = np.argsort(both, kind="stable")  # equal scores by position
            best = order[top_positions(both_scores[order], k)]
            found.append((both[best], both_scores[best]))
        return found

    def _search_index(
        self, index: Index, queries: np.ndarray, k: int, excluded: Excluded, allowed: Allowed
    ) -> tuple[np.ndarray, np.ndarray]:
        size, own = self._num_bundled, [e[e < self._num_bundled] for e in excluded or ()]
        if len(self.stale) <= _FEW:
            own = [np.concatenate([e, self.stale]) for e in own]
            masks = _each(allowed, lambda mask: None if mask is None else mask[:size])
        else:
            usable = self.alive[:size] & ~self._changed
            masks = _each(allowed, lambda mask: usable if mask is None else mask[:size] & usable)
        return index.search(queries, k, allowed=masks, excluded=own)

    def _search_fresh(
        self, queries: np.ndarray, k: int, excluded: Excluded, allowed: Allowed
    ) -> tuple[np.ndarray, np.ndarray]:
        place = np.full(len(self.alive), -1, np.int64)
        place[self.fresh] = np.arange(len(self.fresh))
        own = [place[e][place[e] >= 0] for e in excluded or ()]
        masks = _each(allowed, lambda mask: None if mask is None else mask[self.fresh])
        vectors = self._block[self.fresh]
        found, scores = exact_search(vectors, queries, k, allowed=masks, excluded=own)
        return np.where(found < 0, found, self.fresh[np.maximum(found, 0)] if len(self.fresh) else found), scores

    def _make_room(self, num: int) -> None:
        if num <= len(self._block) and self._block is not self._recommender.vectors:
            return
        size = max(num, len(self._block)) + max(_ROOM, len(self._block) // 8)
        block = np.empty((size, self._block.shape[1]), np.float32)
        used = len(self._recommender.item_ids)
        block[:used] = self._recommender.vectors[:used]
        self._block = block

    def _speak(self, places: np.ndarray, spoken_for: sp.csr_array, num_new: int) -> None:
        """Take over who speaks for the later items among `places`."""
        total = self._spoken_for.shape[0] + num_new
        later = np.flatnonzero(places >= self._num_bundled)
        if not len(later):
            return
        source = np.full(total, -1, np.int64)
        source[: self._spoken_for.shape[0]] = np.arange(self._spoken_for.shape[0])
        source[places[later] - self._num_bundled] = self._spoken_for.shape[0] + later
        self._spoken_for = sp.csr_array(sp.vstack([self._spoken_for, spoken_for], format="csr"))[source]

    def _sort(self) -> None:
        size = self._num_bundled
        self.stale = np.flatnonzero(~self.alive[:size] | self._changed)
        fresh = self.alive.copy()
        fresh[:size] &= self._changed
        self.fresh = np.flatnonzero(fresh)
        self._all_alive = bool(self.alive.all())


def _each(allowed: Allowed, change) -> Allowed:
    """`change` on each mask, once for one that several rows share."""
    if allowed is None or isinstance(allowed, np.ndarray):
        return change(allowed)
    made = {id(mask): change(mask) for mask in allowed}
    return [made[id(mask)] for mask in allowed]
