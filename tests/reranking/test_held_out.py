"""What the second stage learns from: events that no part of its retriever has seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.core import schema
from ctxrec.data.events import histories_from_table
from ctxrec.data.log_statistics import TrainingEvents
from ctxrec.data.prepared import PreparedData
from ctxrec.reranking import held_out
from ctxrec.reranking.held_out import held_from, held_out_requests, held_out_retriever
from ctxrec.reranking.rerank_candidates import find_candidates
from ctxrec.reranking.rerank_driver import with_queries
from ctxrec.reranking.rerank_params import RerankTrainingParams


@pytest.fixture(scope="module")
def data(tiny_data) -> PreparedData:
    return PreparedData.open(tiny_data)


def test_the_latest_training_events_of_each_user_are_held_out():
    offsets = np.array([0, 12, 13, 13, 42])
    split = np.array([0] * 10 + [1, 2] + [0] + [0] * 28 + [2], np.int8)
    spans = held_from(offsets, split, params=RerankTrainingParams(held_share=0.2, held_most=4))
    assert spans.tolist() == [[8, 10], [13, 13], [13, 13], [37, 41]], (
        "two of ten, none of one, none of none, four at most"
    )


def test_requests_are_training_events_with_all_that_was_before(data):
    requests = held_out_requests(data)
    users = {}
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features)
        for n, user in enumerate(histories.users.ids):
            row = histories.events.row(n)
            users[user] = histories.events.items[row], histories.events.times[row], histories.split[row]
    assert len(requests) > 20
    for n in range(len(requests)):
        items, times, split = users[requests.users.ids[n]]
        (target,), before = requests.targets(n), int(requests.history.lengths[n])
        assert target == items[before] and requests.times[n] == times[before] and split[before] == schema.TRAIN
        assert requests.seen()[n].tolist() == items[:before].tolist()
        assert data.spec.split.repeats or target not in items[:before]


def test_fewer_are_taken_of_a_large_log(data):
    assert len(held_out_requests(data, params=RerankTrainingParams(num_requests=7))) <= 7


def test_its_retriever_has_seen_none_of_them(data, monkeypatch):
    seen: list[TrainingEvents] = []
    fit = held_out.fit_memory

    def watched(parts, *rest, **options):
        seen.extend(parts)
        return fit(seen, *rest, **options)

    monkeypatch.setattr(held_out, "fit_memory", watched)
    requests = held_out_requests(data)
    scorer = held_out_retriever(data, requests, None, None, seed=0)
    trained = sum(
        int((histories_from_table(data.read_bucket(b), data.features).split == schema.TRAIN).sum())
        for b in range(len(data.bucket_paths))
    )
    assert sum(len(part.items) for part in seen) <= trained - len(requests)
    examples = find_candidates(scorer, requests, 15, repeats=data.spec.split.repeats)
    for n, (items, scores) in enumerate(examples.found):
        assert (np.diff(scores) <= 0).all() and len(items) == 15
        assert examples.hits[n].tolist() == np.isin(items, requests.targets(n)).tolist()


def test_some_requests_ask_with_words_of_their_target_in_their_order(data):
    requests = held_out_requests(data)
    texts = [f"a{n} b{n} c{n} d{n}" for n in range(data.num_items)]
    many = dataclasses.replace(held_out.RERANK_TRAINING, query_share=0.5)
    asked = with_queries(requests, texts, seed=0, params=many).query
    some = [n for n, query in enumerate(asked) if query is not None]
    assert 0.2 < len(some) / len(requests) < 0.8
    for n in some:
        words, of = asked[n].split(), texts[int(requests.targets(n)[0])].split()
        assert 1 <= len(words) <= 3 and sorted(words, key=of.index) == words
    assert with_queries(requests, [""] * data.num_items, seed=0, params=many).query.tolist() == [None] * len(requests)
