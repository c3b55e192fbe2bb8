"""What a request reads of the live counts while events come in: as if all items were looked at each time."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.data.events import US, Context, Events, Users
from ctxrec.data.requests import Requests
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCounts
from ctxrec.memory.live_sources import LiveParams, LiveSources, LiveWeights

ITEMS, START = 400, 1_700_000_000 * US
WEIGHTS = LiveWeights(
    LIVE_COUNTS.half_lives_s, np.zeros((2, 1), np.float32), np.array([[0.5, 0.2, 0.2, 0.1], [0.0] * 4], np.float32)
)


def at(time_us: int) -> Requests:
    """One request without history."""
    none = np.zeros(0, np.int64)
    return Requests(
        users=Users(ids=np.array(["a"], object)),
        history=Events(np.zeros(2, np.int64), none.astype(np.int32), none, none.astype(np.int16), Context()),
        times=np.array([time_us]),
        context=Context(),
    )


@pytest.mark.parametrize("most_items", [ITEMS, 40])
def test_scores_are_those_of_a_look_at_all_items(most_items):
    rng, counts = np.random.default_rng(0), LiveCounts(ITEMS)
    params = LiveParams(most_items=most_items)
    kept, now = LiveSources(counts, WEIGHTS, params), START
    shorter = 0
    for _ in range(200):
        now += int(rng.integers(1, 8)) * US
        size = int(rng.choice([0, 1, 3, 30]))
        counts.add(np.minimum(rng.zipf(1.3, size), ITEMS).astype(np.int64) - 1, np.full(size, now))
        if counts.newest_us is None:
            continue
        shorter += kept._worth_a_look(now // US * US) is not None
        found, whole = (s.scores(at(now), ITEMS).toarray()[0] for s in (kept, LiveSources(counts, WEIGHTS, params)))
        both = (found > 0) & (whole > 0)  # of items with equal scores another may have the last place
        np.testing.assert_array_equal(found[both], whole[both])
        np.testing.assert_array_equal(np.sort(found), np.sort(whole))
    assert shorter > 100, "most requests look at some items alone"


def test_an_item_with_a_new_event_is_seen_at_once():
    counts, params = LiveCounts(ITEMS), LiveParams(most_items=5)
    counts.add(np.repeat(np.arange(50), 3), np.full(150, START))
    sources = LiveSources(counts, WEIGHTS, params)
    assert np.count_nonzero(sources.scores(at(START + US), ITEMS).toarray()) == 5
    counts.add(np.full(20, 399), np.full(20, START + 2 * US))
    scores = sources.scores(at(START + 2 * US), ITEMS).toarray()[0]
    assert scores.argmax() == 399 and np.count_nonzero(scores) == 5


def test_changes_are_told_until_they_are_forgotten():
    counts = LiveCounts(ITEMS)
    counts.add(np.array([1, 2]), np.full(2, START))
    version = counts.version
    assert counts.changed_since(version).tolist() == []
    counts.add(np.array([7]), np.full(1, START))
    counts.add(np.array([9, 9]), np.full(2, START))
    assert sorted(counts.changed_since(version).tolist()) == [7, 9, 9]
    for _ in range(5000):
        counts.add(np.array([3]), np.full(1, START))
    assert counts.changed_since(version) is None
