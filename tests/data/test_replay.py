"""Events as requests at their own times: the history before it, the targets of its moment."""

from __future__ import annotations

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import US, Context, Events, Histories, Users
from ctxrec.data.replay import event_requests, in_order

TRAIN, TEST = schema.TRAIN, schema.TEST


def histories() -> Histories:
    """User a: items 0, 1 in training; 1, 2 and 3 at one moment, then 2 in the test part. User b: item 4 in between."""
    seconds = [1, 2, 10, 10, 10, 12, 11]
    splits = [TRAIN, TRAIN, TEST, TEST, TEST, TEST, TEST]
    return Histories(
        users=Users(ids=np.array(["a", "b"], object)),
        events=Events(
            offsets=np.array([0, 6, 7]), items=np.array([0, 1, 1, 2, 3, 2, 4], np.int32),
            times=np.array(seconds) * US, actions=np.zeros(7, np.int16), context=Context(),
        ),
        split=np.array(splits, np.int8),
    )  # fmt: skip


def told(*, repeats: bool, delay_s: float = 0) -> list[tuple[str, int, list[int], list[int]]]:
    """User, second, history and targets of each request."""
    found = in_order(event_requests(histories(), TEST, repeats=repeats, delay_us=round(delay_s * US)))
    return [
        (found.users.ids[n], int(found.times[n] // US), found.seen()[n].tolist(), found.targets(n).tolist())
        for n in range(len(found))
    ]


def test_the_events_of_a_moment_are_one_request():
    assert told(repeats=True) == [
        ("a", 10, [0, 1], [1, 2, 3]),
        ("b", 11, [], [4]),
        ("a", 12, [0, 1, 1, 2, 3], [2]),
    ]


def test_an_item_that_the_user_had_is_no_target_without_repeats():
    assert told(repeats=False) == [("a", 10, [0, 1], [2, 3]), ("b", 11, [], [4])]


def test_a_delay_ends_the_history_earlier_and_changes_no_target():
    assert told(repeats=True, delay_s=2) == [
        ("a", 10, [0, 1], [1, 2, 3]),
        ("b", 11, [], [4]),
        ("a", 12, [0, 1], [2]),
    ]
    assert told(repeats=False, delay_s=9) == [("a", 10, [], [2, 3]), ("b", 11, [], [4])]
