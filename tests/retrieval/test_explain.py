"""Effects of a request's parts are differences of real scores; shares of sources sum to the score."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.core.schema import FIRST_CODE
from ctxrec.retrieval.explain import HISTORY_ITEMS, explain
from ctxrec.retrieval.raw_request import RawEvent, RawRequest

NOW = 1_700_000_000
HISTORY = [RawEvent(f"i{n % 13}", timestamp=NOW - 1000 + n, context={"device": "tv"}) for n in range(14)]
ASKED = RawRequest(
    user_id="u1", timestamp=NOW, context={"device": "phone", "basket": 2.5, "query": "red hat"}, history=HISTORY
)
ITEMS = np.array([3, 17, 5])


@pytest.fixture(scope="module")
def recommender(make_world):
    world = make_world()
    return world.recommender(world.config("model.history=20"))


def scores(recommender, request: RawRequest) -> np.ndarray:
    requests, _ = recommender.make_requests([request])
    return recommender.scores(requests)[0, ITEMS]


def why(recommender, request: RawRequest):
    requests, _ = recommender.make_requests([request])
    return explain(recommender, requests, ITEMS)


def test_an_item_of_the_history_counts_what_the_score_lacks_without_it(recommender):
    found = why(recommender, ASKED)
    assert all(len(w.history) == HISTORY_ITEMS for w in found)
    assert set(found[0].history) == {"i0", *(f"i{n}" for n in range(4, 13))}, "the latest items, i0 for its last event"
    for item in ("i0", "i12", "i4"):
        without = dataclasses.replace(ASKED, history=[e for e in HISTORY if e.item_id != item])
        wanted = scores(recommender, ASKED) - scores(recommender, without)
        np.testing.assert_allclose([w.history[item] for w in found], wanted, atol=1e-5)
        assert np.abs(wanted).max() > 1e-4
    assert [abs(e) for e in found[0].history.values()] == sorted(map(abs, found[0].history.values()), reverse=True)


def test_a_context_feature_counts_what_the_score_lacks_without_it(recommender):
    found = why(recommender, ASKED)
    assert set(found[0].context) == {"hour", "weekday", "month", "device", "basket", "query"}
    for name in ("device", "basket", "query"):
        context = {key: value for key, value in ASKED.context.items() if key != name}
        wanted = scores(recommender, ASKED) - scores(recommender, dataclasses.replace(ASKED, context=context))
        np.testing.assert_allclose([w.context[name] for w in found], wanted, atol=1e-5)
        assert np.abs(wanted).max() > 1e-4


def test_the_hour_counts_against_the_mean_of_all_hours(recommender):
    requests, _ = recommender.make_requests([ASKED])
    at_hours = []
    for hour in range(24):
        cat = requests.context.cat | {"hour": np.array([hour + FIRST_CODE], np.int32)}
        changed = dataclasses.replace(requests, context=dataclasses.replace(requests.context, cat=cat))
        at_hours.append(recommender.scores(changed)[0, ITEMS])
    wanted = scores(recommender, ASKED) - np.mean(at_hours, 0)
    np.testing.assert_allclose([w.context["hour"] for w in why(recommender, ASKED)], wanted, atol=1e-5)
    assert np.abs(wanted).max() > 1e-4


def test_shares_of_sources_sum_to_the_score_and_little_needs_little(recommender):
    for request in (ASKED, RawRequest(user_id="nobody", timestamp=NOW)):
        sums = [sum(w.sources.values()) for w in why(recommender, request)]
        np.testing.assert_allclose(sums, scores(recommender, request), atol=1e-5)
    assert why(recommender, RawRequest(timestamp=NOW))[0].history == {}
    assert set(why(recommender, RawRequest(timestamp=NOW))[0].context) == {"hour", "weekday", "month"}
