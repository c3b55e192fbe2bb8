"""Every number of the API has bounds, and a number that breaks one request breaks no other."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.posted_rows import BadRow, check_rows, posted_table
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
from ctxrec.retrieval.retriever import Retriever
from serve.api import EventsRequest, NewItems, RecommendRequest
from serve.browse import user_history
from serve.engine import Answer, Engine, answer_json
from serve.journal import Journal, logged_events

pytestmark = pytest.mark.attack

NOW = 1_700_000_000
# What JSON can say: whole numbers of any length, and every float.
NUMBERS = st.one_of(
    st.integers(-(10**400), 10**400),
    st.integers(2**53 - 2, 2**53 + 2),
    st.integers(2**63 - 2, 2**64 + 2),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([10**400, -(10**400), 2**53 + 1, 1e300, -1e300, 3.5e38, 1.7e308, 5e-324, 1700000000000000001]),
)
GOOD = RecommendRequest.model_validate({"user_id": "u0", "k": 3, "context": {"timestamp": NOW}})


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


@pytest.fixture(scope="module")
def engine(world, tmp_path_factory) -> Engine:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    return Engine(Retriever(world.recommender(world.config())), store)


def parsed(model: type[BaseModel], body: dict[str, Any], field: str) -> Any:
    """The body as the API reads it, or None where it answers 422, which must name the field."""
    try:
        return model.model_validate_json(json.dumps(body))
    except ValidationError as error:
        places = [str(part) for e in error.errors() for part in e["loc"]]
        assert field in places or "malformed" in str(error) or "Invalid JSON" in str(error)
        return None


def requests_with(number: Any) -> dict[str, dict[str, Any]]:
    """A body for each place of a request that takes a number, by the name of the field."""
    return {
        "k": {"user_id": "u0", "k": number},
        "diversity": {"user_id": "u0", "diversity": number},
        "timestamp": {"user_id": "u0", "context": {"timestamp": number}},
        "basket": {"user_id": "u0", "context": {"basket": number}},
        "device": {"user_id": "u0", "context": {"device": number}},
        "history": {"history": [{"item_id": "i1", "timestamp": number, "context": {"basket": number}}]},
        "min": {"user_id": "u0", "filter": {"price": {"min": number}}},
        "max": {"user_id": "u0", "filter": {"price": {"max": number}}},
    }


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(number=NUMBERS)
def test_no_number_of_a_request_fails_it_or_its_neighbours(engine, number):
    bodies = [(f, parsed(RecommendRequest, body, f)) for f, body in requests_with(number).items()]
    taken = [body for _, body in bodies if body is not None]
    *answers, good = engine.recommend([[*taken, GOOD]])[0].answers
    assert isinstance(good, Answer) and len(good.item_ids) == 3
    for answer in answers:
        assert isinstance(answer, (Answer, UserError)), answer
        if isinstance(answer, Answer):
            json.dumps(answer_json(answer), allow_nan=False)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(number=NUMBERS)
def test_no_number_of_an_event_fails_a_post_or_its_users_next_request(engine, number):
    journal = Journal(engine._reader._store, engine.check_contexts)
    event = {"user_id": "n", "item_id": "i1", "timestamp": NOW - 5}
    posts = [[LoggedEvent("good", "i2", NOW * 1_000_000)]]
    for field, body in {
        "value": {**event, "value": number},
        "timestamp": {**event, "timestamp": number},
        "basket": {**event, "context": {"basket": number}},
        "device": {**event, "context": {"device": number}},
    }.items():
        read = parsed(EventsRequest, {"events": [body]}, field)
        posts += [] if read is None else [logged_events(read)]
    results = journal.append(posts)
    assert results[0] == 1 and all(isinstance(r, (int, UserError)) for r in results), results
    asked = RecommendRequest.model_validate({"user_id": "n", "context": {"timestamp": NOW}})
    (answer,) = engine.recommend([[asked]])[0].answers
    assert isinstance(answer, Answer)
    json.dumps(user_history(engine, "n", None, 50), allow_nan=False)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(number=NUMBERS)
def test_every_number_of_an_item_is_taken_or_its_column_is_named(number):
    spec = DatasetSpec.from_dict(
        {"name": "t", "events": {"path": "e"}, "items": {"path": "i", "numeric": ["released"], "categorical": ["kind"]}}
    )
    for column in ("released", "kind"):
        read = parsed(NewItems, {"items": [{"item_id": "x", column: number}]}, column)
        rows = [item.row() for item in read.items] if read is not None else [{"item_id": "x", column: number}]
        if read is None and column == "kind":
            continue
        try:
            check_rows(rows, spec)
        except BadRow as error:
            assert error.column == column
            continue
        assert posted_table(rows, spec).num_rows == 1


def test_a_number_out_of_range_in_a_context_names_the_key(world, engine):
    for key, number in (("basket", 10**400), ("basket", 1e300), ("device", 10**400)):
        with pytest.raises(UserError, match=key):
            engine.check_contexts([{key: number}])


def test_an_exception_of_one_request_is_its_own(engine, monkeypatch, caplog):
    """Whatever a request makes the code do, the others of its micro-batch are answered."""
    inner = engine._retriever.top_k

    def fails(requests, ks, **options):
        if 7 in ks:
            raise ZeroDivisionError("seven")
        return inner(requests, ks, **options)

    monkeypatch.setattr(engine._retriever, "top_k", fails)
    bad = GOOD.model_copy(update={"k": 7})
    replies = engine.recommend([[GOOD]] * 5 + [[bad]] + [[GOOD]] * 5)
    assert [type(reply.answers[0]) for reply in replies] == [Answer] * 5 + [ZeroDivisionError] + [Answer] * 5
    assert "one request failed" in caplog.text


def test_a_wrong_request_in_a_list_does_not_compute_the_others_one_by_one(engine, monkeypatch):
    sizes, inner = [], engine._retriever.top_k

    def counted(requests, ks, **options):
        sizes.append(len(ks))
        return inner(requests, ks, **options)

    monkeypatch.setattr(engine._retriever, "top_k", counted)
    wrong = GOOD.model_copy(update={"filter": RecommendRequest.model_validate(
        {"user_id": "u", "filter": {"no such column": ["a"]}}).filter})  # fmt: skip
    (reply,) = engine.recommend([[GOOD] * 100 + [wrong] + [GOOD] * 100])
    assert sizes == [200] and isinstance(reply.answers[100], UserError) and "no such column" in str(reply.answers[100])
    assert all(isinstance(a, Answer) for n, a in enumerate(reply.answers) if n != 100)


def test_a_post_that_the_store_cannot_take_fails_alone(engine, monkeypatch):
    journal, inner = Journal(engine._reader._store, engine.check_contexts), engine._reader._store.append

    def fails(events):
        if any(event.user_id == "bad" for event in events):
            raise OverflowError("too large")
        inner(events)

    monkeypatch.setattr(engine._reader._store, "append", fails)
    posts = [[LoggedEvent(user, "i1", NOW)] for user in ("a", "bad", "b")]
    first, second, third = journal.append(posts)
    assert (first, third) == (1, 1) and isinstance(second, OverflowError)


def test_numbers_at_the_bounds_overflow_nowhere(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (3.4e38, -3.4e38):
            asked = RecommendRequest.model_validate({"user_id": "u0", "context": {"basket": number, "timestamp": NOW}})
            assert isinstance(engine.recommend([[asked]])[0].answers[0], Answer)


def test_a_list_that_asks_for_too_much_is_refused_before_anything_is_computed(engine):
    diverse = GOOD.model_copy(update={"k": 1000, "diversity": 1.0})
    with pytest.raises(UserError, match=r"sum of k is 2560000.*at most 256000"):
        engine.check_work([diverse] * 256)
    engine.check_work([diverse])
    engine.check_work([GOOD.model_copy(update={"k": 1000})] * 256)


def test_a_user_of_a_list_is_read_once(engine, monkeypatch):
    asked, inner = [], engine._reader._store.latest

    def counted(users, until):
        asked.append(list(users))
        return inner(users, until)

    monkeypatch.setattr(engine._reader._store, "latest", counted)
    other = GOOD.model_copy(update={"user_id": "u1"})
    engine.recommend([[GOOD, other] * 50])
    assert asked == [["u0", "u1"]]
