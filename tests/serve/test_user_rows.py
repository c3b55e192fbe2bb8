"""Posted attributes of users: what is refused, what requests read of them, and what outlives a replica."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter
from tolerance import assert_same_scores

from ctxrec.data.posted_rows import BadRow
from ctxrec.live.opening import open_store
from ctxrec.live.store import StoreError
from ctxrec.retrieval.retriever import load_retriever
from serve.api import RecommendRequest
from serve.engine import Answer, Engine
from serve.user_rows import UserRows

NOW = 1_700_000_000
HISTORY = ["i4", "i8"]


@pytest.fixture(scope="module")
def retriever(tiny_run):
    return load_retriever(tiny_run)


def rows_of(store) -> UserRows:
    return UserRows(store, Counter("changes", "changes", registry=CollectorRegistry()))


def ask(engine: Engine, **body: Any) -> Answer:
    body = {"k": 10, "context": {"timestamp": NOW}} | body
    (answer,) = engine.recommend([[RecommendRequest.model_validate(body)]])[0].answers
    assert isinstance(answer, Answer), answer
    return answer


def user_with(retriever, gender: int) -> tuple[str, dict[str, Any]]:
    """A user of the bundle with this code of the gender and an age, and both in words."""
    users = retriever.recommender.histories.users
    row = int(np.flatnonzero((users.cat["gender"] == gender) & ~np.isnan(users.num["age"]))[0])
    return str(users.ids[row]), retriever.recommender.attributes.told(users, row)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_posted_attributes_count_as_those_of_a_request_at_once_and_in_another_replica(
    retriever, tmp_path, kind, request
):
    where = str(tmp_path / "store") if kind == "sqlite" else request.getfixturevalue("redis_server")().url
    store, others = open_store(where), open_store(where)
    engine, other = Engine(retriever, store), Engine(retriever, others)
    (known, attributes), (_, told) = user_with(retriever, 2), user_with(retriever, 3)
    rows = rows_of(store)
    bare = ask(engine, user_id="newcomer", history=HISTORY)
    assert rows.put([{"user_id": "newcomer", **told}], retriever) == []
    wanted = ask(engine, history=HISTORY, user=told)
    assert np.abs(np.subtract(wanted.scores, bare.scores)).max() > 1e-4, "attributes change the scores"
    for each in (engine, other):
        assert_same_scores(ask(each, user_id="newcomer", history=HISTORY).scores, wanted.scores)
    # Key by key, what a request says stands before what was posted.
    over = ask(other, user_id="newcomer", history=HISTORY, user={"gender": attributes["gender"]})
    assert_same_scores(over.scores, ask(engine, history=HISTORY, user=told | {"gender": attributes["gender"]}).scores)
    # A posted row stands for the whole row of the user file: what it lacks is not known.
    rows.put([{"user_id": known, "age": 20}], retriever)
    alone = ask(engine, user_id=known, history=HISTORY)
    assert_same_scores(alone.scores, ask(engine, history=HISTORY, user={"age": 20}).scores)
    assert rows.known(known, retriever) == {"user_id": known, "attributes": {"age": 20}, "posted": True}
    # One that is taken away is unknown, though the bundle has it.
    assert rows.remove(known, retriever) and not rows.remove(known, retriever)
    assert rows.known(known, retriever) is None and not rows.remove("nobody", retriever)
    gone = ask(other, user_id=known, history=HISTORY)
    assert_same_scores(gone.scores, ask(engine, history=HISTORY).scores)
    # The user's own history stays, and all requests of a list are read in one go.
    both = [{"user_id": "newcomer", "history": HISTORY}, {"user_id": known}, {"user_id": "u5"}, {"history": HISTORY}]
    bodies = [RecommendRequest.model_validate({"k": 10, "context": {"timestamp": NOW}} | body) for body in both]
    answers = engine.recommend([bodies])[0].answers
    assert_same_scores(answers[0].scores, wanted.scores)
    assert not answers[1].fallback
    for each in (store, others):
        each.close()
    again = open_store(where)
    assert_same_scores(ask(Engine(retriever, again), user_id="newcomer", history=HISTORY).scores, wanted.scores)
    again.close()


def test_a_known_user_is_told_from_the_user_file_until_a_row_is_posted(retriever, tmp_path):
    store = open_store(str(tmp_path / "store"))
    rows, (user, attributes) = rows_of(store), user_with(retriever, 2)
    assert rows.known(user, retriever) == {"user_id": user, "attributes": attributes, "posted": False}
    assert rows.known("nobody", retriever) is None
    assert rows.remove(user, retriever) and rows.known(user, retriever) is None
    rows.put([{"user_id": user, **attributes}], retriever)
    assert rows.known(user, retriever) == {"user_id": user, "attributes": attributes, "posted": True}
    store.close()


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ({"height": 3}, "height", "unknown column 'height'; valid columns are user_id, gender, age"),
        ({"age": "old"}, "age", "age is 'old'; expected a number"),
        ({"age": True}, "age", "expected a number"),
        ({"age": 1e300}, "age", "out of range"),
        ({"gender": 2**70}, "gender", "a whole number of 71 bits"),
    ],
)
def test_a_wrong_row_is_named_and_none_of_its_call_is_stored(retriever, tmp_path, row, column, says):
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(BadRow, match=says) as caught:
        rows_of(store).put([{"user_id": "a", "age": 1}, {"user_id": "b", **row}], retriever)
    assert (caught.value.place, caught.value.column) == (1, column)
    assert store.posted_rows("users", ["a", "b"]) == {}
    store.close()


def test_what_has_no_effect_is_said(retriever, tmp_path):
    store = open_store(str(tmp_path / "store"))
    rows = rows_of(store)
    said = rows.put([{"user_id": "a", "gender": "F"}, {"user_id": "b", "gender": "X", "age": None}], retriever)
    assert [(note["loc"], note["type"]) for note in said] == [(["body", "users", 1, "gender"], "unknown_value")]
    said = rows.put([{"user_id": f"u{n}", "gender": "X"} for n in range(30)], retriever)
    assert len(said) == 20
    spec = retriever.recommender.spec
    try:
        retriever.recommender.spec = dataclasses.replace(spec, users=None)
        with pytest.raises(BadRow, match=r"the data set has no table of users \(\[users\] in its spec\)"):
            rows.put([{"user_id": "a"}], retriever)
    finally:
        retriever.recommender.spec = spec
    store.close()


def test_a_row_of_another_version_is_read_as_far_as_this_one_can(retriever, tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.change_rows("users", {"odd": {"age": 20, "height": 3, "gender": ["F", "M"]}})
    engine = Engine(retriever, store)
    found = ask(engine, user_id="odd", history=HISTORY)
    assert_same_scores(found.scores, ask(engine, history=HISTORY, user={"age": 20}).scores)
    store.close()


def test_without_its_store_a_request_is_answered_by_what_the_bundle_knows_and_says_so(retriever, redis_server):
    server = redis_server()
    store = open_store(server.url)
    engine, (user, attributes) = Engine(retriever, store), user_with(retriever, 2)
    rows_of(store).put([{"user_id": user, "age": 35}], retriever)
    server.kill()
    told = [ask(engine, user_id=user, history=HISTORY), ask(engine, user_id=user), ask(engine, history=HISTORY)]
    assert [answer.degraded for answer in told] == ["user", "history", None]
    assert_same_scores(told[0].scores, ask(engine, history=HISTORY, user=attributes).scores)
    with pytest.raises(StoreError):
        rows_of(store).put([{"user_id": user, "age": 20}], retriever)
