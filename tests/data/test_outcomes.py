"""What came of the moments of a split: which items a user judged, and whether they were a success."""

from __future__ import annotations

import numpy as np

from ctxrec.core import schema
from ctxrec.core.dataset_spec import EventsSpec, FeedbackSpec
from ctxrec.data.events import US, Context, Events, Histories, Users
from ctxrec.data.feedback import EventKinds, graded_actions
from ctxrec.data.outcomes import judged_requests
from ctxrec.data.replay import event_requests

TRAIN, TEST = schema.TRAIN, schema.TEST


def judged(spec: EventsSpec, actions: list[str], rows: list[tuple[str, int, int, int, int]], *, repeats: bool):
    """User, second, item and outcome of all targets; `rows` are user, second, item, code and split in order."""
    graded = graded_actions(spec, actions)
    names = [*actions, *(name for kinds in graded.values() for name in kinds)]
    kinds = EventKinds.of(spec, names, graded)
    users, seconds, items, codes, splits = (np.array(column) for column in zip(*rows, strict=True))
    ids, first = np.unique(users, return_index=True)
    events = Events(
        np.append(first, len(rows)), items.astype(np.int32), seconds * US, codes.astype(np.int16), Context()
    )  # fmt: skip
    weights = kinds.weights(events.actions, None)
    histories = Histories(Users(ids=ids.astype(object)), events, splits.astype(np.int8), weights)
    found = judged_requests(event_requests(histories, TEST, repeats=repeats), histories, TEST, kinds)
    of_row = np.repeat(np.arange(len(found)), np.diff(found.target_offsets))
    return [
        (found.users.ids[n], int(found.times[n] // US), int(item), weight > 0)
        for n, item, weight in zip(of_row, found.target_items, found.target_weights, strict=True)
    ]


SHOWN = EventsSpec(path="", action="kind", actions={"click": 1.0, "shown": -0.1, "view": 0.0})
ACTIONS = ["click", "shown", "view"]  # codes 1, 2 and 3


def test_a_click_after_the_row_that_says_that_an_item_was_shown_is_a_success():
    rows = [
        ("a", 1, 0, 1, TRAIN),
        ("a", 10, 1, 2, TEST), ("a", 10, 2, 2, TEST), ("a", 15, 2, 1, TEST),  # shown 1 and 2, clicked 2
        ("b", 20, 1, 3, TEST),  # only viewed: nobody judged it
        ("b", 21, 4, 1, TEST), ("b", 30, 4, 2, TEST),
    ]  # fmt: skip
    expected = [("a", 10, 1, False), ("a", 10, 2, True), ("b", 21, 4, True)]
    assert judged(SHOWN, ACTIONS, rows, repeats=True) == expected
    assert judged(SHOWN, ACTIONS, rows, repeats=False) == expected


def test_items_of_the_history_are_met_again_where_they_may_repeat():
    rows = [("a", 1, 0, 1, TRAIN), ("a", 10, 0, 2, TEST)]
    assert judged(SHOWN, ACTIONS, rows, repeats=True) == [("a", 10, 0, False)]
    assert judged(SHOWN, ACTIONS, rows, repeats=False) == []


def test_a_rating_between_the_thresholds_is_no_success():
    spec = EventsSpec(path="", value="stars", feedback=FeedbackSpec(kind="rating", positive=4, negative=2))
    positive, neutral, negative, none = 1, 2, 3, 0
    rows = [("a", n, n, code, TEST) for n, code in enumerate((positive, neutral, negative, none))]
    assert judged(spec, [], rows, repeats=False) == [
        ("a", 0, 0, True), ("a", 1, 1, False), ("a", 2, 2, False), ("a", 3, 3, True),
    ]  # fmt: skip
