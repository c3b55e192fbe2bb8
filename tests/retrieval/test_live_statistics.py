"""Live statistics of a loaded model: what counts, what is trending, and what a request may know."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.data.events import US
from ctxrec.data.feedback import EventKinds
from ctxrec.memory.live_counts import LIVE_COUNTS, once_a_day
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.retrieval import live_statistics
from ctxrec.retrieval.explain import NOW, explain
from ctxrec.retrieval.live_statistics import LiveStatistics, Seen
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import Retriever

DAY = 86_400 * US
NEGATIVE = "view"  # is negative feedback in these tests


@pytest.fixture
def model(tiny_run):
    """The tiny model, with weights of live sources, so that what happens now decides."""
    found = load_recommender(f"{tiny_run}/bundle")
    num = len(LIVE_COUNTS.half_lives_s)
    live = np.array([[2.0] * num, [0.0] * num], np.float32)
    weights = {**found.spec.events.actions, NEGATIVE: -1.0}
    found.spec = dataclasses.replace(found.spec, events=dataclasses.replace(found.spec.events, actions=weights))
    found.maker.kinds = EventKinds.of(found.spec.events, found.features.actions, found.features.graded)
    found.live_weights = LiveWeights(LIVE_COUNTS.half_lives_s, found.blend.weights_2K, live)
    return found


def latest_us(model) -> int:
    return int(model.histories.events.times.max())


def test_the_log_of_the_bundle_is_where_counting_begins(model):
    statistics, events = LiveStatistics(model), model.histories.events
    positions, counts = statistics.trending(5)
    weights = 0.5 ** ((latest_us(model) - events.times) / DAY)
    users = np.repeat(np.arange(len(model.histories)), events.lengths)
    negative = events.actions == 1 + model.features.actions.index(NEGATIVE)
    weights[negative] = 0
    counted = np.flatnonzero(~negative)
    again = counted[~once_a_day(users[counted], events.items[counted], events.times[counted])]
    weights[again] = 0
    plain = np.bincount(events.items, weights, minlength=len(model.item_ids))
    np.testing.assert_allclose(counts, np.sort(plain)[::-1][:5], rtol=1e-5)
    np.testing.assert_allclose(plain[positions], counts, rtol=1e-5)


def test_a_context_counts_its_part_of_the_log_and_of_what_comes(model):
    statistics, events = LiveStatistics(model), model.histories.events
    names = model.features.context_categories["device"]
    now = latest_us(model)
    everything = len(model.item_ids)

    def counts(**context) -> np.ndarray:
        positions, found = statistics.trending(everything, context=context)
        return np.bincount(positions, found, minlength=everything)

    total = counts()
    parts = {name: counts(device=name) for name in names}
    without = np.bincount(events.items, events.context.cat["device"] < 2, minlength=everything) > 0
    np.testing.assert_allclose(sum(parts.values())[~without], total[~without], rtol=1e-4)
    assert all(part.sum() > 0 for part in parts.values()) and not np.allclose(*list(parts.values())[:2])
    mine = statistics.codes({"device": names[0], "basket_value": 3, "query": "x"})
    statistics.add([Seen(f"u{n}", "i1", now, codes=mine) for n in range(20)] + [Seen("odd", "i1", now)], now_us=now)
    i1 = model.item_position["i1"]
    assert counts()[i1] - total[i1] == pytest.approx(21, rel=1e-4), "one of them has no context"
    assert counts(device=names[0])[i1] - parts[names[0]][i1] == pytest.approx(20, rel=1e-4)
    assert counts(device=names[1])[i1] == pytest.approx(parts[names[1]][i1], rel=1e-4)
    assert statistics.codes({"device": ["of another", "version"]}) == statistics.codes({}), "it is not known"


def test_an_event_that_was_trained_on_and_negative_feedback_do_not_count(model):
    statistics, events = LiveStatistics(model), model.histories.events
    user = int(np.flatnonzero(events.lengths)[0])
    at = events.offsets[user]
    known = Seen(model.histories.users.ids[user], model.item_ids[events.items[at]], int(events.times[at]))
    now = latest_us(model) + DAY
    assert statistics.add([known, Seen("somebody", "i1", now, NEGATIVE)], now_us=now) == 0
    assert statistics.add([known, Seen("somebody", "i1", now)], now_us=now) == 1


def test_one_writer_makes_nothing_popular_alone(model, monkeypatch):
    """A thousand events of one user and item on a day count as one, in one call or many, and beside the bundle's log."""
    statistics, events, noon = (
        LiveStatistics(model),
        model.histories.events,
        (latest_us(model) // DAY + 2) * DAY + DAY // 2,
    )
    many = [Seen("robot", "i1", noon + n) for n in range(1000)]
    assert [statistics.add(part, now_us=noon + DAY) for part in (many, many[::-1], [Seen("other", "i1", noon)])] == [
        1,
        0,
        1,
    ]
    assert statistics.add([Seen("robot", "i1", noon + DAY), Seen("robot", "i2", noon)], now_us=noon + DAY) == 2
    user = int(np.flatnonzero(events.lengths)[0])
    at, name = int(events.times[events.offsets[user]]), model.histories.users.ids[user]
    item = model.item_ids[events.items[events.offsets[user]]]
    assert statistics.add([Seen(name, item, at // DAY * DAY + n) for n in range(10)], now_us=noon) == 0
    monkeypatch.setattr(live_statistics, "_MOST_COUNTED", 10)
    assert statistics.add([Seen(f"{n}", "i1", noon) for n in range(2000)], now_us=noon) == 2000
    assert len(statistics._counted) < 2000, "what is remembered is bounded"


def test_a_clock_that_is_wrong_does_not_stop_the_others(model):
    statistics, now = LiveStatistics(model), latest_us(model) + DAY
    statistics.add([Seen("a", "i1", now + 1000 * 365 * DAY)], now_us=now)
    assert statistics.counts.newest_us == now


@pytest.mark.parametrize("context", [{}, {"device": "tv"}])
def test_after_a_long_pause_only_what_came_since_is_trending(model, context):
    statistics, now = LiveStatistics(model), latest_us(model) + 1000 * DAY
    event = Seen("a", "i1", now, codes=statistics.codes({"device": "tv"}))
    assert statistics.add([event], now_us=now) == 1
    positions, counts = statistics.trending(40, context=context)
    assert positions.tolist() == [model.item_position["i1"]] and counts.tolist() == [1]


def test_events_of_an_item_that_is_not_there_yet_count_when_it_is(model):
    statistics, now = LiveStatistics(model), latest_us(model) + DAY
    assert statistics.add([Seen("a", "new", now), Seen("b", "new", now)], now_us=now) == 0
    model.catalogue.remove([])  # a change of the catalogue, without the item
    assert statistics.add([], now_us=now) == 0
    model.item_position["new"] = model.item_position["i3"]
    model.catalogue.remove([])
    assert statistics.add([], now_us=now) == 2


def test_what_happens_now_lifts_an_item_for_everybody_and_leaves_the_past_alone(model):
    now = latest_us(model) + DAY
    statistics, retriever = LiveStatistics(model), Retriever(model)
    asked = [RawRequest(user_id="nobody", timestamp=at / US) for at in (now, latest_us(model) - DAY)]
    requests, _ = model.make_requests(asked)
    least = int(model.scores(requests)[0].argmin())
    before = retriever.top_k(requests, 5)
    statistics.add([Seen(f"u{n}", model.item_ids[least], now) for n in range(200)], now_us=now)
    after = retriever.top_k(requests, 5)
    assert least not in before[0][0] and after[0][0][0] == least
    assert after[1][0].tolist() == before[1][0].tolist(), "a request of the past does not know it"
    assert statistics.trending(1)[0].tolist() == [least]
    why = explain(model, requests.take(np.array([0])), after[0][0])[0]
    assert why.sources[NOW] > 5 and sum(why.sources.values()) == pytest.approx(float(after[0][1][0]), rel=1e-4)
    model.catalogue.remove([model.item_ids[least]])
    assert least not in statistics.trending(40)[0] and least not in retriever.top_k(requests, 5)[0][0]
