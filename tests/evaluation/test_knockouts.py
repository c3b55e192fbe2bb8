"""Requests with a part of other requests: what the model loses when that part is not its own."""

from __future__ import annotations

import numpy as np

from ctxrec.evaluation.knockouts import PREFIX, USER, moved_parts
from ctxrec.memory.request_words import CONTEXT_TEXT
from ctxrec.retrieval.raw_request import RawRequest


def test_attributes_and_texts_move_and_all_else_stays(make_world):
    world = make_world(lengths=(3,) * 12)
    recommender = world.recommender(world.config())
    raw = [
        RawRequest(user_id=f"u{n}", timestamp=1.7e9 + n, context={"query": f"red {n}", "basket": float(n)})
        for n in range(12)
    ]
    requests, _ = recommender.make_requests(raw)
    moved = moved_parts(requests, seed=0)
    assert set(moved) == {PREFIX + USER, PREFIX + CONTEXT_TEXT}
    texts, users = moved[PREFIX + CONTEXT_TEXT], moved[PREFIX + USER]
    own, others = requests.context.text["query"], texts.context.text["query"]
    assert sorted(others) == sorted(own) and (others != own).sum() >= 8
    np.testing.assert_array_equal(texts.context.num["basket"], requests.context.num["basket"])
    assert texts.users is requests.users and texts.times is requests.times
    np.testing.assert_array_equal(users.context.text["query"], own)
    np.testing.assert_array_equal(users.users.ids, requests.users.ids)
    assert (users.users.cat["gender"] != requests.users.cat["gender"]).any()


def test_where_there_is_neither_nothing_is_moved(make_world):
    world = make_world(rich=False)
    requests, _ = world.recommender(world.config()).make_requests([RawRequest(user_id="u1")] * 3)
    assert moved_parts(requests, seed=0) == {}
