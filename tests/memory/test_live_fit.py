"""The fit of the live sources finds attention that moves, and leaves a log alone that stands still."""

from __future__ import annotations

import numpy as np
import pytest
from blends import blend_of

from ctxrec.data.events import US, Context, Events, Users
from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCounts
from ctxrec.memory.live_fit import fit_live
from ctxrec.memory.live_replay import Replayed, ReplayedSources
from ctxrec.memory.live_sources import LIVE, LiveSources, LiveWeights

ITEMS, HOUR, START = 30, 3_600 * US, 1_700_000_000 * US


def log_of(*, moves: bool, seed: int = 0, calm_from: int = 40) -> tuple[Stream, Requests]:
    """Forty hours with twenty events each. Where the log moves, three items are taken in each hour and others in the next,
    up to the hour `calm_from`. The last twenty hours are replayed."""
    rng = np.random.default_rng(seed)
    times = START + np.arange(800) * (HOUR // 20)
    hour = np.arange(800) // 20
    favourites = np.stack([rng.permutation(ITEMS)[:3] for _ in range(40)])
    items = favourites[hour, rng.integers(3, size=800)] if moves else rng.integers(ITEMS, size=800)
    items = np.where(hour < calm_from, items, rng.integers(ITEMS, size=800))
    stream = Stream.of(np.arange(800), items.astype(np.int32), times)
    num, none = 400, np.zeros(0, np.int64)
    requests = Requests(
        users=Users(ids=np.array([str(n) for n in range(num)], object)),
        history=Events(np.zeros(num + 1, np.int64), none.astype(np.int32), none, none.astype(np.int16), Context()),
        times=times[-num:],
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=items[-num:].astype(np.int32),
    )
    return stream, requests


def fitted(*, moves: bool, calm_from: int = 40) -> LiveWeights | None:
    stream, requests = log_of(moves=moves, calm_from=calm_from)
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 4)).astype(np.float32)
    blend = blend_of(vectors, (4,))
    return fit_live(
        blend, vectors, lambda asked: np.zeros((len(asked), 4), np.float32), requests, stream, repeats=True, seed=0
    )


def test_attention_that_moves_gives_weight_to_short_half_lives():
    weights = fitted(moves=True)
    assert weights is not None
    hours, six, _, week = weights.of_live(np.zeros(1))[0]
    assert hours > 0.5 and hours > six and hours > week
    arrays = weights.to_arrays()
    again = LiveWeights.of_arrays(arrays, weights.blend_2K.shape[1])
    np.testing.assert_array_equal(again.live_2H, weights.live_2H)
    with pytest.raises(ValueError, match="live weights have the shapes"):
        LiveWeights.of_arrays(arrays, weights.blend_2K.shape[1] + 1)


def test_a_calm_end_of_the_replay_does_not_decide_alone():
    """Attention moves in the first half of the replay and stands still in the second, which once was all that judged."""
    assert fitted(moves=True, calm_from=30) is not None


def test_a_log_that_stands_still_has_no_live_sources():
    assert fitted(moves=False) is None


def test_a_gain_of_the_refit_alone_brings_no_live_sources(caplog):
    """The blend gives little weight to the source that knows the targets. A refit finds it; what happens now adds nothing."""
    _, requests = log_of(moves=False)
    assert requests.target_items is not None
    vectors = np.eye(ITEMS, dtype=np.float32)
    queries = vectors[requests.target_items] + np.random.default_rng(2).normal(0, 0.3, (400, ITEMS)).astype(np.float32)
    rows = {int(time): n for n, time in enumerate(requests.times)}
    blend = blend_of(vectors, (ITEMS,))
    blend.weights_2K[0, blend.sources.index("sequence")] = -3
    stream = log_of(moves=False)[0]

    def asked(some: Requests) -> np.ndarray:
        return queries[[rows[int(time)] for time in some.times]]

    with caplog.at_level("INFO", logger="ctxrec.memory.live_fit"):
        weights = fit_live(blend, vectors, asked, requests, stream, repeats=True, seed=0)
    assert weights is None and "live sources do not count" in caplog.text


def live_weights() -> LiveWeights:
    num = len(LIVE_COUNTS.half_lives_s)
    return LiveWeights(
        LIVE_COUNTS.half_lives_s, np.zeros((2, 9), np.float32), np.array([[0.3] * num, [0.0] * num], np.float32)
    )


def test_scores_are_sparse_never_negative_and_of_the_past_alone():
    stream, requests = log_of(moves=True)
    replayed = Replayed(stream, LiveCounts(ITEMS))
    found = ReplayedSources(replayed, LiveSources(replayed.counts, live_weights())).scores(requests, ITEMS)
    assert found.shape == (400, ITEMS) and (found.data >= 0).all()
    # What comes later changes nothing: the same scores from a stream that ends before the last requests.
    short = Stream(*(column[:700] for column in (stream.users, stream.items, stream.times)))
    replayed = Replayed(short, LiveCounts(ITEMS))
    again = ReplayedSources(replayed, LiveSources(replayed.counts, live_weights())).scores(requests, ITEMS)
    np.testing.assert_array_equal(again.toarray()[:300], found.toarray()[:300])
    assert (again.toarray()[301:] != found.toarray()[301:]).any()


def test_a_request_before_the_latest_event_and_one_long_after_it_get_no_live_scores():
    stream, requests = log_of(moves=True)
    counts = LiveCounts(ITEMS)
    counts.add(stream.items, stream.times)
    sources, newest = LiveSources(counts, live_weights()), int(stream.times[-1])
    longest = round(LIVE_COUNTS.half_lives_s[-1] * US)
    asked = [newest - round(LIVE.tolerance_s * US) - 1, newest - 1, newest + HOUR, newest + longest + 1]
    assert sources.are_current(np.array(asked)).tolist() == [False, True, True, False]
    some = Requests(
        users=requests.users.take(np.arange(4)), history=requests.history.cut(np.zeros(4, int), np.zeros(4, int)),
        times=np.array(asked), context=Context(),
    )  # fmt: skip
    assert (sources.scores(some, ITEMS).toarray() > 0).any(1).tolist() == [False, True, True, False]
