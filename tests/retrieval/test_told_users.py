"""Users of several interests who tell about themselves: as a training, a request over HTTP, a file and Python read them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shop import INTERESTS
from tolerance import assert_same_scores

import ctxrec
from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.data.batching import texts_of_users
from ctxrec.retrieval.batch_scoring import recommend
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_texts import request_texts
from serve.api import RecommendRequest
from serve.engine import load_engine

NOW = 1_700_000_000
HISTORY = [RawEvent(f"i{n}", timestamp=NOW - 100 + n) for n in (3, 7, 5)]


@pytest.fixture(scope="module")
def model(told_run):
    return load_recommender(find_bundle(told_run))


def scores(model, **request: Any) -> np.ndarray:
    asked = RawRequest(timestamp=NOW, history=HISTORY, **request)
    return model.scores(model.make_requests([asked])[0])[0]


def test_the_bundle_knows_what_the_user_file_says(told_run, model):
    features, users = model.features, model.histories.users
    assert features.user_lists == {"interests": 3} and features.user_texts == ["about"]
    assert set(features.user_categories["interests"]) == set(INTERESTS)
    spec = model.spec
    rows = {row["user_id"]: row for row in pq.read_table(spec.users.path).to_pylist()}
    told = {str(users.ids[n]): model.attributes.told(users, n) for n in range(len(users.ids))}
    assert len(told) == 60
    for user, attributes in told.items():
        assert attributes.get("interests", []) == rows[user]["interests"]
        assert attributes.get("about") == rows[user]["about"]


def test_what_a_request_says_counts_as_what_is_stored(model):
    users = model.histories.users
    several = np.flatnonzero((users.lists["interests"] > 0).sum(1) >= 2)
    row = next(n for n in several if users.text["about"][n])
    attributes = model.attributes.told(users, row)
    known = scores(model, user_id=str(users.ids[row]))
    assert_same_scores(scores(model, user=attributes), known)
    for name in ("interests", "about"):
        without = {**attributes, name: None}
        assert np.abs(scores(model, user=without) - known).max() > 1e-4, name
        assert_same_scores(scores(model, user_id=str(users.ids[row]), user={name: None}), scores(model, user=without))
    # The mean of the values: their order says nothing, and one of them alone is something else.
    first, second, *_ = attributes["interests"]
    assert_same_scores(
        scores(model, user={"interests": [second, first]}), scores(model, user={"interests": [first, second]})
    )
    both, alone = scores(model, user={"interests": [first, second]}), scores(model, user={"interests": first})
    assert np.abs(both - alone).max() > 1e-4
    assert_same_scores(alone, scores(model, user={"interests": [first]}))
    assert_same_scores(scores(model, user={"interests": []}), scores(model))
    # A text is one line, however it is written.
    assert_same_scores(scores(model, user={"about": " red \n hat "}), scores(model, user={"about": "red hat"}))
    assert_same_scores(scores(model, user={"about": "  "}), scores(model))


def test_requests_of_one_batch_do_not_depend_on_each_other(model):
    asked = [
        RawRequest(timestamp=NOW, history=HISTORY, user=user)
        for user in ({"interests": ["films"]}, {"interests": INTERESTS * 4}, {"about": "red hat"}, None)
    ]
    together = model.scores(model.make_requests(asked)[0])
    for n, one in enumerate(asked):
        assert_same_scores(together[n], model.scores(model.make_requests([one])[0])[0])
    model.keep_histories(1 << 20)
    try:
        for _ in range(2):
            assert_same_scores(model.scores(model.make_requests(asked)[0]), together)
            assert_same_scores(model.scores(model.make_requests(asked[:1])[0]), together[:1])
    finally:
        model.keep_histories(0)


def test_an_explanation_names_them(model):
    attributes = {"gender": "F", "age": 20, "interests": ["films", "chess"], "about": "red hat"}
    request, _ = model.make_requests([RawRequest(timestamp=NOW, history=HISTORY, user=attributes)])
    items = np.array([3, 17, 5])
    found = explain(model, request, items)
    assert set(found[0].user) == set(attributes)
    for name in ("interests", "about"):
        lack = scores(model, user=attributes) - scores(model, user={k: v for k, v in attributes.items() if k != name})
        np.testing.assert_allclose([why.user[name] for why in found], lack[items], atol=1e-5)
    texts = request_texts(request, model.features, [], history_items=0)
    assert "interests: films, chess" in texts[0] and "about: red hat" in texts[0]
    assert texts_of_users(request.users) == ["red hat"]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"interests": [["films"]]}, r"user interests is \['films'\]; expected a single value"),
        ({"interests": ["a"] * 17}, "user interests has 17 values; expected at most 16"),
        ({"about": 3}, "user about is 3; expected a text"),
        ({"about": [3]}, "expected a text"),
        ({"gender": ["F"]}, "expected a single value"),
        ({"hobby": "x"}, "valid ones are gender, interests, age, about"),
    ],
)
def test_a_wrong_value_is_named(model, user, message):
    with pytest.raises(UserError, match=message) as told:
        model.attributes.check(user)
    assert told.value.field == tuple(user)


def test_http_a_file_and_python_read_the_same(told_run, tmp_path):
    about = [
        {"interests": ["films", "chess"], "about": "red hat"},
        {"interests": [], "about": None},
        {"interests": ["x"]},
    ]
    asked = [{"history": ["i4", "i8"], "k": 10, "context": {"timestamp": NOW}} for _ in about]
    bodies = [RecommendRequest.model_validate({**body, "user": user}) for body, user in zip(asked, about, strict=True)]
    answers = load_engine(told_run, 4).recommend([bodies])[0].answers
    kind = pa.struct([("interests", pa.list_(pa.string())), ("about", pa.string())])
    table = pa.table(
        {
            "request_id": ["0", "1", "2"],
            "timestamp": [NOW] * 3,
            "history": [["i4", "i8"]] * 3,
            "user": pa.array(about, kind),
        }
    )
    pq.write_table(table, tmp_path / "R.parquet")
    recommend(told_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=10, config=Config())
    rows = pq.read_table(tmp_path / "O.parquet").to_pylist()
    model = ctxrec.load(told_run)
    for n, (answer, user) in enumerate(zip(answers, about, strict=True)):
        if n == 2:
            with pytest.warns(UserWarning, match=r"user interests: \['x'\] is no value that the model knows"):
                listed = model.recommend(history=["i4", "i8"], k=10, context={"timestamp": NOW}, user_attributes=user)
        else:
            listed = model.recommend(history=["i4", "i8"], k=10, context={"timestamp": NOW}, user_attributes=user)
        assert answer.item_ids == rows[n]["item_ids"] == listed.item_id.tolist()
        assert_same_scores(answer.scores, rows[n]["scores"])
        assert_same_scores(answer.scores, listed.score.to_numpy())
    assert [note.kind for note in answers[2].notes] == ["unknown_value"]
    assert len({tuple(answer.scores) for answer in answers[:2]}) == 2


def test_a_model_that_does_not_read_the_text_says_so(model):
    from ctxrec.retrieval.no_effect import unread_texts

    assert list(unread_texts(model, {"about": "red hat"})) == []
    texts = model.texts
    try:
        model.texts = None
        (note,) = unread_texts(model, {"about": "red hat", "interests": ["films"]})
        assert note.kind == "words_not_read" and "the model has no text encoder" in note.text
        assert list(unread_texts(model, {"about": None})) == []
    finally:
        model.texts = texts


def test_a_refresh_reads_a_request_in_the_codes_of_an_earlier_version(model):
    from ctxrec.lifecycle.other_version import in_codes_of

    attributes = {"interests": ["films", "chess"], "about": "red hat", "gender": "F"}
    request, _ = model.make_requests([RawRequest(timestamp=NOW, history=HISTORY, user=attributes)])
    features = model.features
    here = np.arange(len(model.item_ids))
    same = in_codes_of(model, request, features, here)
    assert same.users.lists["interests"].tolist() == request.users.lists["interests"].tolist()
    assert same.users.text["about"].tolist() == ["red hat"]
    # An earlier version in which users had one interest, and one that had none.
    for lists, categories, wanted in (
        ({}, features.user_categories, request.users.lists["interests"][0, 0]),
        ({}, {"gender": features.user_categories["gender"]}, None),
    ):
        model.features = dataclasses.replace(features, user_lists=lists, user_categories=categories, user_texts=[])
        try:
            before = in_codes_of(model, request, features, here)
        finally:
            model.features = features
        assert before.users.lists == {} and before.users.text == {}
        found = before.users.cat.get("interests")
        assert (found is None) if wanted is None else found.tolist() == [wanted]
