"""Every field of the API does something: another value changes an answer or what is stored, or the answer says why not.

The fields come from the models of the bodies, so a new field without a case fails here.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from rerankers import put_second_stage

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import load_config
from ctxrec.data.posted_rows import BadRow, check_rows, file_table
from ctxrec.live.event_files import events_table
from ctxrec.retrieval.retriever import load_retriever
from serve import api
from serve.engine import Engine, answer_json
from serve.journal import logged_events, saying_nothing

NOW = 1_700_000_000
PLAIN: dict[str, Any] = {"history": ["i4", "i8"], "k": 5, "context": {"timestamp": NOW}}
EVENT: dict[str, Any] = {"item_id": "i4", "action": "view", "timestamp": NOW - 50, "context": {"device": "tv"}}

# What of a request is changed, by field; None in the first place: the plain request.
REQUESTS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "user_id": ({"history": None, "user_id": "nobody"}, {"history": None, "user_id": "u1"}),
    "k": (None, {"k": 3}),
    "context": (None, {"context": {"timestamp": NOW, "device": "tv"}}),
    "history": (None, {"history": ["i4"]}),
    "exclude": (None, {"exclude": "first"}),
    "dislike": (None, {"dislike": "first"}),
    "allow": (None, {"allow": ["i1", "i2"]}),
    "filter": (None, {"filter": {"category": ["group1"]}}),
    "user": (None, {"user": {"gender": "F"}}),
    "query": (None, {"query": "red shoe"}),
    "diversity": (None, {"diversity": 0.9}),
    "rerank": (None, {"rerank": True}),
    "explain": (None, {"explain": True}),
    "probability": (None, {"probability": True}),
}
CONTEXT: dict[str, tuple[Any, Any]] = {
    "timestamp": (NOW, NOW - 12 * 3600),
    "timezone": ("UTC", "Asia/Tokyo"),
    "device": ("tv", "phone"),
    "basket_value": (0.0, 5.0),
    "search": (None, "red shoe"),
}
HISTORY: dict[str, tuple[Any, Any]] = {
    "item_id": ("i4", "i9"),
    "action": ("view", "buy"),
    "timestamp": (NOW - 50, NOW - 5_000_000),
    "context": ({"device": "tv"}, {"device": "phone"}),
    "value": (None, 1.0),
}
RULES: dict[str, dict[str, Any]] = {
    "any": {"category": {"any": ["group1"]}},
    "none": {"category": {"none": ["group0"]}},
    "min": {"price": {"min": 20}},
    "max": {"price": {"max": 20}},
}
ATTRIBUTES: dict[str, Any] = {"gender": "F", "interests": ["films", "chess"], "age": 20, "about": "red hat"}
POSTED: dict[str, tuple[Any, Any]] = {
    "user_id": ("a", "b"),
    "item_id": ("i1", "i2"),
    "action": ("view", "buy"),
    "timestamp": (NOW, NOW + 1),
    "value": (1.0, 2.0),
    "context": ({}, {"device": "tv"}),
}


@pytest.fixture(scope="module")
def engine(told_run) -> Engine:
    put_second_stage(find_bundle(told_run))
    return Engine(load_retriever(told_run, load_config().index, rerank=False, on_request=True))


def ask(engine: Engine, **body: Any) -> dict[str, Any]:
    body = {name: value for name, value in (PLAIN | body).items() if value is not None}
    (answer,) = engine.recommend([[api.RecommendRequest.model_validate(body)]])[0].answers
    if isinstance(answer, Exception):
        raise answer
    return answer_json(answer)


def differ(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers differ by more than the last bits of a score (2e-5, where scores are below 10)."""
    parts = ("item_id", "why", "probability")
    lists = [[[item.get(part) for part in parts] for item in answer["items"]] for answer in (one, other)]
    if lists[0] != lists[1] or {**one, "items": 0} != {**other, "items": 0}:
        return True
    pairs = zip(one["items"], other["items"], strict=True)
    return any(abs(a["score"] - b["score"]) > 2e-5 for a, b in pairs)


def test_every_field_of_a_request(engine):
    assert REQUESTS.keys() == api.RecommendRequest.model_fields.keys(), "a new field needs a case here"
    for name, (before, after) in REQUESTS.items():
        plain = ask(engine, **(before or {}))
        first = plain["items"][0]["item_id"]
        changed = {key: [first] if value == "first" else value for key, value in after.items()}
        assert differ(plain, ask(engine, **changed)), name


def test_every_part_of_a_context(engine):
    features = engine.retriever.recommender.features
    known = [*features.context_categories, *features.context_numbers, *features.context_texts]
    assert CONTEXT.keys() == {*api.Context.model_fields, "timezone", *known}, "a new part needs a case here"
    for name, (before, after) in CONTEXT.items():
        one, other = (ask(engine, context=PLAIN["context"] | {name: value}) for value in (before, after))
        assert differ(one, other), name


def test_every_field_of_an_event_of_the_history(engine):
    assert HISTORY.keys() == api.HistoryEvent.model_fields.keys(), "a new field needs a case here"
    for name, (before, after) in HISTORY.items():
        one, other = (ask(engine, history=[EVENT | {name: value}, "i8"]) for value in (before, after))
        assert differ(one, other), name


def test_every_part_of_a_rule(engine):
    assert RULES.keys() == api.ColumnRule.model_fields.keys(), "a new part needs a case here"
    plain = ask(engine, k=40)
    for name, rule in RULES.items():
        assert differ(plain, ask(engine, k=40, filter=rule)), name
        assert ask(engine, k=40, filter=rule)["items"], f"{name} leaves some items"


def test_every_attribute_of_a_user(engine):
    attributes = engine.retriever.recommender.attributes
    assert ATTRIBUTES.keys() == set(attributes.names), "a new attribute needs a case here"
    plain = ask(engine)
    for name, value in ATTRIBUTES.items():
        assert differ(plain, ask(engine, user={name: value})), name


def test_what_has_no_effect_is_said(engine):
    """Every field that can name something unknown says so."""
    for body, kind in (
        ({"dislike": ["no such item"]}, "unknown_item"),
        ({"filter": {"category": ["no such group"]}}, "unknown_value"),
        ({"filter": {"price": {"min": 9, "max": 3}}}, "empty_range"),
        ({"context": {"timestamp": NOW, "device": "fridge"}}, "unknown_value"),
        ({"user": {"gender": "X"}}, "unknown_value"),
        ({"user": {"interests": ["films", "sleep"]}}, "unknown_value"),
    ):
        told = [warning["type"] for warning in ask(engine, **body).get("warnings", ())]
        kinds = [one for one in told if one != "short_list"]  # a filter that leaves no item says that too
        assert kinds == [kind], body


def told_of(answer: dict[str, Any]) -> list[tuple[list[Any], str]]:
    return [(warning["loc"][1:], warning["type"]) for warning in answer.get("warnings", ())]


def test_what_says_nothing_is_said(engine):
    """A null or a blank text where a value is wanted changes nothing and is named, wherever a request may have one."""
    plain = ask(engine)
    for blank in ("", "  "):
        answer = ask(engine, query=blank)
        assert told_of(answer) == [(["query"], "says_nothing")] and answer["items"] == plain["items"]
    for name in CONTEXT:
        for nothing in (None, " ") if name in ("device", "search") else (None,):
            context = {**PLAIN["context"], name: nothing}
            answer = ask(engine, context=context)
            assert told_of(answer) == [(["context", name], "says_nothing")], name
            if name != "timestamp":  # without one it is asked now
                assert answer["items"] == plain["items"], name
    said = [{"item_id": "i4"}, {"item_id": "i8"}]
    for name in set(CONTEXT) - set(api.Context.model_fields) - {"timezone"}:
        answer = ask(engine, history=[said[0], {**said[1], "context": {name: None}}])
        assert told_of(answer) == [(["history", 1, "context", name], "says_nothing")], name
    answer = ask(engine, history=[{**said[0], "action": " "}, said[1]])
    assert told_of(answer) == [(["history", 0, "action"], "says_nothing")]


def test_a_field_of_null_is_as_if_it_were_left_out(engine):
    """So clients may send all the fields they know."""
    asked = {"user_id": "u1", **PLAIN}
    plain = ask(engine)
    for name in api.RecommendRequest.model_fields:
        read = api.RecommendRequest.model_validate(asked | {name: None})
        left_out = {key: value for key, value in asked.items() if key != name}
        assert read == api.RecommendRequest.model_validate(left_out), name
        if name not in PLAIN:
            read = api.RecommendRequest.model_validate(PLAIN | {name: None})
            (answer,) = engine.recommend([[read]])[0].answers
            assert answer_json(answer) == plain, name
    event = {"user_id": "a", "item_id": "i1"}
    for name in api.NewEvent.model_fields:
        if name in event:
            with pytest.raises(ValidationError, match=name):
                api.NewEvent.model_validate(event | {name: None})
        else:
            assert api.NewEvent.model_validate(event | {name: None}) == api.NewEvent.model_validate(event), name
    for name in api.HistoryEvent.model_fields.keys() - {"item_id"}:
        assert api.HistoryEvent.model_validate({"item_id": "i1", name: None}) == api.HistoryEvent(item_id="i1"), name


def test_what_says_nothing_in_a_posted_event_is_said():
    event = {"user_id": "a", "item_id": "i1", "timestamp": NOW}
    posted = [
        event | {"context": {"device": None}},
        event | {"context": {"device": None, "search": ""}},
        event | {"action": " "},
    ]
    found = saying_nothing(api.EventsRequest.model_validate({"events": posted}))
    places = [["body", "events", 0, "context", "device"], ["body", "events", 1, "context", "search"]]
    assert [warning["loc"] for warning in found] == [*places, ["body", "events", 2, "action"]]
    assert {warning["type"] for warning in found} == {"says_nothing"}
    assert logged_events(api.EventsRequest.model_validate({"events": posted[2:]}))[0].action is None


def test_every_field_of_a_posted_event_is_stored(engine):
    assert POSTED.keys() == api.NewEvent.model_fields.keys(), "a new field needs a case here"
    plain = {"user_id": "a", "item_id": "i1", "timestamp": NOW}
    for name, (before, after) in POSTED.items():
        bodies = [{"events": [plain | {name: value}]} for value in (before, after)]
        one, other = (logged_events(api.EventsRequest.model_validate(body)) for body in bodies)
        assert one != other, name
        files = [events_table(events, engine.retriever.recommender.spec.events).to_pylist() for events in (one, other)]
        assert files[0] != files[1] or name == "value", f"{name} reaches the next prepare"


@pytest.mark.parametrize(("table", "key"), [("items", "item_id"), ("users", "user_id")])
def test_every_column_of_a_posted_row_is_stored(engine, table, key):
    spec = engine.retriever.recommender.spec
    section = getattr(spec, table)
    model = api.NewItem if table == "items" else api.NewUser
    assert model.model_fields.keys() == {key}, "a new field needs a case here"
    columns = (
        dict.fromkeys(section.text, "a hat")
        | {name: ["x"] for name in section.categorical}
        | dict.fromkeys(section.numeric, 3)
    )
    plain = file_table([{key: "a"}], section, table).to_pylist()
    assert file_table([{key: "b"}], section, table).to_pylist() != plain
    for name, value in columns.items():
        row = model.model_validate({key: "a", name: value}).row()
        check_rows([row], spec, table)
        assert file_table([row], section, table).to_pylist() != plain, name
    with pytest.raises(BadRow, match="unknown column 'colour'"):
        check_rows([{key: "a", "colour": "red"}], spec, table)


def test_bodies_of_lists_hold_what_single_ones_hold():
    lists = {api.RecommendBatch: "requests", api.EventsRequest: "events", api.NewItems: "items", api.NewUsers: "users"}
    for model, name in lists.items():
        assert model.model_fields.keys() == {name}, "a new field needs a case here"
