"""Less like this: what is like the disliked items falls, all else stays, and every way to ask gives one list."""

from __future__ import annotations

import dataclasses

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
from ctxrec.index.builder import build_index
from ctxrec.retrieval.batch_scoring import recommend
from ctxrec.retrieval.dislikes import DISLIKES
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_files import check_requests, raw_requests
from ctxrec.retrieval.retriever import Retriever
from serve.api import RecommendRequest
from serve.engine import load_engine

NOW = 1_700_000_000
ASKED = RawRequest(user_id="u1", timestamp=NOW, context={"device": "tv"})


@pytest.fixture(scope="module")
def recommender(tiny_run):
    return load_recommender(find_bundle(tiny_run))


def scores(recommender, **changes) -> np.ndarray:
    return recommender.scores(recommender.make_requests([dataclasses.replace(ASKED, **changes)])[0])[0]


def test_what_is_like_a_disliked_item_falls_more_than_the_rest(recommender):
    """Items i0, i4, i8 ... of the shop are bought together and share words."""
    change = scores(recommender, dislike=["i4", "i8"]) - scores(recommender)
    alike = np.array([int(item[1:]) % 4 == 0 for item in recommender.item_ids])
    assert change[alike].mean() < change[~alike].mean() - 0.1
    assert scores(recommender, dislike=["no such item"]).tolist() == scores(recommender).tolist()


def test_a_share_of_what_the_items_alone_would_add_is_taken(recommender):
    """The parts of the sum, each asked for by itself."""
    model, blend = recommender, recommender.blend
    own, _ = model.make_requests([ASKED])
    history = [RawEvent(item, timestamp=NOW - 1e-6, context=ASKED.context) for item in ("i4", "i8")]
    alone, _ = model.make_requests([dataclasses.replace(ASKED, history=history)])
    nothing, _ = model.make_requests([dataclasses.replace(ASKED, history=[])])
    compared = slice(0, model.vectors.shape[1] - 3)  # popularity and its like compare no items
    change = (model.queries(alone) - model.queries(nothing))[:, compared] @ model.vectors[:, compared].T
    memory = model.remembered(own).toarray() - DISLIKES.share * model.remembered(alone).toarray()
    wanted = model.queries(own) @ model.vectors.T - DISLIKES.share * change + np.maximum(memory, 0)
    np.testing.assert_allclose(scores(model, dislike=["i8", "i4", "i8"]), wanted[0], atol=1e-4)
    assert blend is not None and np.abs(change).max() > 0.1


def test_a_request_of_a_batch_keeps_its_dislikes_to_itself(recommender):
    raw = [ASKED, dataclasses.replace(ASKED, dislike=["i4"]), dataclasses.replace(ASKED, user_id="u2")]
    together = recommender.scores(recommender.make_requests(raw)[0])
    for n, request in enumerate(raw):
        assert_same_scores(together[n], recommender.scores(recommender.make_requests([request])[0])[0])


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_the_list_is_the_best_of_all_without_the_disliked_items(recommender, kind):
    config = Config().index
    index = None
    if kind == "hnsw":
        index = build_index(recommender.vectors, dataclasses.replace(config, kind="hnsw"))
    asked = dataclasses.replace(ASKED, dislike=["i4", "i8"])
    requests, _ = recommender.make_requests([asked])
    items, found = Retriever(recommender, index).top_k(requests, 10)[0]
    wanted = scores(recommender, dislike=["i4", "i8"])
    left_out = recommender.catalogue.positions(["i4", "i8"])
    wanted[np.concatenate([left_out, requests.seen()[0]])] = -np.inf
    assert items.tolist() == np.argsort(-wanted, kind="stable")[:10].tolist()
    assert_same_scores(found, wanted[items])


def test_an_explanation_shows_what_dislikes_take(recommender):
    items = np.array([0, 3, 12])
    requests, _ = recommender.make_requests([dataclasses.replace(ASKED, dislike=["i4", "i8"])])
    for why, position in zip(explain(recommender, requests, items), items, strict=True):
        assert_same_scores(sum(why.sources.values()), scores(recommender, dislike=["i4", "i8"])[position])
        taken = scores(recommender, dislike=["i4", "i8"])[position] - scores(recommender)[position]
        assert why.sources["dislike"] == pytest.approx(taken, abs=1e-4)
    plain, _ = recommender.make_requests([ASKED])
    assert "dislike" not in explain(recommender, plain, items)[0].sources


def test_http_a_file_and_python_give_the_same_lists(tiny_run, tmp_path):
    dislikes = [["i29", "i33"], [], None]
    bodies = [
        {"user_id": "u1", "k": 10, "context": {"timestamp": NOW}} | ({"dislike": ids} if ids else {})
        for ids in dislikes
    ]
    engine = load_engine(tiny_run, 4)
    answers = engine.recommend([[RecommendRequest.model_validate(body) for body in bodies]])[0].answers
    columns = {"request_id": [0, 1, 2], "user_id": ["u1"] * 3, "timestamp": [NOW] * 3}
    table = pa.table(columns | {"dislike": pa.array(dislikes, pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "R.parquet")
    recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=10, config=Config())
    rows = pq.read_table(tmp_path / "O.parquet").to_pylist()
    model = ctxrec.load(tiny_run)
    for n, (answer, ids) in enumerate(zip(answers, dislikes, strict=True)):
        listed = model.recommend("u1", k=10, context={"timestamp": NOW}, dislike=ids or ())
        assert answer.item_ids == rows[n]["item_ids"] == listed.item_id.tolist()
        assert_same_scores(answer.scores, rows[n]["scores"])
        assert_same_scores(answer.scores, listed.score.to_numpy())
    assert answers[0].item_ids != answers[1].item_ids == answers[2].item_ids
    body = RecommendRequest.model_validate({"user_id": "u1", "dislike": ["i4", "gone"]})
    (answer,) = engine.recommend([[body]])[0].answers
    assert [(note.place, note.kind) for note in answer.notes] == [(("dislike",), "unknown_item")]


def test_a_column_of_dislikes_is_checked(tmp_path):
    def check(dislike: pa.Array, context: ContextSpec | None = None) -> None:
        table = pa.table({"request_id": [1], "user_id": ["a"], "timestamp": [NOW], "dislike": dislike})
        pq.write_table(table, tmp_path / "R.parquet")
        check_requests([str(tmp_path / "R.parquet")], context or ContextSpec())

    check(pa.array([["a", None]]))
    check(pa.array([None]))
    check(pa.array(["a"]), ContextSpec(text=("dislike",)))
    with pytest.raises(UserError, match="column 'dislike' is string; expected a list of item ids"):
        check(pa.array(["a"]))
    with pytest.raises(UserError, match="the longest dislike is 101; expected at most 100 items"):
        check(pa.array([[str(n) for n in range(101)]]))
    table = pa.table({"request_id": [1, 2], "timestamp": [NOW] * 2, "dislike": [[242.0, None], None]})
    assert [request.dislike for request in raw_requests(table, ContextSpec(), now_s=5.0)] == [("242",), ()]


def test_an_answer_does_not_depend_on_who_else_asks(tiny_run):
    plain = {"user_id": "u1", "k": 5, "context": {"timestamp": NOW}, "explain": True, "probability": True}
    others = [{"dislike": ["i4"]}, {"query": "red shoe"}, {"dislike": ["no such item"]}, {"context": {"device": "tv"}}]
    bodies = [
        plain,
        *({**plain, **other, "context": {"timestamp": NOW} | other.get("context", {})} for other in others),
    ]
    engine = load_engine(tiny_run, 8)
    asked = [RecommendRequest.model_validate(body) for body in bodies]
    together = engine.recommend([asked])[0].answers
    for body, request, answer in zip(bodies, asked, together, strict=True):
        (alone,) = engine.recommend([[request]])[0].answers
        assert answer.item_ids == alone.item_ids and answer.notes == alone.notes, body
        assert_same_scores(answer.scores, alone.scores)
        for one, other in zip(answer.why, alone.why, strict=True):
            for part in ("history", "context", "user", "sources"):
                assert getattr(one, part).keys() == getattr(other, part).keys(), (body, part)
        assert ("dislike" in answer.why[0].sources) == (body.get("dislike") == ["i4"]), body
