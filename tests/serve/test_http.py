"""Bodies: what they are read as, and how often they are parsed."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from serve.api import RecommendBatch, RecommendRequest
from serve.http import MAX_ERRORS, make_app, parse_one_or_many


def read(body: bytes) -> RecommendRequest | RecommendBatch:
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json")]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    return asyncio.run(parse_one_or_many(request, RecommendRequest, RecommendBatch, key="requests"))


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
    ],
)
def test_a_bad_body_is_refused_as_what_it_means_to_be(body, loc, kind):
    with pytest.raises(RequestValidationError) as caught:
        read(body)
    assert (tuple(caught.value.errors()[0]["loc"]), caught.value.errors()[0]["type"]) == (loc, kind)


def test_the_description_says_what_http_does_not_reach():
    assert (
        "second stage (`ctxrec.rerank`, a cross-encoder) is not available over HTTP"
        in make_app().openapi()["info"]["description"]
    )


@pytest.mark.parametrize(
    "body",
    [
        {"requests": [{"user_id": "", "k": 0, "x": 1}] * 30_000},
        {"history": [{"id": 1}] * 100_000},
        {"user_id": "a", "context": {f"c{n}": [] for n in range(80_000)}},
        {f"x{n}": 1 for n in range(90_000)},
        {"user_id": "a", "exclude": [1] * 400_000},
    ],
)
def test_a_large_wrong_body_costs_little_and_its_answer_is_short(body):
    text = json.dumps(body).encode()[: 4 << 20]
    start = time.thread_time()
    with pytest.raises(RequestValidationError) as failed:
        read(text)
    assert time.thread_time() - start < 3, "it was 9 to 13 s for 1 MiB"
    errors = failed.value.errors()
    assert 1 <= len(errors) <= MAX_ERRORS and len(json.dumps([e["loc"] for e in errors])) < 10_000
