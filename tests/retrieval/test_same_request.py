"""A request means the same over HTTP, as a row of a file and in Python: items, scores and explanation.

What differs by design, and is left out here:
- a null attribute of `user` says over HTTP and in Python that it is not known; a null of a column says nothing;
- a request for a user reads a stored event at its very time over HTTP and in Python, and not in a file;
- the number of items is that of the command for all rows of a file;
- Python refuses blank texts in the place of ids, values and actions, and says so.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rerankers import put_second_stage
from shop import INTERESTS
from tolerance import assert_same_scores

import ctxrec
from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.retrieval.batch_scoring import Scorer
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_files import check_requests
from serve.api import RecommendRequest
from serve.engine import answer_json, load_engine

K = 7
NOW = 1_700_000_000
EFFECT = 2e-4  # of an effect, which is the difference of two scores of some tens

times = st.one_of(st.integers(1_500_000_000, NOW), st.floats(1_500_000_000, NOW))
ids = st.one_of(st.integers(0, 39).map(lambda n: f"i{n}"), st.sampled_from(["no such item", " i3", "7", "ü"]))
words = st.sampled_from(["red shoe", "hat", "", "a text without a known word", " lamp "])
numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(0.0))
contexts = st.fixed_dictionaries(
    {}, optional={"device": st.sampled_from(["tv", "phone", "fridge", "TV"]), "basket_value": numbers, "search": words}
)
events = st.fixed_dictionaries(
    {"item_id": ids},
    optional={
        "action": st.sampled_from(["view", "buy", "veiw", "", None]),
        "timestamp": times,
        "context": contexts,
        "value": st.one_of(st.none(), st.sampled_from([1.0, 3.0, 5.0]), st.floats(-10, 10)),
    },
)
values = st.lists(st.sampled_from(["group0", "group1", "group3", "all", "nothing"]), max_size=3)
ends = st.floats(-10, 50, width=32)
rules = st.fixed_dictionaries(
    {},
    optional={
        "category": st.one_of(
            values,
            st.fixed_dictionaries({"any": values}, optional={"none": values}),
            st.fixed_dictionaries({"none": values}),
        ),
        "price": st.one_of(
            st.fixed_dictionaries({"min": ends}, optional={"max": ends}), st.fixed_dictionaries({"max": ends})
        ),
    },
)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "gender": st.sampled_from(["F", "M", "X"]),
        "age": st.floats(0, 120),
        "interests": st.lists(st.sampled_from([*INTERESTS, "sleep"]), max_size=5),
        "about": words,
    },
)
bodies = st.fixed_dictionaries(
    {
        "context": st.builds(
            lambda context, at, zone: {**context, "timestamp": at, **({"timezone": zone} if zone else {})},
            contexts,
            times,
            st.sampled_from([None, "America/New_York", "Asia/Tokyo"]),
        ),
    },
    optional={
        "history": st.lists(st.one_of(ids, events), max_size=6),
        "user_id": st.sampled_from(["u1", "u7", "u41", "nobody"]),
        "exclude": st.lists(ids, max_size=4),
        "dislike": st.lists(ids, max_size=3),
        "allow": st.one_of(st.none(), st.lists(ids, max_size=12)),
        "filter": rules,
        "diversity": st.one_of(st.none(), st.floats(0, 1)),
        "rerank": st.sampled_from([None, True, False]),
        "user": attributes,
        "query": st.one_of(st.none(), words),
        "explain": st.booleans(),
        "probability": st.booleans(),
    },
).filter(lambda body: "user_id" in body or "history" in body)


@pytest.fixture(scope="module")
def ways(told_run, tmp_path_factory) -> dict[str, Any]:
    """The three ways to ask one model, which has a second stage."""
    bundle = find_bundle(told_run)
    put_second_stage(bundle)
    engine = load_engine(told_run, 4)
    spec = engine.retriever.recommender.spec
    scorer = Scorer(
        bundle=bundle, index=IndexConfig(), context=spec.events.context, k=K, now_s=float(NOW), rerank=False, on_request=True
    )  # fmt: skip
    return {"http": engine, "file": scorer, "python": ctxrec.load(told_run), "path": tmp_path_factory.mktemp("rows")}


# Items, scores, reasons, probabilities, and what these are of.
Found = tuple[list[str], list[float], list[dict[str, dict[str, float]]] | None, list[float] | None, str | None]


def over_http(ways: dict[str, Any], body: dict[str, Any]) -> Found:
    request = RecommendRequest.model_validate({"k": K, **json.loads(json.dumps(body))})
    (answer,) = ways["http"].recommend([[request]])[0].answers
    if isinstance(answer, Exception):
        raise answer
    why = None if answer.why is None else [vars(one) for one in answer.why]
    told = answer_json(answer)
    return answer.item_ids, answer.scores, why, answer.probabilities, told.get("probability_of")


def in_a_file(ways: dict[str, Any], body: dict[str, Any]) -> Found:
    context = {name: value for name, value in body["context"].items() if name != "timestamp"}
    row = {"request_id": 1, "timestamp": body["context"]["timestamp"], "user_id": body.get("user_id"), **context}
    fields = (
        "exclude",
        "dislike",
        "allow",
        "filter",
        "diversity",
        "rerank",
        "user",
        "explain",
        "history",
        "query",
        "probability",
    )
    row |= {name: body[name] for name in fields if body.get(name) is not None and body[name] != {}}
    if "history" in row:  # one type for all events
        row["history"] = [{"item_id": event} if isinstance(event, str) else event for event in row["history"]]
    types = {"user": pa.struct(
        [(name, {"age": pa.float64(), "height": pa.float64(), "interests": pa.list_(pa.string())}.get(name, pa.string())) for name in row.get("user", ())]
    )}  # fmt: skip
    event = [("item_id", pa.string()), ("action", pa.string()), ("timestamp", pa.float64()), ("value", pa.float64())]
    given_context = [("device", pa.string()), ("basket_value", pa.float64()), ("search", pa.string())]
    types["history"] = pa.list_(pa.struct([*event, ("context", pa.struct(given_context))]))
    types |= {name: pa.list_(pa.string()) for name in ("exclude", "dislike", "allow")}
    types |= {name: pa.float64() for name in ("basket_value", "diversity")}
    types |= {name: pa.string() for name in ("user_id", "device", "query", "search", "timezone")}
    table = pa.table({name: pa.array([value], types.get(name)) for name, value in row.items()})
    path = str(ways["path"] / "R.parquet")
    pq.write_table(table, path)
    model = ways["http"].retriever.recommender
    columns, _ = check_requests([path], model.spec.events.context, model.features, model.spec.items)
    found = ways["file"](pq.read_table(path, columns=columns)).to_pylist()[0]
    why = found.get("why")
    return (
        found["item_ids"],
        found["scores"],
        why and [{part: dict(pairs) for part, pairs in one.items()} for one in why],
        found.get("probability"),
        found.get("probability_of"),
    )


def in_python(ways: dict[str, Any], body: dict[str, Any]) -> Found:
    model = ways["python"]
    asked = {"context": body["context"], "history": body.get("history"), "dislike": body.get("dislike", ())}
    asked |= {"user_attributes": body.get("user"), "query": body.get("query")}
    shaped = {
        name: body[name]
        for name in ("exclude", "allow", "filter", "diversity", "rerank", "probability")
        if name in body
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what has no effect is said by all three
        table = model.recommend(body.get("user_id"), K, **asked, **shaped)
        why = None
        if body.get("explain"):
            tables = [model.explain(body.get("user_id"), item, **asked) for item in table.item_id]
            names = {"source": "sources"}
            why = [
                {
                    names.get(part, part): {
                        row.name: row.effect for row in one[one.part == part].itertuples(index=False)
                    }
                    for part in ("history", "context", "user", "source")
                }
                for one in tables
            ]
    of = model.probability_of if "probability" in table else None
    return table.item_id.tolist(), table.score.tolist(), why, table.get("probability", default=None), of


def has_blank(body: Any) -> bool:
    """Whether a text of the body that is an id, a value or an action is blank, which Python refuses."""
    if isinstance(body, dict):
        return any(has_blank(value) for name, value in body.items() if name not in ("query", "search", "about"))
    return any(map(has_blank, body)) if isinstance(body, list) else isinstance(body, str) and not body.strip()


def check(ways: dict[str, Any], body: dict[str, Any]) -> None:
    items, scores, why, probabilities, of = over_http(ways, body)
    assert of == ("next" if body.get("probability") else None), "the log of this model judges no items"
    for ask in (in_a_file, in_python):
        try:
            other_items, other_scores, other_why, other_probabilities, other_of = ask(ways, body)
        except UserError as error:
            assert ask is in_python and has_blank(body), f"{ask.__name__} refuses what HTTP takes: {error}"
            continue
        assert other_items == items and other_of == of, ask.__name__
        assert_same_scores(other_scores, scores)
        assert (probabilities is None) == (other_probabilities is None) == (not body.get("probability")), ask.__name__
        if probabilities is not None:
            np.testing.assert_allclose(list(other_probabilities), probabilities, rtol=1e-3, err_msg=ask.__name__)
        if why is None or not items:
            assert not other_why
            continue
        assert other_why is not None and len(other_why) == len(why)
        for one, other in zip(why, other_why, strict=True):
            for part in ("history", "context", "user", "sources"):
                assert one[part].keys() == other[part].keys(), (ask.__name__, part)
                wanted = [one[part][name] for name in one[part]]
                np.testing.assert_allclose([other[part][name] for name in one[part]], wanted, atol=EFFECT, rtol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(body=bodies)
@example(body={"history": [], "context": {"timestamp": NOW}, "filter": {"category": []}, "explain": True})
@example(
    body={
        "history": ["i1", {"item_id": "i2", "action": "", "context": {"search": "hat"}}],
        "context": {"timestamp": NOW},
    }
)
@example(body={"user_id": "u1", "context": {"timestamp": NOW}, "allow": [], "dislike": ["i3"], "explain": True})
@example(
    body={
        "user_id": "u1",
        "context": {"timestamp": NOW},
        "rerank": True,
        "diversity": 0.5,
        "exclude": ["i3"],
        "explain": True,
    }
)
@example(
    body={
        "user_id": "u1",
        "context": {"timestamp": NOW},
        "user": {"interests": ["films", "chess"], "about": "red hat"},
        "explain": True,
    }
)
def test_the_three_ways_give_the_same(ways, body):
    check(ways, body)


@pytest.mark.parametrize(
    "body",
    [
        {"filter": {"colour": ["red"]}},
        {"filter": {"price": {"any": ["1"]}}},
        {"filter": {"category": {"min": 1}}},
        {"context": {"timestamp": NOW, "timezone": "Moon/Crater"}},
        {"context": {"timestamp": NOW, "weather": "rain"}},
        {"user": {"height": 3}},
        {"user": {"interests": ["films"] * 17}},
    ],
)
def test_what_one_way_refuses_all_refuse(ways, body):
    body = {"user_id": "u1", "context": {"timestamp": NOW}, **body}
    for ask in (over_http, in_python):
        with pytest.raises(UserError):
            ask(ways, body)
    if "weather" not in body["context"]:  # a file may have columns of its own, which a warning names
        with pytest.raises(UserError):
            in_a_file(ways, body)


def test_queries_are_computed_once_for_a_list_and_its_probabilities(ways, monkeypatch):
    asked, plain = [], Recommender.queries
    monkeypatch.setattr(
        Recommender, "queries", lambda self, requests: asked.append(len(requests)) or plain(self, requests)
    )
    body = {"user_id": "u1", "context": {"timestamp": NOW}, "probability": True}
    for ask in (over_http, in_a_file, in_python):
        asked.clear()
        assert len(ask(ways, body)[3]) == K
        assert asked == [1], ask.__name__


def test_a_row_says_what_its_probabilities_are_of_where_it_asks_for_them(ways):
    asked = pa.array([True, None, False])
    table = pa.table({"request_id": [1, 2, 3], "timestamp": [NOW] * 3, "user_id": ["u1"] * 3, "probability": asked})
    found = ways["file"](table)
    assert found.column("probability_of").to_pylist() == ["next", None, None]
    assert [None if p is None else len(p) for p in found.column("probability").to_pylist()] == [K, None, None]
