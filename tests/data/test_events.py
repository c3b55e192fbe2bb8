import datetime

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.schema import TEST, TRAIN, VALID
from ctxrec.data import events
from ctxrec.data.clock import Clock
from ctxrec.data.events import Context, Events, Histories, Users
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import concat_requests, split_requests

NO_FEATURES = FeatureMeta({}, {}, {}, {}, {}, {}, [], [])


def histories() -> Histories:
    """Three users: a with five events, b with none, c with three."""
    items = np.array([1, 2, 3, 1, 4, 5, 6, 5], np.int32)
    times = np.arange(10, 18) * events.US
    return Histories(
        users=Users(
            ids=np.array(["a", "b", "c"], object), cat={"g": np.array([2, 0, 3], np.int32)},
            num={"age": np.array([1, np.nan, 3], np.float32)},
        ),
        events=Events(
            offsets=np.array([0, 5, 5, 8]),
            items=items,
            times=times,
            actions=np.arange(8, dtype=np.int16),
            context=Context(
                cat={"d": np.arange(8, dtype=np.int32)},
                num={"x": np.arange(8, dtype=np.float32)},
                text={"q": np.array(list("abcdefgh"), object)},
            ),
        ),
        split=np.array([TRAIN, TRAIN, VALID, TEST, TEST, TRAIN, VALID, TEST], np.int8),
    )  # fmt: skip


def test_ranges_skip_empty_and_reversed_rows():
    index, offsets = events.ranges(np.array([3, 7, 9, 2]), np.array([5, 7, 8, 4]))
    assert index.tolist() == [3, 4, 2, 3] and offsets.tolist() == [0, 2, 2, 2, 4]
    index, offsets = events.ranges(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert index.tolist() == [] and offsets.tolist() == [0]


def test_time_context_by_hand():
    moments = ["1970-01-01T00:00:00", "2024-02-29T23:59:59", "2024-12-31T12:00:00", "2023-01-02T05:00:00"]
    stamps = [datetime.datetime.fromisoformat(m + "+00:00") for m in moments]
    found = Clock().read(np.array([int(s.timestamp()) * events.US + 999_999 for s in stamps]))
    assert found["hour"].tolist() == [0, 23, 12, 5]
    assert found["weekday"].tolist() == [s.weekday() for s in stamps] == [3, 3, 1, 0]
    assert found["month"].tolist() == [1, 2, 12, 1]
    codes = Clock().codes(np.array([0]))
    assert {k: v.tolist() for k, v in codes.items()} == {"hour": [2], "weekday": [5], "month": [3]}
    assert codes["hour"].dtype == np.int32


def test_test_requests_without_repeats():
    made = split_requests(histories(), TEST, repeats=False)
    # a: history 1 2 3, targets 1 (seen) and 4; c: history 5 6, target 5 (seen), so no request
    assert made.users.ids.tolist() == ["a"]
    assert made.history.items.tolist() == [1, 2, 3] and made.history.offsets.tolist() == [0, 3]
    assert made.targets(0).tolist() == [4]
    assert made.times.tolist() == [13 * events.US]
    assert made.context.cat["d"].tolist() == [3] and made.context.text["q"].tolist() == ["d"]
    assert made.history.context.num["x"].tolist() == [0, 1, 2]
    assert made.users.cat["g"].tolist() == [2]


def test_test_requests_with_repeats():
    made = split_requests(histories(), TEST, repeats=True)
    assert made.users.ids.tolist() == ["a", "c"]
    assert [made.targets(n).tolist() for n in range(2)] == [[1, 4], [5]]
    assert made.history.offsets.tolist() == [0, 3, 5] and made.history.items.tolist() == [1, 2, 3, 5, 6]


def test_valid_requests_see_only_what_was_before():
    made = split_requests(histories(), VALID, repeats=False)
    assert made.users.ids.tolist() == ["a", "c"]
    assert [made.targets(n).tolist() for n in range(2)] == [[3], [6]]
    assert made.history.items.tolist() == [1, 2, 5]


def test_a_target_has_every_action_it_was_taken_by():
    """User a looks at item 7 twice and buys it; 8 has no action; 9 was seen before; codes beyond the bits share one."""
    offsets, codes = np.array([0, 5, 6]), np.array([1, 1, 2, 0, 1, 500], np.int16)
    items = np.array([9, 7, 7, 8, 9, 7], np.int32)
    some = Histories(
        users=Users(ids=np.array(["a", "b"], object)),
        events=Events(offsets=offsets, items=items, times=np.arange(6), actions=codes, context=Context()),
        split=np.array([TRAIN, TEST, TEST, TEST, TEST, TEST], np.int8),
    )
    made = split_requests(some, TEST, repeats=False)
    assert made.target_items.tolist() == [7, 8, 7]
    assert made.target_actions.tolist() == [0b110, 0b1, 1 << 62]
    assert split_requests(some, TEST, repeats=True).target_actions.tolist() == [0b110, 0b1, 0b10, 1 << 62]
    both = concat_requests([made.take(np.array([1])), made])
    assert both.target_actions.tolist() == [1 << 62, 0b110, 0b1, 1 << 62]


def test_a_split_without_events_makes_no_request():
    some = histories()
    empty = Histories(users=some.users, events=some.events, split=np.zeros(8, np.int8))
    made = split_requests(empty, TEST, repeats=False)
    assert len(made) == 0 and made.target_offsets.tolist() == [0]


def test_requests_can_be_taken_and_joined():
    made = split_requests(histories(), TEST, repeats=True)
    turned = made.take(np.array([1, 0]))
    assert turned.users.ids.tolist() == ["c", "a"] and turned.history.items.tolist() == [5, 6, 1, 2, 3]
    assert [turned.targets(n).tolist() for n in range(2)] == [[5], [1, 4]]
    joined = concat_requests([made, turned])
    assert joined.users.ids.tolist() == ["a", "c", "c", "a"]
    assert joined.history.offsets.tolist() == [0, 3, 5, 7, 10]
    assert [joined.targets(n).tolist() for n in range(4)] == [[1, 4], [5], [5], [1, 4]]
    assert joined.context.cat["d"].tolist() == [3, 7, 7, 3]


def test_histories_from_a_table():
    made = events.histories_from_table(
        pa.table(
            {
                schema.USER_ID: ["a", "b"],
                schema.EVENT_ITEMS: pa.array([[3, 1], []], pa.list_(pa.int32())),
                schema.EVENT_TIMES: pa.array([[5, 9], []], pa.list_(pa.int64())),
                schema.EVENT_SPLIT: pa.array([[0, 2], []], pa.list_(pa.int8())),
                schema.EVENT_ACTIONS: pa.array([[0, 1], []], pa.list_(pa.int16())),
                **{name: pa.array([[1, 2], []], pa.list_(pa.int8())) for name in schema.TIME_CONTEXT},
            }
        ),
        NO_FEATURES,
    )
    assert len(made) == 2 and made.events.offsets.tolist() == [0, 2, 2]
    assert made.events.items.tolist() == [3, 1] and made.split.tolist() == [TRAIN, TEST]
    assert made.events.context.cat["hour"].tolist() == [3, 4]
