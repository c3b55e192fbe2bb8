"""What a request says of its user: it stands for what is stored, over HTTP, in a file and in Python alike."""

from __future__ import annotations

import dataclasses
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tolerance import assert_same_scores

import ctxrec
from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import ContextSpec
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import FeatureMeta
from ctxrec.retrieval.batch_scoring import recommend
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_files import check_requests, raw_requests
from serve.api import RecommendRequest
from serve.engine import load_engine

NOW = 1_700_000_000
USERS = FeatureMeta({}, {}, {"gender": ["F", "M"]}, {"age": {"mean": 0.0, "std": 1.0}}, {}, {}, [], [])


@pytest.fixture(scope="module")
def recommender(tiny_run):
    return load_recommender(find_bundle(tiny_run))


def scores(recommender, request: RawRequest) -> np.ndarray:
    return recommender.scores(recommender.make_requests([request])[0])[0]


def stored(recommender, gender: int) -> tuple[str, dict]:
    """A user with this code of the gender and a known age, and the attributes in a user's words."""
    users = recommender.histories.users
    row = int(np.flatnonzero((users.cat["gender"] == gender) & ~np.isnan(users.num["age"]))[0])
    names = recommender.features.user_categories["gender"]
    return str(users.ids[row]), {"gender": names[gender - 2], "age": float(users.num["age"][row])}


def test_attributes_of_a_request_count_as_those_that_are_stored(recommender):
    history = [RawEvent(f"i{n}", timestamp=NOW - 100 + n) for n in (3, 7, 5)]
    found = []
    for code in (2, 3):
        user, attributes = stored(recommender, code)
        known = RawRequest(user_id=user, timestamp=NOW, history=history)
        told = RawRequest(user_id="nobody", timestamp=NOW, history=history, user=attributes)
        assert_same_scores(scores(recommender, told), scores(recommender, known))
        found.append(scores(recommender, told))
        # What is left out stays, and None says that it is not known.
        gender_alone = dataclasses.replace(known, user={"gender": attributes["gender"]})
        assert_same_scores(scores(recommender, gender_alone), scores(recommender, known))
        nothing = dataclasses.replace(known, user={"gender": None, "age": None})
        assert_same_scores(scores(recommender, nothing), scores(recommender, dataclasses.replace(told, user=None)))
    assert np.abs(found[0] - found[1]).max() > 1e-3
    both = recommender.make_requests([known, dataclasses.replace(known, user={"age": 99})])[0]
    assert both.users.num["age"].tolist() == [attributes["age"], 99]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"height": 3}, "unknown user attribute 'height'; valid ones are gender, age"),
        ({"gender": ["F"]}, r"user gender is \['F'\]; expected a single value"),
        ({"gender": 2**70}, "user gender is a whole number of 71 bits; expected at most 64 bits"),
        ({"age": "old"}, "user age is 'old'; expected a number"),
        ({"age": 1e300}, "user age is too large"),
    ],
)
def test_a_wrong_attribute_is_named(recommender, user, message):
    with pytest.raises(UserError, match=message) as told:
        recommender.make_requests([RawRequest("u1"), RawRequest("u2", user=user)])
    assert told.value.field == tuple(user)
    with pytest.raises(UserError, match=message):
        recommender.attributes.check(user)


def test_an_attribute_counts_what_the_score_lacks_without_it(recommender):
    items = np.array([3, 17, 5])
    _, attributes = stored(recommender, 2)
    asked = RawRequest(timestamp=NOW, history=[RawEvent("i3")], user=attributes)
    requests, _ = recommender.make_requests([asked])
    found = explain(recommender, requests, items)
    assert set(found[0].user) == {"gender", "age"}
    for name in attributes:
        without = dataclasses.replace(asked, user={k: v for k, v in attributes.items() if k != name})
        wanted = (scores(recommender, asked) - scores(recommender, without))[items]
        np.testing.assert_allclose([w.user[name] for w in found], wanted, atol=1e-5)
        assert np.abs(wanted).max() > 1e-4
    bare, _ = recommender.make_requests([dataclasses.replace(asked, user=None)])
    assert explain(recommender, bare, items)[0].user == {}


def test_http_a_file_and_python_give_the_same_lists(tiny_run, tmp_path):
    attributes = [{"gender": "F", "age": 20.0}, {"gender": "M", "age": None}, None]
    asked = [{"history": ["i4", "i8"], "k": 10, "context": {"timestamp": NOW}} for _ in attributes]
    bodies = [body | ({"user": about} if about else {}) for body, about in zip(asked, attributes, strict=True)]
    answers = (
        load_engine(tiny_run, 4).recommend([[RecommendRequest.model_validate(body) for body in bodies]])[0].answers
    )
    table = pa.table(
        {
            "request_id": ["0", "1", "2"],
            "timestamp": [NOW] * 3,
            "history": [["i4", "i8"]] * 3,
            "user": pa.array(attributes, pa.struct([("gender", pa.string()), ("age", pa.float64())])),
        }
    )
    pq.write_table(table, tmp_path / "R.parquet")
    recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=10, config=Config())
    rows = pq.read_table(tmp_path / "O.parquet").to_pylist()
    model = ctxrec.load(tiny_run)
    for n, (answer, about) in enumerate(zip(answers, attributes, strict=True)):
        listed = model.recommend(history=["i4", "i8"], k=10, context={"timestamp": NOW}, user_attributes=about)
        assert answer.item_ids == rows[n]["item_ids"] == listed.item_id.tolist()
        assert_same_scores(answer.scores, rows[n]["scores"])
        assert_same_scores(answer.scores, listed.score.to_numpy())
    assert len({tuple(answer.scores) for answer in answers}) == 3, "who asks changes the scores"


def test_the_service_names_a_wrong_attribute_and_says_what_has_no_effect(tiny_run):
    engine = load_engine(tiny_run, 4)

    def ask(*users: dict) -> list:
        bodies = [RecommendRequest.model_validate({"user_id": "u1", "user": user}) for user in users]
        return engine.recommend([bodies])[0].answers

    wrong, fine = ask({"height": 3}, {"age": 20})
    assert isinstance(wrong, UserError) and wrong.field == ("user", "height")
    assert fine.notes == ()
    (alone,) = ask({"age": "old"})
    assert isinstance(alone, UserError) and alone.field == ("user", "age")
    (other,) = ask({"gender": "X"})
    assert [(note.place, note.kind) for note in other.notes] == [(("user", "gender"), "unknown_value")]


def test_a_file_with_wrong_attributes_is_refused(tmp_path):
    def check(user: pa.Array, features: FeatureMeta | None = USERS) -> None:
        table = pa.table({"request_id": [1], "user_id": ["a"], "timestamp": [NOW], "user": user})
        pq.write_table(table, tmp_path / "R.parquet")
        check_requests([str(tmp_path / "R.parquet")], ContextSpec(), features)

    check(pa.array([{"gender": "F", "age": 3}]))
    check(pa.array([None]))
    for user, message in (
        (pa.array(["F"]), r"column 'user' is string; expected a struct of user attributes \(gender, age\)"),
        (pa.array([{"height": 3}]), r"'user' has the unknown attribute 'height'; valid ones are gender, age"),
        (pa.array([{"age": "old"}]), "user age is string; expected numbers"),
        (pa.array([{"gender": ["F"]}]), "user gender is list.*expected single values"),
        (pa.array([{"age": 1e300}]), r"user age is 1e\+300; expected numbers from"),
    ):
        with pytest.raises(UserError, match=message):
            check(user)
    with pytest.raises(UserError, match="none, as the data set has no"):
        check(pa.array([{"age": 3}]), None)


def test_a_column_of_attributes_is_that_of_the_context_where_the_context_has_one_of_that_name():
    rows = {"request_id": [1, 2], "user_id": ["a", "b"], "timestamp": [NOW, NOW]}
    about = pa.array([{"gender": "F", "age": 3}, {"gender": None, "age": None}])
    first, second = raw_requests(pa.table(rows | {"user": about}), ContextSpec(), now_s=5.0, features=USERS)
    assert first.user == {"gender": "F", "age": 3.0} and second.user is None
    of_context, _ = raw_requests(
        pa.table(rows | {"user": ["guest", None]}), ContextSpec(categorical=("user",)), now_s=5.0
    )
    assert of_context.user is None and of_context.context == {"user": "guest"}


def test_a_model_that_reads_no_attributes_and_no_context_says_so(tiny_data, tiny_config, tmp_path, caplog):
    quick = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, preset="quick"))
    from ctxrec.training.driver import train

    run = train(tiny_data, str(tmp_path / "run"), quick)
    with pytest.warns(UserWarning, match='user: attributes have no effect, because a model of train.preset = "quick"'):
        ctxrec.load(run).recommend("u1", user_attributes={"age": 20})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctxrec.load(run).recommend("u1")
    told = 'context: device, timezone have no effect, because a model of train.preset = "quick" has no towers'
    with pytest.warns(UserWarning, match=told) as found:
        ctxrec.load(run).recommend("u1", context={"timestamp": NOW, "device": "fridge", "timezone": "Asia/Tokyo"})
    assert len(found) == 1, "a value of what is not read is no matter"
    requests = {"request_id": [0], "user_id": ["u1"], "timestamp": [NOW], "device": ["fridge"]}
    pq.write_table(pa.table(requests), tmp_path / "R.parquet")
    with caplog.at_level("WARNING"):
        recommend(run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=3, config=Config())
    assert "the column device has no effect: a model of train.preset" in caplog.text and "fridge" not in caplog.text
    with pytest.raises(UserError, match="user_attributes is 'F'; expected a mapping"):
        ctxrec.load(run).recommend("u1", user_attributes="F")
    assert os.path.isdir(run)
