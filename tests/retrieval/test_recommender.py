"""Raw requests become arrays: stored and given histories, context in words, times, and clear errors."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.clock import Clock
from ctxrec.data.events import US
from ctxrec.data.features import gap_buckets
from ctxrec.data.prepared import FeatureMeta
from ctxrec.retrieval import recommender as module
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_reader import ContextReader

LATER = 1_700_000_000.0


@pytest.fixture(scope="module")
def world(make_world):
    return make_world(lengths=(9, 0, 5))


@pytest.fixture(scope="module")
def recommender(world) -> Recommender:
    return world.recommender(world.config())


def items(requests, n: int) -> list[int]:
    return requests.history.items[requests.history.row(n)].tolist()


def test_a_stored_history_ends_strictly_before_the_request(recommender, world):
    events = world.histories.events
    times = events.times[:9]
    raw = [RawRequest(user_id="u0", timestamp=int(t) / US) for t in times]
    raw += [RawRequest(user_id="u0", timestamp=int(t) / US + 1e-3) for t in times]
    requests, fallback = recommender.make_requests(raw)
    for n in range(9):
        assert items(requests, n) == events.items[:n].tolist()
        assert items(requests, 9 + n) == events.items[: n + 1].tolist()
    assert fallback.tolist() == [True] + [False] * 17, "before the first event there is nothing to go by"
    assert requests.history.times[requests.history.row(8)].tolist() == times[:8].tolist()


def test_the_service_also_knows_what_happened_at_the_very_time_of_the_request(recommender, world):
    events = world.histories.events
    raw = [RawRequest(user_id="u0", timestamp=int(t) / US) for t in events.times[:9]]
    requests, fallback = recommender.make_requests(raw, including_now=True)
    assert not fallback.any()
    for n in range(9):
        assert items(requests, n) == events.items[: n + 1].tolist()


def test_a_given_history_replaces_the_stored_one(recommender, world):
    given = [
        RawEvent("i3", action="buy", timestamp=LATER - 50, context={"device": "phone", "query": "hat"}),
        RawEvent("no such item", timestamp=LATER - 40),
        RawEvent("i1", action="view", timestamp=LATER - 30.5, context={"basket": 2}),
        RawEvent("i3", action="unheard of"),
    ]
    raw = [RawRequest(user_id=user, timestamp=LATER, history=given) for user in ("u0", "stranger", None)]
    requests, fallback = recommender.make_requests([*raw, RawRequest(user_id="u0", timestamp=LATER, history=[])])
    assert fallback.tolist() == [False, False, False, True]
    for n in range(3):
        row = requests.history.row(n)
        assert items(requests, n) == [3, 1, 3]
        assert requests.history.actions[row].tolist() == [2, 1, 0]
        moments = np.round(np.array([LATER - 50, LATER - 30.5, LATER]) * US).astype(np.int64)
        assert requests.history.times[row].tolist() == moments.tolist()
        context = requests.history.context.take(row)
        assert context.cat["device"].tolist() == [3, schema.MISSING, schema.MISSING]
        assert context.cat["hour"].tolist() == Clock().codes(moments)["hour"].tolist()
        np.testing.assert_array_equal(context.num["basket"], np.array([np.nan, 2, np.nan], np.float32))
        assert context.text["query"].tolist() == ["hat", None, None]
    # Who asks still counts: the known user's attributes, nothing for a stranger.
    assert requests.users.cat["gender"].tolist() == [world.histories.users.cat["gender"][0], 0, 0,
                                                     world.histories.users.cat["gender"][0]]  # fmt: skip
    assert np.isnan(requests.users.num["age"][1:3]).all()


def test_only_unknown_items_are_no_history(recommender):
    requests, fallback = recommender.make_requests([RawRequest(history=[RawEvent("?")], timestamp=LATER)])
    assert fallback.tolist() == [True] and items(requests, 0) == []


def test_strangers_and_users_without_events_get_the_fallback(recommender):
    raw = [RawRequest(user_id=user, timestamp=LATER) for user in ("stranger", None, "u1", "u0")]
    requests, fallback = recommender.make_requests(raw)
    assert fallback.tolist() == [True, True, True, False]
    scores = recommender.scores(requests)
    assert scores.shape == (4, 20) and np.isfinite(scores).all()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    evening, _ = recommender.make_requests([RawRequest(timestamp=LATER + 6 * 3600)])
    assert np.abs(recommender.scores(evening)[0] - scores[0]).max() > 1e-3, "a stranger's answer depends on the moment"


def test_context_by_hand(recommender):
    contexts = [
        {"device": "tv", "basket": 3, "query": "red shoe"},
        {"device": "new", "basket": np.float32(1.5)},
        {"device": "", "basket": math.nan, "query": ""},
        {"device": None, "basket": None, "query": None},
        {"device": " ", "basket": math.inf},
        {"device": math.nan},
        {},
    ]
    requests, _ = recommender.make_requests([RawRequest(timestamp=LATER, context=c) for c in contexts])
    assert requests.context.cat["device"].tolist() == [2, schema.OTHER, 0, 0, 0, 0, 0]
    found = requests.context.num["basket"]
    assert found[:2].tolist() == [3, 1.5] and not np.isfinite(found[2:]).any()
    assert requests.context.text["query"].tolist() == ["red shoe", None, "", None, None, None, None]
    queries = recommender.queries(requests)
    assert np.isfinite(queries).all()
    np.testing.assert_allclose(queries[2:], np.broadcast_to(queries[6], (5, 9)), atol=1e-5)
    assert np.abs(queries[0] - queries[6]).max() > 1e-3


@pytest.mark.parametrize(
    ("value", "spelled"), [(True, "true"), (False, "false"), (3, "3"), (3.0, "3"), (np.int64(3), "3"), (0.5, "0.5")]
)
def test_categories_are_spelled_as_prepare_spells_them(value, spelled):
    import pyarrow as pa

    from ctxrec.data.parsing import to_text

    assert to_text(pa.array([value])).to_pylist() == [spelled]
    features = FeatureMeta({}, {}, {}, {}, {"c": ["other", spelled]}, {}, [], [])
    assert ContextReader(features, Clock()).read([{"c": value}], np.zeros(1, np.int64)).cat["c"] == [
        schema.FIRST_CODE + 1
    ]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (RawRequest(context={"devise": "tv"}), ["'devise'", "timestamp, timezone, device, basket, query"]),
        (RawRequest(history=[RawEvent("i1", context={"devise": "tv"})]), ["'devise'", "device"]),
        (RawRequest(context={"basket": "3"}), ["basket", "'3'", "a number"]),
        (RawRequest(context={"basket": True}), ["basket", "True", "a number"]),
        (RawRequest(context={"query": 3}), ["query", "3", "a text"]),
        (RawRequest(context={"device": ["tv"]}), ["device", "single value"]),
        (RawRequest(context={"device": {"a": 1}}), ["device", "single value"]),
        (RawRequest(timestamp=math.nan), ["timestamp", "nan"]),
        (RawRequest(timestamp=math.inf), ["timestamp", "inf"]),
        (RawRequest(timestamp=LATER * 1e6), ["timestamp", "epoch seconds"]),
        (RawRequest(timestamp="2024-01-01"), ["timestamp", "2024-01-01", "epoch seconds"]),
        (RawRequest(timestamp=True), ["timestamp", "True"]),
        (RawRequest(context={"timestamp": "noon"}), ["timestamp", "noon"]),
        (RawRequest(history=[RawEvent("i1", timestamp=math.nan)]), ["timestamp", "nan"]),
    ],
)
def test_what_does_not_fit_is_named(recommender, request_, named):
    good = RawRequest(user_id="u0", timestamp=LATER)
    with pytest.raises(UserError) as caught:
        recommender.make_requests([good, request_])
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_the_moment_is_the_requests_the_contexts_or_now(recommender):
    before = time.time()
    raw = [
        RawRequest(timestamp=LATER),
        RawRequest(context={"timestamp": LATER}),
        RawRequest(timestamp=LATER, context={"timestamp": 5}),
        RawRequest(timestamp=0),
        RawRequest(user_id="u0"),
    ]
    requests, _ = recommender.make_requests(raw)
    assert requests.times[:4].tolist() == [int(LATER) * US] * 3 + [0]
    assert before <= requests.times[4] / US <= time.time()
    assert len(items(requests, 4)) == 9
    assert requests.context.cat["hour"].tolist() == Clock().codes(requests.times)["hour"].tolist()


def test_no_request(recommender):
    requests, fallback = recommender.make_requests([])
    assert len(requests) == 0 and fallback.shape == (0,)
    assert recommender.queries(requests).shape == (0, 9) and recommender.scores(requests).shape == (0, 20)


def test_scores_are_products_and_do_not_depend_on_the_batch(recommender, monkeypatch):
    raw = [RawRequest(user_id=f"u{n % 4}", timestamp=LATER + 977 * n, context={"device": "tv"}) for n in range(11)]
    requests, _ = recommender.make_requests(raw)
    queries, scores = recommender.queries(requests), recommender.scores(requests)
    np.testing.assert_allclose(scores, queries @ recommender.item_vectors.T, atol=1e-6)
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    np.testing.assert_allclose(recommender.queries(requests), queries, atol=1e-5)
    for n in range(11):
        alone, _ = recommender.make_requests(raw[n : n + 1])
        np.testing.assert_allclose(recommender.queries(alone)[0], queries[n], atol=1e-5)


def test_only_the_latest_events_are_read(recommender, world):
    """model.history is 6: older events count only as the gap before the first one that is read."""
    longer = [RawEvent(f"i{n}", timestamp=LATER - 1000 + 10 * n) for n in range(10)]
    other = [RawEvent(f"i{n + 10}", timestamp=event.timestamp) for n, event in enumerate(longer[:4])] + longer[4:]
    requests, _ = recommender.make_requests(
        [RawRequest(timestamp=LATER, history=h) for h in (longer, other, longer[4:])]
    )
    queries = recommender.queries(requests)
    np.testing.assert_allclose(queries[1], queries[0], atol=1e-5)
    batch = world.batcher(world.config()).requests(requests)
    assert batch.lengths_B.tolist() == [6, 6, 6]
    assert batch.query_gaps_BS[:, 0].tolist() == [*gap_buckets(np.array([10.0, 10.0])).tolist(), 0]


def test_histories_of_all_kinds_in_one_batch_are_those_they_are_alone(recommender, world):
    times = world.histories.events.times / US
    recent = (RawEvent("i2", timestamp=float(times[3]) + 1), RawEvent("i5", timestamp=LATER - 5))
    raw = [
        RawRequest(user_id="u0", timestamp=LATER),
        RawRequest(user_id="nobody", timestamp=LATER),
        RawRequest(user_id="u0", timestamp=LATER, history=[RawEvent("i1")]),
        RawRequest(user_id="u0", timestamp=LATER, recent=recent),
        RawRequest(user_id="u2", timestamp=LATER),
        RawRequest(user_id="nobody", timestamp=LATER, recent=recent),
        RawRequest(user_id="u0", timestamp=float(times[2])),
        RawRequest(history=[], timestamp=LATER),
    ]
    together, fallback = recommender.make_requests(raw)
    for n, request in enumerate(raw):
        alone, _ = recommender.make_requests([request])
        row = together.history.row(n)
        for name in ("items", "times", "actions"):
            np.testing.assert_array_equal(getattr(together.history, name)[row], getattr(alone.history, name))
        np.testing.assert_array_equal(together.history.context.cat["device"][row], alone.history.context.cat["device"])
    stored = world.histories.events.items[:9].tolist()
    assert items(together, 3) == [*stored[:4], 2, *stored[4:], 5], "each event at its time"
    assert items(together, 5) == [2, 5] and items(together, 6) == stored[:2]
    assert fallback.tolist() == [False, True, False, False, False, False, False, True]
    nothing, _ = recommender.make_requests([])
    assert len(nothing) == 0 and len(nothing.history.items) == 0


def test_an_event_that_the_bundle_has_already_counts_once(recommender, world):
    events = world.histories.events
    actions = [None, *recommender.features.actions]
    recent = [
        RawEvent(f"i{events.items[n]}", action=actions[events.actions[n]], timestamp=events.times[n] / US)
        for n in range(6, 9)
    ]
    requests, _ = recommender.make_requests(
        [RawRequest(user_id="u0", timestamp=LATER, recent=[*recent, RawEvent("i1")])]
    )
    assert items(requests, 0) == [*events.items[:9].tolist(), 1]


def test_contexts_that_another_version_took_are_read_as_far_as_possible(recommender):
    context = {"device": "tv", "weather": "rain", "basket": "much", "query": "hat"}
    assert recommender.contexts.usable(context) == {"device": "tv", "query": "hat"}
    with pytest.raises(UserError, match="weather"):
        recommender.contexts.check([{"device": "tv"}, context])
