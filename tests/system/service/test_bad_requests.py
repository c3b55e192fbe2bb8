"""What clients get wrong, and what they are told."""

from __future__ import annotations

import json

import pytest

from serve.api import MAX_BODY_BYTES

NOW = 1_700_000_000


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "user_id or history is required"),
        ({"user_id": None, "history": None}, "user_id or history is required"),
        ({"user_id": "u1", "k": 0}, '"k"'),
        ({"user_id": "u1", "k": -1}, '"k"'),
        ({"user_id": "u1", "k": 1001}, '"k"'),
        ({"user_id": "u1", "k": 2.5}, '"k"'),
        ({"user_id": "u1", "k": True}, '"k"'),
        ({"user_id": 196}, '"user_id"'),
        ({"user_id": ""}, '"user_id"'),
        ({"user_id": "x" * 10_000}, "found 10000 bytes; expected at most 1024"),
        ({"user_id": "\U0001f600" * 257}, "found 1028 bytes; expected at most 1024"),
        ({"user_id": "u1", "usr": 1}, '"usr"'),
        ({"requests": [{"user_id": "u1"}, {"user_id": "u1", "explain": True}]}, "which only a single request may have"),
        ({"user_id": "u1", "context": {"weather": "rain"}}, "weather"),
        ({"user_id": "u1", "context": {"device": {"a": 1}}}, '"device"'),
        ({"user_id": "u1", "context": {"basket_value": "much"}}, "basket_value"),
        ({"user_id": "u1", "context": {"timestamp": "now"}}, '"timestamp"'),
        ({"user_id": "u1", "context": {"timestamp": NOW * 1000}}, '"timestamp"'),
        ({"user_id": "u1", "context": {"timestamp": True}}, '"timestamp"'),
        ({"user_id": "u1", "context": {"query": "x" * 10_000}}, "expected at most 8192"),
        ({"user_id": "u1", "filter": {"colour": ["red"]}}, "unknown column 'colour'"),
        ({"user_id": "u1", "filter": {"category": "group1"}}, '"category"'),
        ({"user_id": "u1", "exclude": "i1"}, '"exclude"'),
        ({"user_id": "u1", "exclude": ["i1"] * 10_001}, '"exclude"'),
        ({"history": [{"item": "i1"}]}, '"item_id"'),
        ({"history": [{"item_id": "i1"}] * 1001}, '"history"'),
        ({"history": [["i1"]]}, '"history"'),
        ([], "expected a JSON object"),
        (b"", "malformed JSON"),
        (b"{", "malformed JSON: EOF while parsing an object at line 1 column 1"),
        (b'{"user_id": "u1",}', "malformed JSON"),
        (b'{"user_id": "u1", "k": NaN}', '"k"'),
        (b'{"user_id": "u1", "context": {"timestamp": NaN}}', '"timestamp"'),
        (b'{"user_id": "u1", "context": {"timestamp": Infinity}}', '"timestamp"'),
        (b'{"user_id": "u1", "context": {"basket_value": NaN}}', '"basket_value"'),
        (b'{"user_id": "u1", "context": {"basket_value": 1e999}}', '"basket_value"'),
        (b'{"user_id": "\\ud800"}', "malformed JSON: unexpected end of hex escape"),
        (b'{"user_id": "u1", "\\ud800": 1}', "malformed JSON"),
        (b'{"user_id": "u1", "context": {"\\ud800": 1}}', "malformed JSON"),
        ({"user_id": "u1", "filter": {"category": {}}}, "expected any, none, min or max"),
        ({"user_id": "u1", "filter": {"category": {"min": 1}}}, "expected any or none, not min or max"),
        ({"user_id": "u1", "filter": {"price": ["1"]}}, "expected min or max, not values"),
        ({"user_id": "u1", "filter": {"price": {"min": "1e"}}}, '"min"'),
        ({"user_id": "u1", "filter": {"category": {"all": ["x"]}}}, '"all"'),
        ({"user_id": "u1", "allow": "i1"}, '"allow"'),
        ({"requests": []}, '"requests"'),
        ({"requests": [{"user_id": "u1"}] * 257}, '"requests"'),
        ({"requests": [{"user_id": "u1"}, {"k": 1}]}, '["body","requests",1]'),
        (
            {"requests": [{"user_id": "u1"}, {"user_id": "u1", "context": {"weather": 1}}]},
            '["body","requests",1,"context","weather"]',
        ),
        ({"requests": [{"user_id": "u1"}], "user_id": "u1"}, '"user_id"'),
    ],
)
def test_bad_input_is_a_422_that_names_the_field(client, body, names):
    assert names in client.refuses(body)


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"[" * 200_000, b'{"user_id": "u1", "k": ' + b"9" * 5000 + b"}"])
def test_bytes_that_no_json_parser_takes(client, body):
    response = client.post("/v1/recommend", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422) and response.json()["detail"]


def test_a_form_is_told_to_be_json(client):
    response = client.post("/v1/recommend", data={"user_id": "u1"})
    assert response.status_code == 422 and "application/json" in response.text


def test_large_bodies_are_refused_with_and_without_a_length(client):
    big = json.dumps({"user_id": "u1", "exclude": ["x" * 100] * 50_000}).encode()
    assert len(big) > 5_000_000
    assert "expected at most 1048576" in client.refuses(big, status=413)
    pieces = (big[n : n + 65_536] for n in range(0, len(big), 65_536))
    response = client.post("/v1/recommend", content=pieces, headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and "expected at most 1048576" in response.json()["detail"]
    padded = b'{"user_id": "u1"}'.ljust(MAX_BODY_BYTES)
    assert client.post("/v1/recommend", content=padded, headers={"Content-Type": "application/json"}).status_code == 200


def test_unknown_paths_and_methods(client):
    assert client.get("/v2/recommend").status_code == 404
    response = client.get("/v1/recommend")
    assert response.status_code == 405 and response.json() == {"detail": "Method Not Allowed"}
    assert client.get("/v1/events").status_code == client.put("/v1/items").status_code == 405


@pytest.mark.parametrize(
    ("events", "names"),
    [
        ([], '["body","events"]'),
        ([{"item_id": "i1"}], '["body","events",0,"user_id"]'),
        ([{"user_id": "x", "item_id": "i1"}, {"user_id": "x", "item_id": " "}], '["body","events",1,"item_id"]'),
        ([{"user_id": "x", "item_id": "i1", "timestamp": -1}], '"timestamp"'),
        ([{"user_id": "x", "item_id": "i1", "timestamp": 7_258_118_400}], '"timestamp"'),
        ([{"user_id": "x", "item_id": "i1", "context": {"device": "tv"}}] * 2
         + [{"user_id": "x", "item_id": "i1", "context": {"weather": "rain"}}], '["body","events",2,"context","weather"]'),
        ([{"user_id": "x", "item_id": "i1", "context": {"basket_value": "much"}}], "expected a number"),
        ([{"user_id": "x", "item_id": "i1", "weight": 3}], '"weight"'),
        ([{"user_id": "x", "item_id": "i1"}] * 1001, '["body","events"]'),
    ],
)  # fmt: skip
def test_bad_events_are_a_422_that_names_the_field_and_none_is_taken(client, events, names):
    response = client.post_events(*events)
    assert response.status_code == 422 and names in response.text, response.text
    assert client.ask(user_id="x")["fallback"]


@pytest.mark.parametrize(
    ("users", "names"),
    [
        ([{"user_id": "a"}, {"user_id": "b", "height": 3}], ["users", 1, "height"]),
        ([{"user_id": "a", "age": "3"}], ["users", 0, "age"]),
        ([{"user_id": "a", "age": {"years": 3}}], ["users", 0, "age"]),
        ([{"user_id": "a", "gender": [["x"]]}], ["users", 0, "gender"]),
        ([{"age": 3}], ["users", 0, "user_id"]),
        ([{"user_id": " "}], ["users", 0, "user_id"]),
        ([{"user_id": "a" * 2000}], ["users", 0, "user_id"]),
        ([{"user_id": "a", "gender": "x" * 9000}], ["users", 0, "gender"]),
        ([], ["users"]),
        ([{"user_id": "a"}] * 1001, ["users"]),
        ("a", ["users"]),
    ],
)
def test_a_bad_user_is_a_422_that_names_the_column_and_none_is_stored(client, users, names):
    response = client.post("/v1/users", json={"users": users})
    assert response.status_code == 422
    assert any(error["loc"][: len(names) + 1] == ["body", *names] for error in response.json()["detail"]), response.text
    assert client.get("/v1/users/a").status_code == client.delete("/v1/users/a").status_code == 404


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ([{"item_id": "a"}, {"item_id": "b", "colour": "red"}], ["items", 1, "colour"]),
        ([{"item_id": "a", "price": "3"}], ["items", 0, "price"]),
        ([{"title": "x"}], ["items", 0, "item_id"]),
        ([{"item_id": "a", "category": [["x"]]}], ["items", 0, "category"]),
        ([], ["items"]),
    ],
)
def test_a_bad_item_is_a_422_that_names_the_column(client, items, names):
    response = client.post("/v1/items", json={"items": items})
    assert response.status_code == 422
    assert any(error["loc"][: len(names) + 1] == ["body", *names] for error in response.json()["detail"]), response.text
    assert client.get("/v1/items/a/similar").status_code == 404
