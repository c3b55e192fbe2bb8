"""The item memory and the blend: counts worked by hand, weights that find what was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.core.errors import UserError
from ctxrec.data.events import Context, Events, Users
from ctxrec.data.log_statistics import TrainingEvents
from ctxrec.data.requests import Requests
from ctxrec.memory.blend import NEW, Blend, source_weights
from ctxrec.memory.blend_fit import BLEND_FIT, BlendFit, BlendFitParams, fit_blend
from ctxrec.memory.item_memory import as_if_known, fit_memory, from_arrays, to_arrays
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY, word_queries
from ctxrec.memory.text_similarity import history_queries, history_weights, proxy_weights, reduced


def events(rows: list[list[int]]) -> Events:
    lengths = [len(row) for row in rows]
    flat = np.array([item for row in rows for item in row], np.int32)
    return Events(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=flat,
        times=np.arange(len(flat)),
        actions=np.zeros(len(flat), np.int16),
        context=Context(),
    )


def training(rows: list[list[int]]) -> TrainingEvents:
    made = events(rows)
    return TrainingEvents(offsets=made.offsets, items=made.items, times=made.times)


@pytest.mark.parametrize("repeats", [False, True])
def test_memory_by_hand(repeats):
    memory = fit_memory([training([[0, 1, 2], [0, 1]]), training([[1, 2]])], 4, repeats=repeats)
    # 1 and 2 came next twice each, 2 came two steps after 0; over the roots of 2, 3 and 2 events.
    following = [[0, 2 / 6**0.5, 0.5 / 2, 0], [0, 0, 2 / 6**0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(memory.next_II.toarray(), following, rtol=1e-6)
    assert memory.popularity_I[3] == 0 and memory.popularity_I[1] > memory.popularity_I[0]
    assert (memory.cooccurrence_II.toarray() >= 0).all() and memory.cooccurrence_II[0, 1] > 0
    assert memory.sources[-2:] == (("repeat", "repeat_recent") if repeats else ("cooccurrence_recent", "next"))
    scores = dict(zip(memory.sources, memory.source_scores(events([[0], []])), strict=True))
    for found in scores.values():
        dense = found.toarray()
        assert (dense[1] == 0).all()  # without a history nothing is remembered
        assert dense[0].std() == pytest.approx(1, abs=1e-5)
    assert scores["next"].toarray()[0].argmax() == 1


def test_memory_survives_saving():
    memory = fit_memory([training([[0, 1, 2], [2, 1]])], 3, repeats=True)
    again = from_arrays(to_arrays(memory))
    names = {f"{pairs}.{part}" for pairs in ("together", "next") for part in ("weights", "items", "offsets")}
    assert set(to_arrays(memory)) == names | {"popularity", "recent", "known", "own"}, "what all bundles have"
    assert again.repeats
    for a, b in zip(memory.source_scores(events([[2, 1]])), again.source_scores(events([[2, 1]])), strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())
    np.testing.assert_array_equal(memory.popularity_I, again.popularity_I)
    np.testing.assert_array_equal(memory.known_I, again.known_I)
    old = {name: array for name, array in to_arrays(memory).items() if not name.startswith("together")}
    with pytest.raises(UserError, match="earlier version; train again"):
        from_arrays(old)


def test_history_weights_count_steps_back_from_the_latest():
    weights = history_weights(events([[0, 1, 0], [2]]), 3, decay=0.5, last=None).toarray()
    np.testing.assert_allclose(weights, [[1.25, 0.5, 0], [0, 0, 1]])
    np.testing.assert_allclose(history_weights(events([[0, 1, 0]]), 3, decay=0.5, last=2).toarray(), [[1, 0.5, 0]])


def test_items_without_events_have_what_their_proxies_have():
    text = reduced(
        np.array([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 1, 0.1], [0, 0, 0]], np.float32), np.arange(5) < 4, 3
    )
    known = np.array([True, True, False, False, False])
    log = training([[0, 1]] * 60 + [[1]])  # so many that the pair counts more than its texts, which are unlike
    memory = fit_memory([log], 5, repeats=True, text_IC=text)
    speak = proxy_weights(text, known).toarray()
    assert speak[0, 0] == 1 and speak[2].argmax() == 0 and speak[3].argmax() == 1
    np.testing.assert_allclose(speak.sum(1), [1, 1, 1, 1, 0], atol=1e-6)
    assert memory.popularity_I[3] > memory.popularity_I[2] and memory.popularity_I[4] == 0
    following, cooccurrence = memory.next_II.toarray(), memory.cooccurrence_II.toarray()
    assert following[0, 3] > following[0, 2] > 0 and following[2, 1] > 0  # they follow, and are followed
    assert (following[:, 4] == 0).all() and cooccurrence[0, 3] > 0
    as_if = as_if_known(memory, np.arange(5) < 1, text)
    assert as_if.next_II.toarray()[0, 2] == 0 and as_if.popularity_I[1] == as_if.popularity_I[0], "0 speaks for all"
    bare = as_if_known(memory, np.arange(5) < 1, None)
    assert bare.popularity_I.tolist()[1:] == [0] * 4 and bare.known_I.tolist() == [True] + [False] * 4
    plain = fit_memory([log], 5, repeats=True)
    np.testing.assert_array_equal(following[:2, :2], plain.next_II.toarray()[:2, :2])


def test_text_vectors_keep_their_similarity():
    rng = np.random.default_rng(0)
    vectors, present = rng.normal(size=(20, 6)) + 5, np.arange(20) < 18
    text = reduced(vectors, present, 6)
    centred = vectors[:18] - vectors[:18].mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(text[:18] @ text[:18].T, centred @ centred.T, atol=1e-5)
    assert not text[18:].any() and reduced(vectors, present, 4).shape == (20, 4)
    asked = history_queries(events([[3], [], [3, 4]]), text)
    np.testing.assert_allclose(asked[0], text[3], atol=1e-5)
    assert not asked[1].any()
    expected = text[4] + 0.7 * text[3]
    np.testing.assert_allclose(asked[2], expected / np.linalg.norm(expected), atol=1e-5)


@pytest.fixture
def planted():
    """Requests whose targets the first of two heads knows: memory, vectors, queries, requests."""
    rng = np.random.default_rng(0)
    num, num_items, dim = 200, 30, 8
    vectors = rng.normal(size=(num_items, 2 * dim)).astype(np.float32)
    queries = rng.normal(size=(num, 2 * dim)).astype(np.float32)
    target = (queries[:, :dim] @ vectors[:, :dim].T).argmax(1).astype(np.int32)
    requests = Requests(
        users=Users(ids=np.array([str(n) for n in range(num)], object)),
        history=events([[int(i)] for i in rng.integers(0, num_items, num)]),
        times=np.zeros(num, np.int64),
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=target,
    )
    memory = fit_memory(
        [training([[int(i) for i in rng.integers(0, num_items, 5)] for _ in range(40)])], num_items, repeats=True
    )
    return memory, vectors, queries, requests


def test_all_targets_of_the_requests_that_are_ranked_compete_in_large_catalogues(monkeypatch):
    rng = np.random.default_rng(0)
    num, num_items, dim, found = 400, 200, 4, []
    vectors = rng.normal(size=(num_items, dim)).astype(np.float32)
    memory = fit_memory(
        [training([[int(i) for i in rng.integers(0, num_items, 5)] for _ in range(40)])], num_items, repeats=True
    )
    blend = Blend.of(memory, None, vectors, (dim,))
    requests = Requests(
        users=Users(ids=np.array([f"u{n}" for n in range(num)], object)),
        history=events([[int(i)] for i in rng.integers(0, num_items, num)]),
        times=np.zeros(num, np.int64),
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=rng.integers(0, num_items, num).astype(np.int32),
    )
    fit_of = BlendFit.of
    params = BlendFitParams(max_items=40, scores_at_once=40 * len(blend.sources) * 16)  # room for 16 requests
    monkeypatch.setattr(BlendFit, "of", lambda *a, **k: found.append(fit_of(*a, **k)) or found[-1])
    fit_blend(blend, vectors, vectors[requests.target_items], requests, repeats=True, seed=0, params=params)
    assert 40 <= found[0].scores_NIK.shape[1] <= 60
    assert sorted(found[0].row_T.tolist()) == list(range(16))  # a target each


@pytest.mark.parametrize("with_text", [False, True])
def test_blend_is_the_sum_of_its_sources_and_finds_the_one_that_helps(planted, with_text):
    memory, vectors, queries, requests = planted
    history, dim = requests.history, vectors.shape[1] // 2
    text = reduced(np.random.default_rng(1).normal(size=(len(vectors), 6)), np.ones(len(vectors)), 4)
    blend = Blend.of(memory, text if with_text else None, vectors, (dim, dim))
    weights = fit_blend(blend, vectors, queries, requests, repeats=True, seed=0)
    typical = np.logaddexp(0, weights[0])
    others = [weight for weight, name in zip(typical, blend.sources, strict=True) if name != QUERY]
    assert len(typical) == len(blend.sources) and others[0] > 1 and others[0] > 5 * max(others[1:])
    blend = dataclasses.replace(blend, weights_2K=weights)
    scores = blend.queries(queries, history) @ blend.vectors(vectors).T + blend.remembered(history).toarray()
    assert (scores.argmax(1) == requests.target_items).mean() > 0.9
    heads = [queries[:, :dim] @ vectors[:, :dim].T, queries[:, dim:] @ vectors[:, dim:].T]
    heads += [history_queries(history, text) @ text.T] if with_text else []
    parts = [head / head.std(1, keepdims=True) for head in heads]
    parts += [np.zeros_like(heads[0])] * 2 if with_text else []  # nobody brings words
    parts += [np.tile(memory.popularity_I, (len(queries), 1)), np.tile(memory.recent_I, (len(queries), 1))]
    parts += [np.tile(~memory.known_I, (len(queries), 1))]
    parts += [found.toarray() for found in memory.source_scores(history)]
    by_hand = sum(w[:, None] * part for w, part in zip(source_weights(weights, history.lengths).T, parts, strict=True))
    np.testing.assert_allclose(scores, by_hand, atol=2e-4)
    assert blend.remembered(history).data.min() >= 0


def test_without_validation_the_sequence_leads_and_no_source_is_lost(planted):
    memory, vectors, _, _ = planted
    blend = Blend.of(memory, None, vectors, (vectors.shape[1] // 2,) * 2)
    for lengths in ([0], [1000]):
        weights = source_weights(blend.unfitted_2K, np.array(lengths))[0]
        new = blend.sources.index(NEW)
        assert np.delete(weights, new) == pytest.approx([1.5] + [0.2] * (len(blend.sources) - 2), rel=1e-5)
        assert weights[new] < 1e-6


def test_a_bonus_is_added_to_the_scores_of_new_items_alone(planted):
    _, vectors, queries, requests = planted
    rng = np.random.default_rng(0)
    log = training([[int(i) for i in rng.integers(0, 20, 5)] for _ in range(40)])
    memory = fit_memory([log], len(vectors), repeats=True)
    new = np.arange(len(vectors)) >= 20
    np.testing.assert_array_equal(memory.known_I, ~new)
    plain = Blend.of(memory, None, vectors, (vectors.shape[1],))

    def scores(blend: Blend) -> np.ndarray:
        found = blend.queries(queries, requests.history) @ blend.vectors(vectors).T
        return found + blend.remembered(requests.history).toarray()

    for bonus in (0.0, 0.25, 7.5):
        np.testing.assert_allclose(scores(plain.with_bonus(bonus)), scores(plain) + bonus * new, atol=1e-4)


def test_a_head_that_tells_no_two_items_apart_says_nothing(planted):
    memory, vectors, queries, requests = planted
    alike = np.repeat(vectors[:1], len(vectors), axis=0)
    blend = Blend.of(memory, None, alike, (vectors.shape[1],))
    assert not blend.head_queries(queries, requests.history)[0].any()


def test_all_of_a_requests_targets_may_count_not_the_first(planted):
    """One head knows the first three targets of every request, the other the nine that follow."""
    memory, vectors, queries, requests = planted
    num, dim = len(requests), vectors.shape[1] // 2
    first = np.argsort(-(queries[:, :dim] @ vectors[:, :dim].T), 1)[:, :3]
    later = [
        [i for i in order if i not in set(own)][:9]
        for order, own in zip(np.argsort(-(queries[:, dim:] @ vectors[:, dim:].T), 1), first, strict=True)
    ]
    many = dataclasses.replace(
        requests,
        target_items=np.concatenate([np.concatenate(pair) for pair in zip(first, later, strict=True)]).astype(np.int32),
        target_offsets=np.arange(num + 1) * 12,
    )
    blend = Blend.of(memory, None, vectors, (dim, dim))
    weights = np.logaddexp(0, fit_blend(blend, vectors, queries, many, repeats=True, seed=0)[0])
    assert weights[1] > weights[0]


def test_words_of_requests_are_found_weighed_and_added(planted):
    """The targets are what the texts of the contexts name; half of the requests have no text."""
    memory, vectors, queries, requests = planted
    rng = np.random.default_rng(1)
    text = reduced(rng.normal(size=(len(vectors), 6)), np.ones(len(vectors)), 4)
    names = [f"item {item}" for item in requests.target_items]
    asked = np.array([name if n % 2 else None for n, name in enumerate(names)], object)
    requests = dataclasses.replace(requests, context=Context(text={"search": asked}))

    def read(texts):
        return text[[int(name.removeprefix("item ")) for name in texts]]

    blend = Blend.of(memory, text, vectors, (vectors.shape[1],))
    fit = fit_blend(blend, vectors, 0 * queries, requests, repeats=True, seed=0, read_texts=read)
    blend = dataclasses.replace(blend, weights_2K=fit)
    weight = dict(zip(blend.sources, np.logaddexp(0, fit[0]), strict=True))
    assert weight[CONTEXT_TEXT] > 3 * max(w for name, w in weight.items() if name not in (CONTEXT_TEXT, QUERY))
    assert weight[QUERY] >= weight[CONTEXT_TEXT], "what a client asks for counts no less"

    def scores(requests):
        words = word_queries(requests, read)
        return blend.queries(0 * queries, requests.history, words) @ blend.vectors(vectors).T

    silent = dataclasses.replace(requests, context=Context(text={"search": np.full(len(requests), None)}))
    added = scores(requests) - scores(silent)
    np.testing.assert_array_equal(added[::2], 0)
    named = text[requests.target_items[1::2]] @ text.T
    lengths = requests.history.lengths[1::2]
    of_text = source_weights(fit, lengths)[:, [blend.sources.index(CONTEXT_TEXT)]]
    np.testing.assert_allclose(added[1::2], of_text * named / named.std(1, keepdims=True), atol=1e-3)
    assert (scores(requests).argmax(1) == requests.target_items)[1::2].mean() > 0.9


def test_a_query_weighs_as_much_as_all_other_scores_where_no_log_tells(planted):
    memory, vectors, queries, requests = planted
    text = reduced(np.random.default_rng(1).normal(size=(len(vectors), 6)), np.ones(len(vectors)), 4)
    blend = Blend.of(memory, text, vectors, (vectors.shape[1] // 2,) * 2)
    weights = fit_blend(blend, vectors, queries, requests, repeats=True, seed=0)
    blend = dataclasses.replace(blend, weights_2K=weights)
    others = blend.queries(queries, requests.history) @ blend.vectors(vectors).T
    others = others + blend.remembered(requests.history).toarray()
    spread, place = others.std(1).mean(), blend.sources.index(QUERY)
    assert source_weights(weights, np.array([0, 5, 500]))[:, place] == pytest.approx(
        BLEND_FIT.query_share * spread, rel=1e-3
    )
    plain = Blend.of(memory, None, vectors, blend.widths)
    same = fit_blend(plain, vectors, queries, requests, repeats=True, seed=0)
    assert len(plain.sources) == len(blend.sources) - 3 and same.shape == (2, len(plain.sources))
