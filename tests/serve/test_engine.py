"""The parts of a replica without HTTP and without Ray Serve."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tolerance import assert_same_answers

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.errors import UserError
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.retriever import Retriever, load_retriever
from serve.api import RecommendRequest
from serve.engine import Answer, Engine
from serve.item_sync import ItemSync
from serve.micro_batching import MicroBatcher

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def retriever(tiny_run):
    return load_retriever(tiny_run)


def test_what_arrives_during_a_batch_makes_the_next_one():
    batches, go = [], threading.Event()

    def compute(items: list[int]) -> list[int]:
        batches.append(items)
        assert go.wait(30)
        if 7 in items:
            raise KeyError("seven")
        return [-item for item in items]

    async def ask_all() -> list:
        with ThreadPoolExecutor(1) as thread:
            batcher = MicroBatcher(compute, thread, max_size=4)
            asked = [asyncio.create_task(batcher.submit(0))]
            while not batches:  # the first batch is on its way, alone
                await asyncio.sleep(0.001)
            asked += [asyncio.create_task(batcher.submit(n)) for n in range(1, 10)]
            await asyncio.sleep(0)
            asked[3].cancel()  # a client that goes while it waits
            go.set()
            return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(ask_all())
    assert batches == [[0], [1, 2, 4, 5], [6, 7, 8, 9]]
    assert isinstance(results.pop(3), asyncio.CancelledError)
    assert results[:5] == [0, -1, -2, -4, -5]
    assert all(isinstance(r, KeyError) for r in results[5:])


def test_a_bad_request_of_a_batch_gets_its_own_error(retriever):
    engine = Engine(retriever)
    good = RecommendRequest.model_validate({"user_id": "u1", "k": 2})
    bad = RecommendRequest.model_validate({"user_id": "u1", "context": {"weather": "rain"}})
    replies = engine.recommend([[good, bad], [good]])
    (first, error), (last,) = (reply.answers for reply in replies)
    assert {"history", "filter", "tower", "memory", "search"} <= replies[0].seconds.keys()
    assert isinstance(error, UserError) and "weather" in str(error)
    assert isinstance(first, Answer) and len(first.item_ids) == 2
    assert_same_answers([first], [last])


def test_an_event_in_the_very_second_of_the_request_is_known(retriever, tmp_path):
    """A client of whole seconds posts an event and asks for the next list within one second."""
    store = open_store(str(tmp_path / "store"))
    engine = Engine(retriever, store)
    call = [RecommendRequest.model_validate({"user_id": "new here", "context": {"timestamp": NOW}})]
    (before,) = engine.recommend([call])[0].answers
    store.append([LoggedEvent("new here", before.item_ids[0], NOW * 1_000_000)])
    (after,) = engine.recommend([call])[0].answers
    assert before.fallback and not after.fallback
    store.close()


def test_without_its_store_the_service_answers_from_the_bundle_and_says_so(retriever, redis_server):
    server = redis_server()
    store = open_store(server.url)
    store.append([LoggedEvent("somebody", "i3", NOW * 1_000_000), LoggedEvent("u1", "i3", NOW * 1_000_000)])
    engine = Engine(retriever, store)
    bodies = [{"user_id": "somebody"}, {"user_id": "u1"}, {"history": [{"item_id": "i3"}]}]
    call = [RecommendRequest.model_validate(body) for body in bodies]
    whole = engine.recommend([call])[0].answers
    assert [a.degraded for a in whole] == [None] * 3 and [a.fallback for a in whole] == [False] * 3
    server.kill()
    for _ in range(2):  # the second without asking the store again
        lacking = engine.recommend([call])[0].answers
        assert [a.degraded for a in lacking] == ["history", "history", None]
        assert [a.fallback for a in lacking] == [True, False, False]
    assert Engine(retriever).recommend([call])[0].answers[1].item_ids == lacking[1].item_ids
    server.start()
    deadline = time.monotonic() + 60
    while (again := engine.recommend([call])[0].answers)[0].degraded and time.monotonic() < deadline:
        time.sleep(0.1)  # the engine asks the store again after a pause of a second
    assert [a.degraded for a in again] == [None] * 3
    assert [a.item_ids for a in again] == [a.item_ids for a in whole]


def test_a_trained_item_that_was_taken_out_stays_out_until_it_is_posted_again(tiny_run, tmp_path):
    """In other replicas, after a restart and in another version of the model."""
    store = open_store(str(tmp_path / "store"))

    def replica() -> tuple[Retriever, ItemSync]:
        made = load_retriever(tiny_run)
        return made, ItemSync(made, ItemEncoder(find_bundle(tiny_run), made.recommender), store)

    (first, sync), trained = replica(), "i3"
    assert first.has_item(trained) and sync.remove(trained, lambda change: change())
    later, sync_later = replica()
    assert later.has_item(trained), "the bundle has it"
    sync_later.catch_up()
    for retriever in (first, later):
        assert not retriever.has_item(trained)
        body = RecommendRequest.model_validate({"user_id": "u1", "k": 40})
        (answer,) = Engine(retriever).recommend([[body]])[0].answers
        assert answer.item_ids and trained not in answer.item_ids
    assert sync_later.put([{"item_id": trained, "title": "red hat"}], lambda change: change()) == 1
    assert later.has_item(trained)
    store.close()


def test_items_reach_other_replicas_and_later_ones_through_the_store(tiny_run, redis_server):
    store = open_store(redis_server().url)

    def replica() -> tuple[Retriever, ItemSync]:
        made = load_retriever(tiny_run)
        return made, ItemSync(made, ItemEncoder(find_bundle(tiny_run), made.recommender), store)

    def now(change) -> None:
        change()

    (a, sync_a), (b, sync_b) = replica(), replica()
    assert sync_a.put([{"item_id": "new", "title": "red hat"}, {"item_id": "other"}], now) == 2
    assert a.has_item("new") and not b.has_item("new")
    sync_b.catch_up(now)
    place = b.recommender.item_position["new"]
    np.testing.assert_array_equal(b.recommender.vectors[place], a.recommender.vectors[place])
    assert sync_b.remove("other", now) and not sync_b.remove("other", now) and not sync_b.remove("?", now)
    store.change_rows("items", {"odd": {"title": "hat", "column of another version": 1}})
    later, sync_later = replica()
    sync_later.catch_up()
    sync_a.catch_up(now)
    for each in (a, later):
        assert [each.has_item(i) for i in ("new", "other", "odd")] == [True, False, True]
