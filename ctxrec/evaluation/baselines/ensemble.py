"""The linear ensemble of simple recommenders, a baseline that is quick to build and hard to beat.

Legend: N requests, I items, C components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.evaluation.baselines.protocol import Baseline

_GRID = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # weights tried, relative to a start of 1 each
_ROUNDS = 3


class Ensemble:
    """A weighted sum of components, each standardised over the catalogue for every request."""

    def __init__(self, components: dict[str, Baseline], weights: dict[str, float]) -> None:
        assert set(components) == set(weights)
        # A component without weight costs time and changes nothing.
        self.components = {name: part for name, part in components.items() if weights[name]}
        self.weights = weights

    def scores(self, requests: Requests) -> np.ndarray:
        """Weighted sum of the standardised scores of all parts: float [N, I]."""
        total: np.ndarray | float = 0.0
        for name, component in self.components.items():
            total = total + np.float32(self.weights[name]) * standardised(component.scores(requests))
        assert isinstance(total, np.ndarray), "a component has a weight"
        return total


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores of each request with mean 0 and standard deviation 1 over the items; equal ones are 0. float32 [N, I]

    >>> standardised(np.array([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros(scores.shape), where=spread > 1e-12).astype(np.float32)


def choose_weights(
    parts_NI: Sequence[np.ndarray], quality: Callable[[np.ndarray], float], *, start: Sequence[float] | None = None
) -> tuple[list[float], float]:
    """Weights of components by coordinate ascent: each weight in turn takes the best value of a grid.

    Args:
        parts_NI: standardised scores of the C components.
        quality: the quality of mixed scores [N, I]; higher is better.
        start: weights to start from, by default 1 each.

    Returns:
        The weights [C], which sum to 1, and their quality.
    """
    weights = list(start or [1.0] * len(parts_NI))

    def mixed(tried: Sequence[float]) -> np.ndarray:
        return sum(np.float32(w) * part for w, part in zip(tried, parts_NI, strict=True) if w)  # type: ignore[return-value]

    best = quality(mixed(weights))
    for _ in range(_ROUNDS):
        before = list(weights)
        for c, part in enumerate(parts_NI):
            rest = mixed([w if n != c else 0.0 for n, w in enumerate(weights)])
            for value in _GRID:
                if value == weights[c] or (value == 0 and not any(w for n, w in enumerate(weights) if n != c)):
                    continue
                found = quality(rest + np.float32(value) * part)
                if found > best:
                    best, weights[c] = found, value
        if weights == before:
            break
    total = sum(weights)
    return [w / total for w in weights], best
