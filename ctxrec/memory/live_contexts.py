"""The latest events with their contexts, so that items can be counted in one context: on television, in one country.

The events are kept as they are, not as a sum for each value: so every combination of values has exact counts, and memory
depends on the number of events and of features, not on how many values the features have. What is older than the
latest `most` events is forgotten. A service with more events than that in a day therefore counts less than a day.

Legend: E events, F features, M events that are kept at most, I items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MOST_EVENTS = 200_000  # as many as a store gives to a replica that starts: `ctxrec.live.store.RECENT_EVENTS`


class LiveContexts:
    """The latest events, by arrival: item, time and the codes of the context, 12 + 4 F bytes each.

    Args:
        num_features: of a context; without any, nothing is kept.
        most: events that are kept.
    """

    def __init__(self, num_features: int, most: int = MOST_EVENTS) -> None:
        kept = most if num_features else 0
        self._items_M, self._times_M = np.zeros(kept, np.int32), np.zeros(kept, np.int64)
        self._codes_FM = np.zeros((num_features, kept), np.int32)
        self._added = 0

    def add(self, items: np.ndarray, times_us: np.ndarray, codes_EF: np.ndarray) -> None:
        """Keep events in the place of the oldest.

        Args:
            items: int [E] positions.
            times_us: int64 [E] microseconds.
            codes_EF: int [E, F] codes of the features' values.
        """
        most = len(self._items_M)
        if not most:
            return
        latest = slice(max(len(items) - most, 0), None)
        places = (self._added + np.arange(len(items))[latest]) % most
        self._items_M[places], self._times_M[places] = items[latest], times_us[latest]
        self._codes_FM[:, places] = codes_EF[latest].T
        self._added += len(items)

    def counts(self, wanted: Mapping[int, int], at_us: int, half_life_us: float, num_items: int) -> np.ndarray:
        """Decayed counts of the items in the events that have all wanted values: float64 [I].

        Args:
            wanted: code by the number of the feature.
            at_us: no earlier than the latest event.
            half_life_us: time in which an event counts half.
            num_items: size of the catalogue, above all positions.
        """
        kept = slice(min(self._added, len(self._items_M)))
        found = np.ones(len(self._items_M[kept]), bool)
        for feature, code in wanted.items():
            found &= self._codes_FM[feature, kept] == code
        weights = np.exp2((self._times_M[kept][found] - at_us) / half_life_us)
        return np.bincount(self._items_M[kept][found], weights, minlength=num_items)
