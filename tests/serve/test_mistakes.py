"""A request is told what is wrong with it, in which field, and which parts of it have no effect."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import ValidationError

from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.retrieval.no_effect import MAX_NOTES
from ctxrec.retrieval.retriever import Retriever
from serve.api import RecommendRequest
from serve.engine import Engine, answer_json
from serve.http import user_error


@pytest.fixture(scope="module")
def engine(make_world) -> Engine:
    world = make_world()
    items = ItemsSpec(path="items", categorical=("maker",), numeric=("price",))
    world = dataclasses.replace(world, spec=dataclasses.replace(world.spec, items=items))
    return Engine(Retriever(world.recommender(world.config())))


def ask(engine: Engine, **fields):
    body = RecommendRequest.model_validate({"user_id": "u0", "k": 3, **fields})
    (answer,) = engine.recommend([[body]])[0].answers
    return answer


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"context": {"weather": "rain"}}, ["context", "weather"]),
        ({"context": {"basket": "much"}}, ["context", "basket"]),
        ({"history": ["i1", {"item_id": "i2", "context": {"weather": "rain"}}]}, ["history", 1, "context", "weather"]),
        ({"filter": {"colour": ["red"]}}, ["filter", "colour"]),
        ({"filter": {"price": ["5"]}}, ["filter", "price"]),
    ],
)
def test_what_only_the_model_knows_to_be_wrong_has_its_field(engine, fields, loc, others):
    good = RecommendRequest.model_validate({"user_id": "u0", "k": 3})
    bad = RecommendRequest.model_validate({"user_id": "u0", **fields})
    error = engine.recommend([[*[good] * others, bad]])[0].answers[-1]
    assert isinstance(error, UserError)
    assert json.loads(user_error(error, "requests", 3).body)["detail"][0]["loc"] == ["body", "requests", 3, *loc]


def test_what_has_no_effect_is_said(engine):
    fields = {"context": {"device": "fridge"}, "filter": {"maker": {"any": ["x", "Shoos"], "none": ["y" * 500]}}}
    found = answer_json(ask(engine, **fields), "requests", 0)["warnings"]
    assert [(w["type"], w["loc"][3:]) for w in found] == [
        ("unknown_value", ["filter", "maker", "any"]),
        ("unknown_value", ["filter", "maker", "none"]),
        ("unknown_value", ["context", "device"]),
    ]
    assert found[0]["msg"] == "filter maker: 'Shoos' is no value of any item"
    assert "'fridge' is no value that the model knows" in found[2]["msg"] and len(found[1]["msg"]) < 200
    known = answer_json(ask(engine, context={"device": "tv", "basket": 3.5}, filter={"maker": ["x"]}))
    assert "warnings" not in known


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"min": 20, "max": 5}, "min 20 is above max 5, so no item passes"),
        ({"min": 1e9}, "the items go from "),
        ({"max": -1e9}, "the items go from "),
        ({"min": -1e9, "max": 1e9}, None),
    ],
)
def test_a_range_without_an_item_is_said(engine, rule, says):
    answer = answer_json(ask(engine, filter={"price": rule}))
    if says is None:
        assert "warnings" not in answer and answer["items"]
    else:
        (warning,) = answer["warnings"]
        assert (warning["type"], warning["loc"]) == ("empty_range", ["body", "filter", "price"])
        assert says in warning["msg"] and not answer["items"]


def test_very_many_values_are_not_all_named(engine):
    answer = answer_json(ask(engine, filter={"maker": ["x", *(f"no{n}" for n in range(900))]}))
    assert len(answer["warnings"]) == MAX_NOTES and len(answer["items"]) == 3


def test_explain_is_true_or_false():
    for value in ("yes", "false", 1):
        with pytest.raises(ValidationError, match="valid boolean"):
            RecommendRequest.model_validate({"user_id": "u0", "explain": value})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["train.preset=quick"], 'a model of train.preset = "quick" has no towers, and only towers read contexts'),
        (
            ['model.sources=["text", "id", "features", "user", "memory"]'],
            "the model was trained without contexts (model.sources)",
        ),
    ],
)
def test_a_context_that_the_model_does_not_read_is_said_once(make_world, options, why):
    world = make_world(rich=True)
    model = world.recommender(world.config(*options))
    engine, name = Engine(Retriever(model)), next(iter(model.features.context_categories))
    asked = {"context": {"timestamp": 893286638.0, "timezone": "Asia/Tokyo", name: "no such value"}}
    (note,) = ask(engine, **asked).notes
    assert (note.place, note.kind) == (("context",), "context_not_read")
    assert note.text.startswith(f"context: timezone, {name} have no effect, because {why}") or note.text.startswith(
        f"context: {name}, timezone have no effect, because {why}"
    )
    plain = ask(engine, context={"timestamp": 893286638.0})
    assert not plain.notes and plain.scores == ask(engine, **asked).scores
    (note,) = ask(engine, context={"timestamp": 893286638.0, name: None}).notes
    assert note.kind == "says_nothing", "null is left out, so that it is not read is no matter"
