"""Requests before they are ranked: shuffled contexts, and targets that may not be recommended."""

from __future__ import annotations

import numpy as np

from ctxrec.data.clock import Clock
from ctxrec.data.events import US, Context, Events, Users
from ctxrec.data.requests import Requests
from ctxrec.evaluation.rank_requests import drop_targets, shuffle_context


def test_shuffled_context_moves_context_and_keeps_who_asks():
    num, day = 50, 86_400 * US
    times = np.arange(100, 100 + num) * 37 * day // 24
    requests = Requests(
        users=Users(ids=np.arange(num).astype(str).astype(object)),
        history=Events(
            offsets=np.arange(num + 1), items=np.arange(num), times=times - day, actions=np.zeros(num, np.int16),
            context=Context(),
        ),
        times=times,
        context=Context(
            cat=Clock().codes(times) | {"device": np.arange(num, dtype=np.int32)},
            num={"price": np.arange(num, dtype=np.float32)},
        ),
    )  # fmt: skip
    shuffled = shuffle_context(requests, Clock(), seed=0)
    for changed in shuffled.values():
        assert changed.users is requests.users and changed.history is requests.history
        device = changed.context.cat["device"]
        assert sorted(device) == list(range(num)) and (device != np.arange(num)).mean() > 0.8
        assert (device == changed.context.num["price"]).all(), "a context moves as a whole"
    whole, same_time = shuffled["shuffled_context"], shuffled["shuffled_context_same_time"]
    assert (same_time.times == times).all()
    assert (same_time.context.cat["hour"] == requests.context.cat["hour"][same_time.context.cat["device"]]).all()
    assert (whole.times >= requests.history.times).all(), "no request before its own history"
    assert (whole.times == np.maximum(times[whole.context.cat["device"]], times - day)).all()
    for name, codes in Clock().codes(whole.times).items():
        assert (whole.context.cat[name] == codes).all()


def test_targets_that_may_not_be_recommended_are_dropped():
    none = np.zeros(0, np.int64)
    requests = Requests(
        users=Users(ids=np.array(["a", "b", "c"], object)),
        history=Events(offsets=np.zeros(4, np.int64), items=none, times=none, actions=none, context=Context()),
        times=np.zeros(3, np.int64),
        context=Context(),
        target_offsets=np.array([0, 2, 3, 4]),
        target_items=np.array([0, 2, 2, 1]),
        target_actions=np.array([2, 4, 2, 8]),
    )
    kept = drop_targets(requests, np.array([True, True, False]))
    assert kept.users.ids.tolist() == ["a", "c"]
    assert [kept.targets(n).tolist() for n in range(2)] == [[0], [1]]
    assert kept.target_actions.tolist() == [2, 8]
