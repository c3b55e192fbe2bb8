"""Pairs of items that stand near each other in a history."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxrec.data.item_pairs import ItemPairs
from ctxrec.data.log_statistics import TrainingEvents

ITEMS = 6
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=5)


def events(histories: list[list[int]]) -> TrainingEvents:
    """Events of one bucket."""
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    items = np.array([item for h in histories for item in h], np.int32)
    return TrainingEvents(offsets, items, np.arange(len(items)))


@settings(deadline=None)
@given(HISTORIES, st.integers(1, 4))
def test_the_pairs_are_those_of_each_history_alone(histories, steps):
    pairs = ItemPairs.of([events(histories), events(histories[:1])], ITEMS, steps=steps)
    expected = [
        (history[n], history[n + step])
        for history in [*histories, histories[0]]
        for step in range(1, steps + 1)
        for n in range(len(history) - step)
        if history[n] != history[n + step]
    ]
    assert sorted(zip(pairs.before_P.tolist(), pairs.after_P.tolist(), strict=True)) == sorted(expected)


@settings(deadline=None)
@given(HISTORIES)
def test_a_pair_is_told_from_items_that_never_came_after_its_first_one(histories):
    pairs, candidates = ItemPairs.of([events(histories)], ITEMS, steps=2), np.arange(ITEMS)
    places = np.arange(len(pairs))
    after = {(a, b) for a, b in zip(pairs.before_P.tolist(), pairs.after_P.tolist(), strict=True)}
    left_out = pairs.others_known(places, candidates)
    for place in places:
        a, b = int(pairs.before_P[place]), int(pairs.after_P[place])
        expected = [item != b and (item == a or (a, item) in after) for item in range(ITEMS)]
        assert left_out[place].tolist() == expected


def test_pairs_near_some_items_hold_one_of_them():
    pairs = ItemPairs.of([events([[0, 1, 2, 3, 4, 5]])], ITEMS, steps=1)
    rng = np.random.default_rng(0)
    assert sorted(pairs.near(np.array([2]), 10, rng).tolist()) == [1, 2]
    assert len(pairs.near(np.arange(ITEMS), 3, rng)) == 3
