"""Pairs of items that stand near each other in a history, as examples of what belongs together.

Legend: P pairs, I items, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.log_statistics import TrainingEvents

_MOST_PAIRS = 5_000_000  # kept of a log, 12 bytes each; they are drawn at random where there are more


@dataclass(frozen=True)
class ItemPairs:
    """Items that users had, and items that they had a few events later."""

    before_P: np.ndarray  # int32
    after_P: np.ndarray  # int32
    known_II: sp.csr_array  # bool, which items came after which; of the pairs that are kept

    @staticmethod
    def of(parts: Iterable[TrainingEvents], num_items: int, *, steps: int, seed: int = 0) -> ItemPairs:
        """The pairs of a log.

        Args:
            parts: events of some users each.
            num_items: items of the catalogue.
            steps: the second item of a pair came at most so many events after the first.
            seed: of the draw where the log has more than 5 million pairs.
        """
        rng, found = np.random.default_rng(seed), [np.zeros((0, 2), np.int32)]
        for part in parts:
            lengths = np.diff(part.offsets)
            user = np.repeat(np.arange(len(lengths)), lengths)
            for step in range(1, steps + 1):
                both = np.column_stack([part.items[:-step], part.items[step:]])
                found.append(both[(user[step:] == user[:-step]) & (both[:, 0] != both[:, 1])].astype(np.int32))
            if sum(map(len, found)) > 2 * _MOST_PAIRS:
                found = [_drawn(np.concatenate(found), rng)]
        before, after = _drawn(np.concatenate(found), rng).T
        known = sp.coo_array((np.ones(len(before), bool), (before, after)), shape=(num_items, num_items)).tocsr()
        return ItemPairs(before, after, known)

    def __len__(self) -> int:
        return len(self.before_P)

    def near(self, items: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
        """Places of at most `limit` pairs that hold one of `items`, drawn at random: int64 [at most limit]."""
        chosen = np.zeros(self.known_II.shape[0], bool)
        chosen[items] = True
        places = np.flatnonzero(chosen[self.before_P] | chosen[self.after_P])
        return places if len(places) <= limit else rng.choice(places, limit, replace=False)

    def others_known(self, places: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Which candidates are no negatives of a pair: those that came after its first item in other pairs, and that item.

        Args:
            places: of P pairs.
            candidates: C items, among them the second item of each pair.

        Returns:
            bool [P, C]; false for the second item of the pair itself.
        """
        before, after = self.before_P[places], self.after_P[places]
        known_PC = self.known_II[before][:, candidates].toarray().astype(bool)
        known_PC |= candidates == before[:, None]
        return known_PC & (candidates != after[:, None])


def _drawn(pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pairs if len(pairs) <= _MOST_PAIRS else rng.choice(pairs, _MOST_PAIRS, replace=False, axis=0)
