"""What happens now as a part of the score: the sources that learn between two trainings, and their weights.

A live source is log(1 + count / `one`) of an item at one half-life (`ctxrec.memory.live_counts`): 0 for an item without
recent events, and larger where more happens. Weights may be negative, so that much of today and little of this hour is less
than the reverse. The weighted sum, where it is above 0, comes on top of a score as what the item memory remembers does. So
the best items of the index, of the memory and of the live sources contain the best of the sum.

Legend: N requests, A items with recent events, H live sources, K sources of the blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import US
from ctxrec.data.requests import Requests
from ctxrec.memory.blend import length_features
from ctxrec.memory.live_counts import LiveCounts


@dataclass(frozen=True)
class LiveParams:
    """Tuned numbers and limits of the live sources. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        one: count that log(1 + count / one) calls one. Of .001 to 5, .01 and .03 have the best likelihood of a replay of
            the simulated news service. No measurement supports the others.
        most_items: limit of time: so many items get live scores, those with the largest ones.
        look_again_s: limit of time: after so many seconds of requests all items are looked at again. In between the items
            with events since then are looked at, and twice `most_items` of those that had the largest scores. Scores are
            exact at any time; an item without a new event may enter or leave the last places of `most_items` late.
        tolerance_s: a request whose time is before the latest event gets live scores if it is so many seconds before at
            most, because clocks differ. An earlier one gets none: what happened after it must not be known to it.
        keep_s: seconds to which the time of a request is rounded down, so that requests share what is computed.
    """

    one: float = 0.02
    most_items: int = 2_000
    look_again_s: float = 60.0
    tolerance_s: float = 300.0
    keep_s: float = 1.0


LIVE = LiveParams()


def source_values(counts: np.ndarray, params: LiveParams = LIVE) -> np.ndarray:
    """Scores of the live sources by their counts, of any shape: float32, 0 or more."""
    return np.log1p((counts / params.one).astype(np.float32))  # several times faster than in float64


@dataclass(frozen=True)
class LiveWeights:
    """Weights of a blend while live sources are there, for a typical history, and what a longer one adds.

    half_lives_s: of each live source.
    blend_2K: float32, of the sources of the blend, in its order and before softplus (`Blend.weights_2K`).
    live_2H: float32, of the live sources, with their sign.
    """

    half_lives_s: tuple[float, ...]
    blend_2K: np.ndarray
    live_2H: np.ndarray

    @property
    def names(self) -> list[str]:
        """Names of the H live sources."""
        return [f"events of {_told(seconds)}" for seconds in self.half_lives_s]

    @property
    def typical(self) -> np.ndarray:
        """Weights of all sources for a typical history: float64 [K + H]."""
        return np.concatenate([np.logaddexp(0, self.blend_2K[0]), self.live_2H[0]])

    def of_live(self, lengths_N: np.ndarray) -> np.ndarray:
        """Weights of the live sources for histories of these lengths: float32 [N, H]."""
        return (length_features(lengths_N) @ self.live_2H).astype(np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The weights as plain arrays, which safetensors can hold: [H], [2, K] and [2, H]."""
        both = {"blend": self.blend_2K, "live": self.live_2H}
        weights = {name: np.ascontiguousarray(values, np.float32) for name, values in both.items()}
        return {"half_lives": np.array(self.half_lives_s), **weights}

    @staticmethod
    def of_arrays(arrays: dict[str, np.ndarray], num_sources: int) -> LiveWeights:
        """The inverse of `to_arrays`, for a blend of so many sources.

        Raises:
            ValueError: the arrays do not fit together or to the blend.
        """
        half_lives, blend, live = arrays["half_lives"], arrays["blend"], arrays["live"]
        if blend.shape != (2, num_sources) or live.shape != (2, len(half_lives)) or not (half_lives > 0).all():
            raise ValueError(
                f"live weights have the shapes {blend.shape} and {live.shape}; expected (2, {num_sources}) and (2, {len(half_lives)})"
            )
        return LiveWeights(tuple(half_lives.tolist()), blend, live)


class AddsNow(Protocol):
    """What adds live scores to those of a model."""

    def are_current(self, times_us: np.ndarray) -> np.ndarray:
        """Which requests at these times (int64 [N]) get live scores: bool [N].

        One before the latest event gets none, because it must not know of that event; and one so long after it gets none
        that nothing seems to happen any more.
        """
        ...

    def scores(self, requests: Requests, num_items: int) -> sp.csr_array:
        """What happens now adds to the scores of requests: 0 or more, sparse float32 [N, `num_items`]."""
        ...


class LiveSources:
    """Live scores by the counts as they are when they are asked for.

    Args:
        counts: take events; the half-lives are those of `weights`.
        weights: of the sources.
        params: tuned numbers and limits.
    """

    def __init__(self, counts: LiveCounts, weights: LiveWeights, params: LiveParams = LIVE) -> None:
        assert counts.params.half_lives_s == weights.half_lives_s
        self.counts, self.weights, self._params = counts, weights, params
        self._kept: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None
        self._looked: _Looked | None = None  # when all items were looked at last

    def are_current(self, times_us: np.ndarray) -> np.ndarray:
        """See `AddsNow`."""
        newest = self.counts.newest_us
        if newest is None:
            return np.zeros(len(times_us), bool)
        longest_us = self.weights.half_lives_s[-1] * US
        return (times_us >= newest - self._params.tolerance_s * US) & (times_us <= newest + longest_us)

    def scores(self, requests: Requests, num_items: int) -> sp.csr_array:
        """See `AddsNow`; items at and behind `num_items` have no scores."""
        current = np.flatnonzero(self.are_current(requests.times))
        weights_NH = self.weights.of_live(requests.history.lengths)
        # Times are rounded, so that requests share what is computed; each has that of its own time, whoever else asks.
        rounded = requests.times // round(self._params.keep_s * US)
        columns: list[np.ndarray] = [np.zeros(0, np.int64)] * len(requests)
        values: list[np.ndarray] = [np.zeros(0, np.float32)] * len(requests)
        for moment in np.unique(rounded[current]).tolist():
            items, sources_HA = self._now(moment)
            inside = items < num_items
            items, sources_HA = items[inside], sources_HA[:, inside]
            for n in current[rounded[current] == moment].tolist():
                columns[n], values[n] = items, np.maximum(weights_NH[n] @ sources_HA, 0)
        offsets = np.cumsum([0, *map(len, columns)])
        parts = np.concatenate([np.zeros(0, np.float32), *values]), np.concatenate([np.zeros(0, np.int64), *columns])
        return sp.csr_array((*parts, offsets), shape=(len(requests), num_items))

    def _now(self, moment: int) -> tuple[np.ndarray, np.ndarray]:
        """Items with recent events, int64 [A] rising, and their sources, float32 [H, A], at a time in `keep_s`."""
        key = (self.counts.version, moment)
        if self._kept is None or self._kept[0] != key:
            most, at_us = self._params.most_items, moment * round(self._params.keep_s * US)
            among = self._worth_a_look(at_us)
            items, counts_HA = self.counts.recent(at_us, among)
            sources_HA = source_values(counts_HA, self._params)
            typical_A = self.weights.of_live(np.zeros(1))[0] @ sources_HA
            if among is None:
                best = _largest(typical_A, 2 * most)
                self._looked = _Looked(at_us, self.counts.version, items[best])
            best = _largest(typical_A, most)
            self._kept = key, items[best], sources_HA[:, best]
        return self._kept[1], self._kept[2]

    def _worth_a_look(self, at_us: int) -> np.ndarray | None:
        """The items that may have the largest live scores, rising; None where all have to be looked at."""
        looked = self._looked
        if looked is None or abs(at_us - looked.at_us) > self._params.look_again_s * US:
            return None
        changed = self.counts.changed_since(looked.version)
        if changed is None or len(changed) > 2 * self._params.most_items:
            return None
        return np.union1d(looked.items, changed)


@dataclass(frozen=True)
class _Looked:
    """A look at all items: when, after which events, and which of them had the largest live scores, rising."""

    at_us: int
    version: int
    items: np.ndarray


def _largest(values_A: np.ndarray, most: int) -> np.ndarray:
    """Places of the `most` largest values, rising; all places where there are no more."""
    if len(values_A) <= most:
        return np.arange(len(values_A))
    return np.sort(np.argpartition(-values_A, most)[:most])


def _told(seconds: float) -> str:
    units: Sequence[tuple[str, float]] = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0), ("seconds", 1.0))
    name, unit = next((name, unit) for name, unit in units if seconds >= unit or unit == 1)
    return f"{seconds / unit:g} {name}"
