"""A model without towers (`train.preset = "quick"`): the blend alone ranks, explains and says what is similar."""

from __future__ import annotations

import numpy as np
import pytest
from blends import blend_of
from tolerance import assert_same_scores

from ctxrec.data.vectors import normalised
from ctxrec.memory.blend import Blend
from ctxrec.retrieval.explain import explain
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.retriever import Retriever

NOW = 1_700_000_000.0
RAW = [RawRequest(user_id=f"u{n}", timestamp=NOW) for n in range(6)]


def blend_with_texts(item_vectors, widths):
    texts = np.random.default_rng(1).normal(size=(len(item_vectors), 5)).astype(np.float32)
    return Blend.of(blend_of(item_vectors, widths).memory, normalised(texts), item_vectors, widths)


@pytest.fixture(scope="module")
def recommender(make_world):
    world = make_world()
    return world.recommender(world.config("train.preset=quick"), blend=blend_with_texts)


def test_scores_are_those_of_the_blend_alone(recommender):
    requests, _ = recommender.make_requests(RAW)
    assert recommender.widths == () and recommender.item_vectors.shape == (len(recommender.item_ids), 0)
    none = np.zeros((len(requests), 0), np.float32)
    blend = recommender.blend
    wanted = blend.queries(none, requests.history) @ blend.vectors(recommender.item_vectors).T
    assert_same_scores(recommender.scores(requests), wanted + blend.remembered(requests.history).toarray())
    assert recommender.scores(requests).std() > 0


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_histories_that_are_kept_change_nothing(recommender, max_bytes):
    requests, _ = recommender.make_requests(RAW)
    wanted = recommender.scores(requests)
    recommender.keep_histories(max_bytes)
    for _ in range(2):
        assert_same_scores(recommender.scores(requests), wanted)
    recommender.keep_histories(0)


def test_bf16_has_nothing_to_read(recommender):
    requests, _ = recommender.make_requests(RAW)
    wanted = recommender.scores(requests)
    recommender.set_precision("bf16")
    assert_same_scores(recommender.scores(requests), wanted)


def test_shares_of_sources_sum_to_the_score(recommender):
    requests, _ = recommender.make_requests([RawRequest(timestamp=NOW, history=[RawEvent("i3"), RawEvent("i5")])])
    items = np.array([1, 2, 9])
    for why, score in zip(explain(recommender, requests, items), recommender.scores(requests)[0, items], strict=True):
        assert "sequence" not in why.sources and "memory" in why.sources
        assert_same_scores(sum(why.sources.values()), score)


def test_similar_items_are_those_of_someone_who_had_the_item_alone_without_popularity(recommender):
    retriever = Retriever(recommender)
    blend, num_items = recommender.blend, len(recommender.item_ids)
    for item in range(num_items):
        requests, _ = recommender.make_requests([RawRequest(timestamp=NOW, history=[RawEvent(f"i{item}")])])
        static = recommender.vectors[:, -3:] @ recommender.queries(requests)[0, -3:]
        wanted = recommender.scores(requests)[0] - static
        wanted[item] = -np.inf
        found, scores = retriever.similar(item, 4)
        assert item not in found and len(found) == 4
        assert_same_scores(scores, np.sort(wanted)[::-1][:4])
    assert blend.memory.popularity_I.std() > 0, "popularity would have changed the lists"


def test_a_model_without_towers_and_texts_has_no_vectors_to_compare(make_world):
    world = make_world()
    bare = world.recommender(world.config("train.preset=quick"), blend=blend_of)
    assert bare.content_vectors(np.array([0, 1])).shape == (2, 0)
    requests, _ = bare.make_requests(RAW)
    assert all(len(items) == 3 for items, _ in Retriever(bare).top_k(requests, 3))
