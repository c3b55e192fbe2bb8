"""Counts of the latest events in a context, next to counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.memory.live_contexts import LiveContexts

NUM_ITEMS, HALF_US = 7, 1_000.0


@pytest.mark.parametrize("at_once", [1, 3, 50, 1_000])
def test_counts_are_those_of_the_latest_events_however_they_came(at_once):
    rng = np.random.default_rng(1)
    items, times = rng.integers(NUM_ITEMS - 1, size=230), np.sort(rng.integers(5_000, size=230))
    codes = rng.integers(3, size=(230, 2))
    contexts = LiveContexts(2, most=100)
    for start in range(0, 230, at_once):
        part = slice(start, start + at_once)
        contexts.add(items[part], times[part], codes[part])
    for wanted in ({0: 1}, {1: 2}, {0: 0, 1: 1}, {}, {0: 9}):
        expected = np.zeros(NUM_ITEMS)
        for item, time, found in list(zip(items, times, codes, strict=True))[-100:]:
            if all(found[feature] == code for feature, code in wanted.items()):
                expected[item] += 0.5 ** ((5_000 - time) / HALF_US)
        np.testing.assert_allclose(contexts.counts(wanted, 5_000, HALF_US, NUM_ITEMS), expected, rtol=1e-9)


def test_memory_does_not_grow_with_the_number_of_values_or_events():
    contexts = LiveContexts(2, most=100)
    before = sum(part.nbytes for part in vars(contexts).values() if isinstance(part, np.ndarray))
    for n in range(50):
        contexts.add(np.arange(40) % NUM_ITEMS, np.full(40, n), np.arange(n * 80, n * 80 + 80).reshape(40, 2))
    assert sum(part.nbytes for part in vars(contexts).values() if isinstance(part, np.ndarray)) == before == 100 * 20


def test_a_log_without_features_keeps_nothing():
    contexts = LiveContexts(0)
    contexts.add(np.arange(3), np.arange(3), np.zeros((3, 0), np.int32))
    assert contexts.counts({}, 5, HALF_US, NUM_ITEMS).sum() == 0
