"""The second stage in the service: who gets it, what it counts as, and how a model without one answers."""

from __future__ import annotations

import asyncio
import logging
import shutil

import numpy as np
import pytest
from prometheus_client import values
from rerankers import put_second_stage
from starlette.exceptions import HTTPException

import ctxrec
from ctxrec.bundle.registry import find_bundle, publish
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import reranker_beside
from ctxrec.retrieval.raw_request import RawRequest
from serve.api import RecommendRequest
from serve.arguments import AppArgs
from serve.engine import Answer, Engine, answer_json, load_engine
from serve.replica import Replica
from serve.service_metrics import Metrics

USERS = [f"u{n}" for n in range(8)]
NOW = 1_700_000_000


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> str:
    folder = str(shutil.copytree(tiny_run, tmp_path_factory.mktemp("reranked") / "run"))
    put_second_stage(f"{folder}/bundle")
    return folder


@pytest.fixture(scope="module")
def engine(run) -> Engine:
    return load_engine(run, 2)


def body(user: str = "u1", **fields) -> RecommendRequest:
    return RecommendRequest.model_validate({"user_id": user, "k": 10, "context": {"timestamp": NOW}} | fields)


def lists(engine: Engine, **fields) -> list[list[str]]:
    answers = engine.recommend([[body(user, **fields) for user in USERS]])[0].answers
    assert all(isinstance(answer, Answer) for answer in answers)
    return [answer.item_ids for answer in answers]


def test_a_request_asks_for_it_and_the_options_decide_for_the_others(engine, run):
    plain, ranked = lists(engine), lists(engine, rerank=True)
    assert lists(engine, rerank=False) == plain != ranked
    assert [sorted(items) for items in ranked] == [sorted(items) for items in plain], "the best ten in another order"
    always = load_engine(run, 2, overrides=["rerank.use=true"])
    assert lists(always) == ranked and lists(always, rerank=False) == plain
    assert lists(engine, rerank=True, k=3) == [items[:3] for items in ranked]


def test_no_list_depends_on_what_else_is_asked(engine):
    ranked, plain = lists(engine, rerank=True), lists(engine)
    mixed = [body(user, rerank=n % 2 == 0, k=1 + n) for n, user in enumerate(USERS)]
    answers = engine.recommend([mixed])[0].answers
    for n, answer in enumerate(answers):
        assert answer.item_ids == (ranked if n % 2 == 0 else plain)[n][: 1 + n]


def test_scores_fall_and_diversity_and_reasons_work_on_the_new_order(engine):
    (ranked, diverse, why) = (
        engine.recommend([[body(rerank=True, **fields)]])[0].answers[0]
        for fields in ({}, {"diversity": 0.0}, {"explain": True})
    )
    assert ranked.scores == sorted(ranked.scores, reverse=True)
    assert diverse.item_ids == ranked.item_ids == why.item_ids, "diversity 0 keeps the order that it is given"
    (first,) = engine.recommend([[body()]])[0].answers
    plain = dict(zip(first.item_ids, first.scores, strict=True))
    for item, reasons in zip(why.item_ids, why.why, strict=True):
        assert sum(reasons.sources.values()) == pytest.approx(plain[item], rel=1e-3), "the retriever's own score"


def test_its_time_is_a_stage_where_it_is_asked_for(engine):
    assert "rerank" in engine.recommend([[body(rerank=True), body()]])[0].seconds
    assert "rerank" not in engine.recommend([[body()]])[0].seconds


def test_it_reads_the_query(engine):
    """Of equal requests but for the query, the encoder must see two texts; the retriever's part is held still."""
    retriever = engine.retriever
    model, second = retriever.recommender, retriever.reranker
    raw = [RawRequest(user_id="u1", timestamp=NOW, query=query) for query in (None, "red shoe", "blue lamp")]
    requests, _ = model.make_requests(raw)
    found = retriever.top_k(requests.take(np.zeros(3, int)), 10, rerank=[False] * 3)
    logits = second.logits(requests, found, features=model.features, titles=["red hat"] * 3)
    assert abs(logits[1] - logits[0]).max() > 1e-3 and abs(logits[2] - logits[1]).max() > 1e-3


def test_a_model_without_one_answers_and_says_so(tiny_run, run):
    engine = load_engine(tiny_run, 2)
    asked, not_asked = engine.recommend([[body(rerank=True), body(rerank=False)]])[0].answers
    assert asked.item_ids == not_asked.item_ids and "warnings" not in answer_json(not_asked)
    (warning,) = answer_json(asked)["warnings"]
    assert warning["loc"] == ["body", "rerank"] and warning["type"] == "no_second_stage"
    assert "no second stage" in warning["msg"]
    with pytest.raises(UserError, match=r"no reranker at .*train one with ctxrec rerank"):
        load_engine(tiny_run, 2, overrides=["rerank.use=true"])


def test_one_that_gained_nothing_is_none(tiny_run, tmp_path):
    folder = str(shutil.copytree(tiny_run, tmp_path / "run"))
    put_second_stage(f"{folder}/bundle", weight=0.0)
    engine = load_engine(folder, 2, overrides=["rerank.use=true"])
    (answer,) = engine.recommend([[body(rerank=True)]])[0].answers
    assert answer.notes[0].kind == "no_second_stage" and engine.num_reranked(body(rerank=True)) == 0


def test_one_of_another_model_is_left_out_with_a_warning(tiny_run, tmp_path, caplog):
    folder = str(shutil.copytree(tiny_run, tmp_path / "run"))
    put_second_stage(f"{folder}/bundle", model_version="0" * 12)
    with caplog.at_level(logging.WARNING):
        engine = load_engine(folder, 2)
    assert "was trained for model 000000000000" in caplog.text and engine.retriever.reranker is None
    publish(find_bundle(folder), str(tmp_path / "models"))
    assert not storage.exists(reranker_beside(find_bundle(str(tmp_path / "models"))))


def test_a_published_version_brings_its_own(run, engine, tmp_path):
    models = str(tmp_path / "models")
    publish(find_bundle(run), models)
    assert lists(load_engine(models, 2), rerank=True) == lists(engine, rerank=True)


def test_a_long_list_of_reranked_requests_is_refused(engine):
    per_request = 20 * 10 * 32 + 10
    most = 256_000 // per_request
    engine.check_work([body(rerank=True)] * most)
    engine.check_work([body()] * 256)
    with pytest.raises(UserError, match="a candidate of the second stage 640; expected at most 256000"):
        engine.check_work([body(rerank=True)] * (most + 1))


def test_its_candidates_count_as_waiting_requests(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    args = AppArgs(run=run, store=str(tmp_path / "live"), load_encoder=False, max_waiting=15).resolved()
    replica = Replica(args, Metrics(str(tmp_path / "metrics")), num_threads=1)

    async def together(*bodies: RecommendRequest) -> list:
        return await asyncio.gather(*(replica.recommend([one]) for one in bodies), return_exceptions=True)

    first, second, plain = asyncio.run(together(body(rerank=True), body(rerank=True), body()))
    assert isinstance(second, HTTPException) and second.status_code == 503
    assert isinstance(first.answers[0], Answer) and isinstance(plain.answers[0], Answer)
    replica.close()


def test_python_means_the_same(run, engine, tiny_run):
    model = ctxrec.load(run)
    for rerank in (True, False):
        found = model.recommend("u1", k=10, context={"timestamp": NOW}, rerank=rerank)
        assert found["item_id"].to_list() == engine.recommend([[body(rerank=rerank)]])[0].answers[0].item_ids
    with pytest.warns(UserWarning, match="rerank has no effect: the model has no second stage"):
        ctxrec.load(tiny_run).recommend("u1", rerank=True)
