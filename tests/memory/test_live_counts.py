"""Decayed counts against a plain sum over all events, and what a reader at a time may know."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.data.events import US
from ctxrec.data.replay import Stream
from ctxrec.memory.live_counts import LiveCountParams, LiveCounts, once_a_day
from ctxrec.memory.live_replay import Replayed

HOUR = 3_600 * US
START = 1_700_000_000 * US
PARAMS = LiveCountParams(half_lives_s=(3_600.0, 86_400.0))


def plain(items: np.ndarray, times: np.ndarray, at: int, num_items: int) -> np.ndarray:
    """The definition: the sum of 2^(-age / half-life) over the events of each item."""
    return np.stack(
        [
            np.bincount(items, 0.5 ** ((at - times) / (seconds * US)), minlength=num_items)
            for seconds in PARAMS.half_lives_s
        ]
    )


def test_two_events_worked_by_hand():
    counts = LiveCounts(2, PARAMS)
    counts.add(np.array([1, 1]), np.array([START, START + HOUR]))
    assert counts.counts(START + 2 * HOUR)[0].tolist() == pytest.approx([0, 0.25 + 0.5])
    items, of_items = counts.recent(START + 2 * HOUR)
    assert items.tolist() == [1] and of_items[:, 0] == pytest.approx([0.75, 2 ** (-2 / 24) + 2 ** (-1 / 24)])


@pytest.mark.parametrize("at_once", [1, 7, 500])
def test_counts_are_the_plain_sum_however_events_come(at_once):
    rng = np.random.default_rng(0)
    items, times = rng.integers(20, size=500), START + rng.integers(40 * 24 * HOUR, size=500)  # late ones among them
    counts = LiveCounts(5, PARAMS)  # it grows
    for start in range(0, 500, at_once):
        counts.add(items[start : start + at_once], times[start : start + at_once])
    at = int(times.max()) + HOUR
    np.testing.assert_allclose(counts.counts(at)[:, :20], plain(items, times, at, 20), rtol=1e-9, atol=1e-12)
    found, of_found = counts.recent(at)
    np.testing.assert_allclose(of_found, plain(items, times, at, 20)[:, found], rtol=1e-9, atol=1e-12)
    assert set(found) == set(np.flatnonzero(plain(items, times, at, 20)[1] >= PARAMS.least))


def test_a_year_of_silence_overflows_nothing():
    counts = LiveCounts(1, PARAMS)
    counts.add(np.array([0]), np.array([START]))
    counts.add(np.array([0]), np.array([START + 365 * 24 * HOUR]))
    assert counts.counts(START + 365 * 24 * HOUR).ravel() == pytest.approx([1, 1])
    counts.add(np.array([0]), np.array([START]))  # very late: it no longer counts
    assert counts.counts(START + 365 * 24 * HOUR).ravel() == pytest.approx([1, 1])


def test_a_user_counts_once_a_day_for_an_item():
    day = START // (24 * HOUR) * 24 * HOUR
    users, items = np.array([1, 1, 1, 2, 1, 1]), np.array([5, 5, 6, 5, 5, 5])
    times = day + np.array([3, 2, 2, 2, 26, 27]) * HOUR
    assert once_a_day(users, items, times).tolist() == [False, True, True, True, True, False]
    replayed = Replayed(Stream.of(users, items.astype(np.int32), times), LiveCounts(7, PARAMS))
    replayed.advance(day + 24 * HOUR)
    expected = plain(items[1:4], times[1:4], day + 24 * HOUR, 7)
    np.testing.assert_allclose(replayed.counts.counts(day + 24 * HOUR), expected, rtol=1e-9)
    assert not len(once_a_day(users[:0], items[:0], times[:0]))


def test_a_replay_knows_what_came_before_a_time_less_the_delay():
    stream = Stream.of(np.zeros(4, int), np.array([3, 1, 2, 0], np.int32), START + np.array([3, 1, 2, 0]) * HOUR)
    assert stream.items.tolist() == [0, 1, 2, 3]
    replayed = Replayed(stream, LiveCounts(4, PARAMS), delay_us=HOUR)
    asked = START + np.array([3, 1]) * HOUR  # in any order
    known = {n: (replayed.counts.counts(START)[0] > 0).tolist() for n in replayed.each(asked)}
    # At 1 h the event of 0 h is one hour old, not more: an event at the very time is not before it.
    assert known == {1: [False] * 4, 0: [True, True, False, False]}
