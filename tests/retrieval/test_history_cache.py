"""What is kept of histories: the same answers as without, whatever changes, in bounded room."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from blends import blend_of

from ctxrec.retrieval.history_cache import HistoryCache, history_keys
from ctxrec.retrieval.live_catalogue import EncodedItems
from ctxrec.retrieval.raw_request import RawEvent, RawRequest

LATER = 1_700_000_000.0
BACKBONES = ["transformer", "gru", "hstu"]


@pytest.fixture(scope="module")
def world(make_world):
    return make_world(lengths=(9, 0, 5))


def make_raw(world) -> list[RawRequest]:
    """Known and unknown users, at several moments, in several contexts, one of them twice."""
    middle = float(world.histories.events.times[4]) / 1e6
    recent = [RawEvent("i2", action="buy", timestamp=LATER - 9, context={"query": "red shoe", "basket": 1.5})]
    contexts = [{}, {"device": "tv"}, {"device": "phone", "query": "hat", "basket": 3}]
    raw = [RawRequest("u0", LATER + 40_000 * n, context) for n, context in enumerate(contexts)]
    raw += [RawRequest("u0", middle), RawRequest("u2", LATER), RawRequest("u1", LATER), RawRequest("nobody", LATER)]
    raw += [RawRequest("u0", LATER, recent=recent), RawRequest(None, LATER, history=recent), raw[0]]
    return raw + [RawRequest("u0", LATER, history=[]), RawRequest("u0", LATER, history=recent * 9)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_answers_are_the_same_with_and_without(world, backbone):
    plain, kept = (world.recommender(world.config(f"model.backbone={backbone}"), blend=blend_of) for _ in range(2))
    kept.keep_histories(1 << 20)
    requests, _ = plain.make_requests(make_raw(world))
    for order in (np.arange(len(requests)), np.arange(len(requests))[::-1], np.array([3, 0])):
        some = requests.take(order)
        np.testing.assert_allclose(kept.queries(some), plain.queries(some), atol=1e-5)
        found, wanted = kept.remembered(some), plain.remembered(some)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found.toarray(), wanted.toarray(), atol=1e-6)
    assert kept.cache.misses == (12 if backbone == "hstu" else 24), "the second and third time nothing is new"
    nothing, _ = kept.make_requests([])
    assert kept.queries(nothing).shape[0] == kept.remembered(nothing).shape[0] == 0


def test_a_changed_item_vector_is_seen(world):
    kept = world.recommender(world.config(), blend=blend_of)
    kept.keep_histories(1 << 20)
    requests, _ = kept.make_requests([RawRequest(None, LATER, history=[RawEvent("i3")])])
    before = kept.queries(requests)
    proxies = sp.csr_array((1, len(kept.vectors)), dtype=np.float32)
    kept.catalogue.put(EncodedItems(kept.items.slice(3, 1), kept.vectors[[4]], proxies))
    after = kept.queries(requests)
    assert np.abs(after - before).max() > 1e-3
    kept.keep_histories(0)
    np.testing.assert_allclose(kept.queries(requests), after, atol=1e-5)


def test_every_part_of_a_history_is_in_its_key_and_the_moment_is_not(world):
    recommender = world.recommender(world.config())

    def key(user="nobody", at=LATER, asked=None, **changed) -> bytes:
        event = {"item_id": "i3", "action": "view", "timestamp": LATER - 5, "context": {"query": "hat"}} | changed
        raw = RawRequest(user, at, asked or {}, history=[RawEvent("i1", timestamp=LATER - 9), RawEvent(**event)])
        return history_keys(recommender.make_requests([raw])[0])[0]

    same = {key(), key(at=LATER + 99), key(asked={"device": "tv"}), key(user="someone else")}
    assert len(same) == 1
    others = [
        key(item_id="i4"), key(action="buy"), key(timestamp=LATER - 4), key(context={"query": "hats"}),
        key(context={"query": "hat", "basket": 1}), key(context={"query": "hat", "device": "tv"}), key(user="u0"),
    ]  # fmt: skip
    assert len({*same, *others}) == 1 + len(others)


def test_what_was_not_asked_for_the_longest_goes_first():
    cache = HistoryCache(3 * (300 + 40))
    made: list[list[int]] = []

    def ask(*numbers: int) -> list[float]:
        keys = [bytes([n]) for n in numbers]

        def make(rows):
            made.append([numbers[row] for row in rows])
            return [(np.full(10, numbers[row], np.float32),) for row in rows]

        return [float(value[0][0]) for value in cache.of(keys, make)]

    assert ask(1, 2, 1) == [1, 2, 1] and len(cache) == 2
    assert ask(3) == [3] and ask(1) == [1] and ask(4) == [4], "2 goes"
    assert ask(1, 3, 4, 2) == [1, 3, 4, 2] and len(cache) == 3 and cache.num_bytes == 3 * 340
    assert made == [[1, 2, 1], [3], [4], [2]]
    assert cache.take_counts() == (4, 6) and cache.take_counts() == (0, 0)
    assert ask(*range(10, 30)) == [*range(10, 30)], "more than there is room for"
    cache.clear()
    assert len(cache) == cache.num_bytes == 0 and ask(29) == [29]
