"""Bodies: what they are read as, and how often they are parsed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from starlette.requests import Request

from ctxrec.core.errors import UserError
from serve import browse, trending
from serve.api import EventsRequest, HistoryEvent, NewItems, RecommendBatch, RecommendRequest
from serve.bodies import MAX_ERRORS
from serve.http import Utf8Json, _invalid, make_app, parse, parse_one_or_many, user_error


def request_of(body: bytes) -> Request:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json")]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def read(body: bytes) -> RecommendRequest | RecommendBatch:
    return asyncio.run(parse_one_or_many(request_of(body), RecommendRequest, RecommendBatch, key="requests"))


ONE = {"user_id": "a", "k": 3}


def test_one_request_and_a_list_of_them_are_told_apart():
    assert read(json.dumps(ONE).encode()) == RecommendRequest(user_id="a", k=3)
    assert read(json.dumps({"requests": [ONE, ONE]}).encode()) == RecommendBatch.model_validate({"requests": [ONE] * 2})
    inside = {"history": [{"item_id": "requests"}], "context": {"requests": "x"}}
    assert isinstance(read(json.dumps(inside).encode()), RecommendRequest), (
        "the word is an id here, and a context feature"
    )


def test_a_list_is_parsed_once(monkeypatch):
    parsed = []
    for model in (RecommendRequest, RecommendBatch):
        whole = model.model_validate_json
        monkeypatch.setattr(model, "model_validate_json", lambda body, m=model, w=whole: parsed.append(m) or w(body))
    read(json.dumps({"requests": [ONE] * 5}).encode())
    read(json.dumps(ONE).encode())
    assert parsed == [RecommendBatch, RecommendRequest]


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        (b'{"requests": []}', ("body", "requests"), "too_short"),
        (b'{"requests": [{"user_id": "a"}, {"k": 1}]}', ("body", "requests", 1), "value_error"),
        (b'{"requests": [{"user_id": "a"}], "k": 2}', ("body", "k"), "extra_forbidden"),
        (b'{"requests": [{"user_id": "a"}', ("body",), "json_invalid"),
        (b'["requests"]', ("body",), "model_type"),
        (b'{"k": 2, "exclude": ["requests"]}', ("body",), "value_error"),
        (b"{}", ("body",), "value_error"),
        (b'{"user_id": "a", "filter": {"category": {}}}', ("body", "filter", "category"), "value_error"),
        (b'{"user_id": "a", "filter": {"category": {"any": null}}}', ("body", "filter", "category"), "value_error"),
    ],
)
def test_a_bad_body_is_refused_as_what_it_means_to_be(body, loc, kind):
    with pytest.raises(RequestValidationError) as caught:
        read(body)
    assert (tuple(caught.value.errors()[0]["loc"]), caught.value.errors()[0]["type"]) == (loc, kind)


@pytest.mark.parametrize(
    ("model", "body", "loc", "says"),
    [
        (RecommendRequest, {"uid": "a"}, ("uid",), "unknown field; expected user_id, k, context, "),
        (RecommendRequest, {"user": "a"}, ("user",), "the id of a user is user_id"),
        (RecommendRequest, {"user_id": "a", "filter": {"price": [3]}}, ("filter", "price"), "a numeric one takes min and max"),
        (RecommendRequest, {"user_id": "a", "filter": {"c": "x"}}, ("filter", "c"), "expected a list of values, or an object"),
        (RecommendBatch, {"requests": [{"user_id": "a", "K": 1}]}, ("requests", 0, "K"), "expected user_id, k, context"),
        (RecommendRequest, {"history": [{"id": "a"}]}, ("history", 0, "id"), "expected item_id, action, timestamp, value, context"),
        (RecommendRequest, {"user_id": "a", "filter": {"c": {"all": []}}}, ("filter", "c", "all"), "expected any, none, min, max"),
        (RecommendRequest, {"history": [5]}, ("history", 0), "expected an event with item_id, or an item id as a text"),
        (RecommendRequest, {"user_id": "a", "context": {"timestamp": "2025-05-01"}}, ("context", "timestamp"), "expected epoch seconds, UTC"),
        (RecommendRequest, {"user_id": "a", "context": {"timestamp": 1746057600000}}, ("context", "timestamp"), "looks like milliseconds; expected epoch seconds"),
        (EventsRequest, {"events": [{"user_id": "a", "item_id": "b", "timestamp": 1746057600000}]}, ("events", 0, "timestamp"), "looks like milliseconds"),
        (RecommendRequest, {"user_id": "a", "filter": {"price": {"max": "20"}}}, ("filter", "price", "max"), "valid number"),
        (EventsRequest, {"events": [{"user_id": "a", "item_id": "b", "value": "4"}]}, ("events", 0, "value"), "valid number"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_told_what_it_should_be(model, body, loc, says):
    with pytest.raises(RequestValidationError) as failed:
        asyncio.run(parse(request_of(json.dumps(body).encode()), model))
    answer = json.loads(asyncio.run(_invalid(request_of(b""), failed.value)).body)
    found = {tuple(mistake["loc"]): mistake["msg"] for mistake in answer["detail"]}
    assert says in found["body", *loc], found


def test_ids_are_a_history_as_events_are():
    ids = RecommendRequest.model_validate_json('{"history": ["242", {"item_id": "50", "timestamp": 5}]}')
    assert ids.history == [HistoryEvent(item_id="242"), HistoryEvent(item_id="50", timestamp=5)]


def test_the_document_shows_how_the_second_stage_is_asked_for():
    field = RecommendRequest.model_json_schema()["properties"]["rerank"]
    assert "second stage" in field["description"] and field["default"] is None
    assert "second stage (`ctxrec rerank`, a cross-encoder)" in make_app().openapi()["info"]["description"]


LARGE = {
    "a list too long": (RecommendBatch, {"requests": [{"user_id": "", "k": 0, "x": 1}] * 30_000}),
    "a history of mistakes": (RecommendRequest, {"history": [{"id": 1}] * 70_000}),
    "a context of lists": (RecommendRequest, {"user_id": "a", "context": {f"c{n}": [] for n in range(80_000)}}),
    "keys that nobody knows": (RecommendRequest, {f"x{n}": 1 for n in range(90_000)}),
    "numbers for ids": (RecommendRequest, {"user_id": "a", "exclude": [1] * 400_000}),
    "very many lists": (NewItems, {"items": [{"item_id": "a", "c": [[]] * 340_000}]}),
    "as many lists as may be": (NewItems, {"items": [{"item_id": "a", "c": [[]] * 99_000}]}),
    "contexts of lists": (RecommendRequest, {"history": [{"item_id": "a", "context": {f"{n}": [] for n in range(990)}}] * 98}),
    "contexts of large numbers": (RecommendRequest, {"history": [{"item_id": "a", "context": {f"{n}": 1e99 for n in range(990)}}] * 90}),
    "items of objects": (NewItems, {"items": [{"item_id": "a", **{f"{n}": {} for n in range(380)}}] * 256}),
    "a key of 1 MB": (RecommendRequest, {"user_id": "a", "x" * 1_000_000: 1}),
    "keys of 50 kB": (RecommendRequest, {"user_id": "a", **{f"{n}" + "x" * 50_000: 1 for n in range(20)}}),
    "a feature of 1 MB": (RecommendRequest, {"user_id": "a", "context": {"x" * 1_000_000: []}}),
}  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("name", LARGE)
def test_a_large_wrong_body_costs_little_and_its_answer_is_short(name):
    """1 MiB took 9 to 13 s of the event loop and was answered with 43 to 54 MB; now some 0.3 s, and 10 kB."""
    model, body = LARGE[name]
    text = json.dumps(body).encode()[: 4 << 20]
    start = time.process_time()
    with pytest.raises(RequestValidationError) as failed:
        asyncio.run(parse(request_of(text), model))
    answer = asyncio.run(_invalid(request_of(text), failed.value))
    assert time.process_time() - start < 2
    assert 1 <= len(json.loads(answer.body)["detail"]) <= MAX_ERRORS and len(answer.body) < 10_000


def test_what_only_the_model_knows_to_be_wrong_is_told_in_a_short_answer():
    answer = user_error(UserError("unknown context feature " + "x" * 1_000_000), "events", 3, "y" * 1_000_000)
    assert len(answer.body) < 1000 and json.loads(answer.body)["detail"][0]["loc"][:3] == ["body", "events", 3]


def test_a_value_of_no_type_of_its_field_is_one_mistake_that_says_what_is_expected():
    for model, body in (
        (RecommendRequest, {"user_id": "a", "context": {"device": {"a": 1}}}),
        (NewItems, {"items": [{"item_id": "a", "device": [1, {"a": 1}]}]}),
    ):
        with pytest.raises(RequestValidationError) as failed:
            asyncio.run(parse(request_of(json.dumps(body).encode()), model))
        (mistake,) = failed.value.errors()
        assert mistake["loc"][-1] == "device" and "expected a text" in mistake["msg"]


def test_the_event_loop_runs_while_a_large_body_is_read():
    """Each turn of the loop waits for one body at most, not for all that have come."""
    text = json.dumps({"history": [{"item_id": "a", "context": {f"{n}": 1 for n in range(990)}}] * 90}).encode()

    async def turns_between() -> int:
        reading = [asyncio.ensure_future(parse(request_of(text), RecommendRequest)) for _ in range(6)]
        turns = set()
        while not all(one.done() for one in reading):
            turns.add(sum(one.done() for one in reading))
            await asyncio.sleep(0)
        return len(turns)

    assert asyncio.run(turns_between()) >= 3


def test_an_answer_is_readable_text_and_a_lone_surrogate_breaks_none():
    sent = {"title": "Gerät 设备 \u2028", "id": 'a"\\b'}
    body = Utf8Json(sent).body
    assert json.loads(body) == sent and "Gerät 设备".encode() in body
    assert json.loads(Utf8Json({"id": "\ud800x"}).body) == {"id": "\ud800x"}


@pytest.fixture
def client():
    app = make_app()
    app.include_router(browse.router)
    app.include_router(trending.router)
    app.get("/healthz")(lambda: {"status": "ok"})
    app.get("/v1/items/{item_id:id}/similar")(lambda item_id, k=10: {"k": k})
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("url", "names", "known"),
    [
        ("/v1/trending?k=3&filters={}&K=2", ["filters", "K"], "k, filter, context"),
        ("/v1/items?ids=5&id=3", ["ids"], "id"),
        ("/v1/users?count=2", ["count"], "prefix, limit"),
    ],
)
def test_a_parameter_that_a_call_does_not_know_is_refused(client, url, names, known):
    answer = client.get(url)
    assert answer.status_code == 422
    assert [(tuple(e["loc"]), e["msg"], e["type"]) for e in answer.json()["detail"]] == [
        (("query", name), f"unknown parameter of the URL; expected {known}", "extra_forbidden") for name in names
    ]


def test_a_call_without_parameters_says_so(client):
    assert (
        client.get("/v1/catalogue?x").json()["detail"][0]["msg"] == "unknown parameter of the URL; this call has none"
    )


def test_known_parameters_probes_and_pages_are_left_alone(client):
    assert client.get("/v1/items/50/similar?k=3").json() == {"k": "3"}
    assert client.get("/healthz?monitor=7").status_code == 200
    assert client.get("/docs?x=1").status_code == 200 == client.get("/openapi.json?x=1").status_code
