"""Words of a request through a real encoder: scores, lists, filters, diversity, explanations, and what is said without one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tolerance import assert_same_scores
from worlds import ReadWorld

from ctxrec.core.config import IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.index.builder import build_index
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY
from ctxrec.retrieval.bundle_texts import BundleTexts, NoEncoder
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.heard_words import check_context_texts
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import Retriever
from serve.api import MAX_WORK, RecommendRequest
from serve.engine import Engine, answer_json

NOW = 1_700_000_000.0


@pytest.fixture(scope="module", params=["full", "quick"])
def read(request, make_world, tiny_encoder, tmp_path_factory) -> ReadWorld:
    folder = str(tmp_path_factory.mktemp("bundle"))
    return ReadWorld(make_world(), tiny_encoder, folder, f"train.preset={request.param}")


@pytest.fixture(scope="module")
def recommender(read):
    return read.recommender()


def asked(recommender, **fields):
    return recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW, **fields)])[0]


def test_a_query_adds_what_its_text_says_of_each_item(read, recommender):
    plain = recommender.scores(asked(recommender))[0]
    item = 7  # what its own text asks for
    added = recommender.scores(asked(recommender, query=read.world.catalogue.texts[item]))[0] - plain
    likeness = read.text_IC @ read.text_IC[item]
    assert_same_scores(added, 2.0 * likeness / likeness.std())
    assert added.argmax() == item
    assert_same_scores(recommender.scores(asked(recommender, query=" "))[0], plain)
    with pytest.raises(UserError, match="1,001 characters; expected at most 1,000"):
        asked(recommender, query="x" * 1001)
    with pytest.raises(UserError, match="query is 5; expected a text"):
        asked(recommender, query=5)


def test_the_text_of_the_context_is_read_too(read, recommender):
    """The towers of the full preset read it by themselves, so the content of the text head is compared alone."""
    text = slice(sum(recommender.widths), sum(recommender.widths) + read.text_IC.shape[1])
    silent = recommender.queries(asked(recommender))[0, text]
    by_context = recommender.queries(asked(recommender, context={"query": "red shoe"}))[0, text] - silent
    by_query = recommender.queries(asked(recommender, query="red shoe"))[0, text] - silent
    np.testing.assert_allclose(by_context, 0.1 * by_query, atol=1e-4)  # the weights are .2 and 2


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_lists_of_many_requests_filters_and_diversity(recommender, kind):
    index = None if kind == "exact" else build_index(recommender.vectors, IndexConfig(kind=kind, use_gpu="no"))
    retriever = Retriever(recommender, index)
    raw = [
        RawRequest(user_id=f"u{n}", timestamp=NOW, query=query, context=context)
        for n, (query, context) in enumerate(
            [("red shoe", {}), (None, {}), (None, {"query": "lamp"}), ("hat", {"query": "a red hat"}), ("red shoe", {})]
        )
    ]
    together, _ = recommender.make_requests(raw)
    scores = recommender.scores(together)
    allowed = retriever.compile_filter(None, allow=[f"i{n}" for n in range(20) if n % 3])
    found = retriever.top_k(together, 5, allowed=allowed)
    for n, (items, values) in enumerate(found):
        wanted = [i for i in np.flatnonzero(allowed) if i not in together.seen()[n]]
        best = sorted(wanted, key=lambda i: (-scores[n, i], i))[:5]
        assert items.tolist() == best
        assert_same_scores(values, scores[n, best])
        alone, _ = recommender.make_requests([raw[n]])
        assert retriever.top_k(alone, 5, allowed=allowed)[0][0].tolist() == best
    diverse = retriever.top_k(together, 5, diversity=[0.5] * 5)
    assert all(len(set(items.tolist())) == 5 for items, _ in diverse)


def test_an_explanation_names_the_words(recommender):
    items = np.array([3, 17, 5])
    requests = asked(recommender, query="red shoe", context={"query": "lamp", "device": "tv"})
    scores = recommender.scores(requests)[0, items]
    found = explain(recommender, requests, items)
    assert_same_scores([sum(why.sources.values()) for why in found], scores)
    plain = recommender.scores(asked(recommender, context={"query": "lamp", "device": "tv"}))[0, items]
    assert_same_scores([why.sources[QUERY] for why in found], scores - plain)
    assert all(CONTEXT_TEXT in why.sources for why in found)
    silent = explain(recommender, asked(recommender), items)
    assert not {QUERY, CONTEXT_TEXT} & set(silent[0].sources)


def test_without_its_encoder_the_model_answers_and_says_what_it_could_not_do(read, make_world, tmp_path):
    lost = dataclasses.replace(read.config, encoder=dataclasses.replace(read.config.encoder, name=str(tmp_path / "no")))
    texts = BundleTexts(str(tmp_path), lost, dict(zip(("centre", "axes"), read.texts.axes, strict=True)))
    recommender = read.recommender(texts)
    assert_same_scores(recommender.scores(asked(recommender, query="red shoe")), recommender.scores(asked(recommender)))
    with pytest.raises(NoEncoder, match="no such folder"):
        check_context_texts(recommender)
    bare = make_world().recommender(make_world().config())
    check_context_texts(bare)  # it reads them by its towers alone
    body = RecommendRequest(user_id="u1", query="red shoe", context={"query": "lamp"})
    quiet = RecommendRequest(user_id="u1", context={"query": "lamp"})
    context = ["body", "requests", 0, "context", "query"]
    for model, said, fields in [
        (recommender, "is not to be had here", [["body", "requests", 0, "query"], context]),
        (bare, "trained without a text encoder", [["body", "requests", 0, "query"]]),
    ]:
        (reply,) = Engine(Retriever(model)).recommend([[body, quiet]])
        loud, silent = (answer_json(answer, "requests", 0) for answer in reply.answers)
        assert [warning["loc"] for warning in loud["warnings"]] == fields
        assert all(said in warning["msg"] and warning["type"] == "words_not_read" for warning in loud["warnings"])
        assert [warning["loc"] for warning in silent.get("warnings", [])] == fields[1:]
        assert [item["item_id"] for item in loud["items"]] == [item["item_id"] for item in silent["items"]]


def test_the_engine_hands_the_query_on(recommender):
    engine = Engine(Retriever(recommender))
    bodies = [RecommendRequest(user_id="u1", k=20, query=query) for query in ("red shoe", None, "lamp")]
    (reply,) = engine.recommend([bodies])
    lists = [answer_json(answer) for answer in reply.answers]
    kinds = {warning["type"] for made in lists for warning in made.get("warnings", [])}
    assert kinds <= {"short_list"}, "the catalogue has not many more items than are asked for"
    assert len({tuple(item["item_id"] for item in made["items"]) for made in lists}) == 3
    many = [RecommendRequest(user_id="u1", k=600, query=f"red shoe {n}") for n in range(256)]
    with pytest.raises(UserError, match=f"at most {MAX_WORK}"):
        engine.check_work(many)
    engine.check_work([body.model_copy(update={"query": None}) for body in many])
    long = [RecommendRequest(user_id="u1", query="x" * 1000) for _ in range(50)]
    engine.check_work(long)
    with pytest.raises(UserError, match="100 characters of text 500"):
        engine.check_work(long * 2)  # a second of an encoder's time and more
    engine.check_work(long[:1] * 2 + [RecommendRequest(user_id="u1", context={"query": "x" * 8000})])
