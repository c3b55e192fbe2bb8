"""The item memory and the blend: counts worked by hand, weights that find what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.baselines import TrainingEvents
from ctxrec.blend import Blend, fit_blend, head_covariances, scale_heads, source_weights
from ctxrec.events import Context, Events, Requests, Users
from ctxrec.memory import fit_memory, from_arrays, history_weights, to_arrays


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
    following = memory.next_II.toarray()
    assert following.tolist() == [[0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert memory.popularity_I[3] == 0 and memory.popularity_I[1] > memory.popularity_I[0]
    assert (memory.together_II.toarray() >= 0).all() and memory.together_II[0, 1] > 0
    assert memory.sources[-2:] == (("own", "own_recent") if repeats else ("together_recent", "next"))
    scores = dict(zip(memory.sources, memory.of_histories(events([[0], []])), strict=True))
    for found in scores.values():
        dense = found.toarray()
        assert (dense[1] == 0).all()  # without a history nothing is remembered
        assert dense[0].std() == pytest.approx(1, abs=1e-5)
    assert scores["next"].toarray()[0].argmax() == 1


def test_memory_survives_saving():
    memory = fit_memory([training([[0, 1, 2], [2, 1]])], 3, repeats=True)
    again = from_arrays(to_arrays(memory))
    for a, b in zip(memory.of_histories(events([[2, 1]])), again.of_histories(events([[2, 1]])), strict=True):
        np.testing.assert_array_equal(a.toarray(), b.toarray())
    np.testing.assert_array_equal(memory.popularity_I, again.popularity_I)


def test_history_weights_count_steps_back_from_the_latest():
    weights = history_weights(events([[0, 1, 0], [2]]), 3, decay=0.5, last=None).toarray()
    np.testing.assert_allclose(weights, [[1.25, 0.5, 0], [0, 0, 1]])
    np.testing.assert_allclose(history_weights(events([[0, 1, 0]]), 3, decay=0.5, last=2).toarray(), [[1, 0.5, 0]])


def test_heads_are_scaled_to_spread_one():
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(50, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    heads = scale_heads(queries, (2, 3), head_covariances(items, (2, 3)))
    for head, part in zip(heads, (slice(0, 2), slice(2, 5)), strict=True):
        np.testing.assert_allclose((head @ items[:, part].T).std(1), 1, rtol=1e-4)


def test_blend_is_the_sum_of_its_sources_and_finds_the_one_that_helps():
    rng = np.random.default_rng(0)
    num, num_items, dim = 200, 30, 8
    vectors = rng.normal(size=(num_items, 2 * dim)).astype(np.float32)
    queries = rng.normal(size=(num, 2 * dim)).astype(np.float32)
    target = (queries[:, :dim] @ vectors[:, :dim].T).argmax(1).astype(np.int32)  # the first head knows, the second not
    history = events([[int(i)] for i in rng.integers(0, num_items, num)])
    requests = Requests(
        users=Users(ids=np.array([str(n) for n in range(num)], object)),
        history=history,
        times=np.zeros(num, np.int64),
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=target,
    )
    memory = fit_memory(
        [training([[int(i) for i in rng.integers(0, num_items, 5)] for _ in range(40)])], num_items, repeats=True
    )
    weights = fit_blend(memory, vectors, queries, requests, (dim, dim), repeats=True, seed=0)
    typical = np.logaddexp(0, weights[0])
    assert typical[0] > 1 and typical[0] > 5 * typical[1:].max()
    blend = Blend(memory, (dim, dim), head_covariances(vectors, (dim, dim)), weights)
    scores = blend.queries(queries, history.lengths) @ blend.vectors(vectors).T + blend.remembered(history).toarray()
    assert (scores.argmax(1) == target).mean() > 0.9
    by_hand = np.zeros_like(scores)
    of_length = source_weights(weights, history.lengths)
    parts = [
        h @ vectors[:, s].T
        for h, s in zip(
            scale_heads(queries, (dim, dim), blend.covariances), (slice(0, dim), slice(dim, None)), strict=True
        )
    ]
    parts += [np.tile(memory.popularity_I, (num, 1)), np.tile(memory.recent_I, (num, 1))]
    parts += [found.toarray() for found in memory.of_histories(history)]
    for k, part in enumerate(parts):
        by_hand += of_length[:, k : k + 1] * part
    np.testing.assert_allclose(scores, by_hand, atol=1e-4)
    assert blend.remembered(history).data.min() >= 0
