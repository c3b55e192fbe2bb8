"""A request's hour, weekday and month: in the zone of the log, or in one that the request names. The rest stays."""

from __future__ import annotations

import dataclasses
import datetime
import zoneinfo

import numpy as np
import pyarrow as pa
import pytest
from tolerance import assert_same_scores

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.clock import Clock
from ctxrec.python_api.fitted_model import Model
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_files import raw_requests
from ctxrec.retrieval.request_reader import ContextReader
from ctxrec.retrieval.retriever import Retriever

NOW = 1_700_000_000  # 2023-11-14T22:13:20Z
ZONE = "Asia/Shanghai"


@pytest.fixture(scope="module")
def world(make_world):
    made = make_world()
    events = dataclasses.replace(made.spec.events, timezone=ZONE)
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, events=events))


@pytest.fixture(scope="module")
def recommender(world):
    return world.recommender(world.config())


def hours(context) -> dict[str, list[int]]:
    return {name: (context.cat[name] - schema.FIRST_CODE).tolist() for name in schema.TIME_CONTEXT}


def test_hours_are_those_of_the_log_unless_the_request_names_a_zone(recommender):
    zones = [None, "America/New_York", "UTC", ZONE]
    event = RawEvent("i1", timestamp=NOW - 60)
    raw = [RawRequest(user_id="u1", timestamp=NOW, context={"timezone": zone}, history=[event]) for zone in zones]
    requests, _ = recommender.make_requests(raw)
    shown = [datetime.datetime.fromtimestamp(NOW, zoneinfo.ZoneInfo(zone or ZONE)) for zone in zones]
    assert [at.hour for at in shown] == [6, 17, 22, 6]
    assert hours(requests.context) == {
        "hour": [at.hour for at in shown], "weekday": [at.weekday() for at in shown], "month": [11] * 4
    }  # fmt: skip
    assert requests.times.tolist() == [NOW * 1_000_000] * 4, "the moment itself is not shifted"
    assert hours(requests.history.context)["hour"] == [6] * 4, "events have the hours of the log"
    scores = recommender.scores(requests)
    np.testing.assert_allclose(scores[3], scores[0], rtol=1e-5)
    assert np.abs(scores[1] - scores[0]).max() > 1e-3


def test_python_and_requests_files_name_zones_as_http_does(recommender):
    model = Model("nowhere", "arrow")
    model.__dict__["_retriever"] = Retriever(recommender)
    lists = {}
    for zone in (None, "America/New_York"):
        context = {"timestamp": NOW} | ({} if zone is None else {"timezone": zone})
        found = model.recommend("u1", k=8, context=context).to_pydict()
        table = pa.table(
            {"request_id": [1], "user_id": ["u1"], "timestamp": [NOW], "timezone": pa.array([zone], pa.string())}
        )
        raw = raw_requests(table, recommender.spec.events.context, now_s=0.0)
        requests, _ = recommender.make_requests(raw)
        ((items, scores),) = Retriever(recommender).top_k(requests, 8)
        assert found["item_id"] == [recommender.item_ids[p] for p in items]
        assert_same_scores(found["score"], scores)
        lists[zone] = found["score"]
    assert lists[None] != pytest.approx(lists["America/New_York"], rel=1e-4)


def test_timestamps_without_a_zone_in_a_requests_file_are_times_of_the_log(recommender):
    at = datetime.datetime.fromtimestamp(NOW, zoneinfo.ZoneInfo(ZONE))
    event = {"item_id": "i1", "timestamp": at.replace(tzinfo=None)}
    for moment in (at, at.replace(tzinfo=None)):
        kind = pa.timestamp("us", tz=None if moment.tzinfo is None else ZONE)
        table = pa.table({"request_id": [1], "timestamp": pa.array([moment], kind), "history": [[event]]})
        (raw,) = raw_requests(table, recommender.spec.events.context, now_s=0.0, zone=ZONE)
        assert raw.timestamp == raw.history[0].timestamp == NOW


def test_an_unknown_zone_is_refused_by_its_name(recommender):
    for zone in ("Asia/Shanghia", 8, "", "../UTC", ["UTC"]):
        with pytest.raises(UserError, match=r"context timezone is .* is no time zone; expected an IANA name"):
            recommender.make_requests([RawRequest(context={"timezone": zone})])
    with pytest.raises(UserError, match="unknown context key 'zone'; valid keys are timestamp, timezone, device"):
        recommender.make_requests([RawRequest(context={"zone": "UTC"})])
    with pytest.raises(UserError, match="unknown context key 'timezone'; valid keys are device"):
        recommender.make_requests([RawRequest(history=[RawEvent("i1", context={"timezone": "UTC"})])])


def test_a_feature_that_is_called_timezone_stays_one(world):
    """As in bundles of logs that had such a column before requests could name a zone."""
    events = world.spec.events
    context = dataclasses.replace(events.context, categorical=("timezone", *events.context.categorical[1:]))
    features = dataclasses.replace(world.features, context_categories={"timezone": ["east", "west"]})
    cat = world.histories.events.context.cat
    moved = {("timezone" if name == "device" else name): codes for name, codes in cat.items()}
    at = dataclasses.replace(
        world.histories.events, context=dataclasses.replace(world.histories.events.context, cat=moved)
    )
    other = dataclasses.replace(
        world,
        spec=dataclasses.replace(world.spec, events=dataclasses.replace(events, context=context)),
        features=features,
        histories=dataclasses.replace(world.histories, events=at),
    )
    model = other.recommender(other.config())
    requests, _ = model.make_requests([RawRequest(timestamp=NOW, context={"timezone": "west"})])
    assert requests.context.cat["timezone"].tolist() == [schema.FIRST_CODE + 1]
    assert hours(requests.context)["hour"] == [6]
    table = pa.table({"request_id": [1], "timestamp": [NOW], "timezone": ["east"]})
    assert raw_requests(table, context, now_s=0.0)[0].context == {"timezone": "east"}


def test_positions_have_the_same_hour_at_any_moment(world):
    other = dataclasses.replace(world, features=dataclasses.replace(world.features, clock=False))
    model = other.recommender(other.config())
    raw = [RawRequest(timestamp=at, context={"timezone": "America/New_York"}) for at in (3, NOW, NOW + 40_000)]
    requests, _ = model.make_requests(raw)
    assert hours(requests.context) == {"hour": [0] * 3, "weekday": [3] * 3, "month": [1] * 3}
    one, _ = model.make_requests(raw[:1])
    assert not {"hour", "weekday", "month"} & set(explain(model, one, np.array([0]))[0].context)


def test_a_key_of_an_event_of_a_log_without_contexts_is_told_what_is_right(recommender):
    event = RawEvent("i1", context={"timestamp": 5})
    with pytest.raises(UserError, match="unknown context key 'timestamp'; valid keys are device"):
        recommender.make_requests([RawRequest(history=[event])])
    plain = dataclasses.replace(recommender.features, context_categories={}, context_numbers={}, context_texts=())
    contexts = ContextReader(plain, Clock.of(recommender.spec, plain))
    with pytest.raises(
        UserError, match="'timestamp'; valid keys are none, because the log of the model has no context"
    ):
        contexts.check([{"timestamp": 5}])
    contexts.check_requests([{"timestamp": 5}])
