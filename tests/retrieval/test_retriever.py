"""Retrieval over a trained tiny run: seen items, exclusions, filters, similar items, damaged bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.config import IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.index.builder import build_index
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.retriever import Retriever, load_retriever

RAW = [
    RawRequest(user_id="u1", timestamp=1_700_000_000.0, context={"device": "tv"}),
    RawRequest(user_id="u2", timestamp=1_700_000_000.0, context={"device": "phone", "query": "red shoe"}),
    RawRequest(history=[RawEvent(item_id="i3", action="buy"), RawEvent(item_id="i7")], timestamp=1_700_000_000.0),
    RawRequest(user_id="nobody", timestamp=1_700_000_000.0),
]


@pytest.fixture(scope="module")
def retriever(tiny_run) -> Retriever:
    return load_retriever(tiny_run)


@pytest.fixture(scope="module")
def requests(retriever):
    made, fallback = retriever.recommender.make_requests(RAW)
    assert fallback.tolist() == [False, False, False, True]
    return made


def expected(retriever, requests, n, k, *, allowed=None, exclude=()):
    scores = retriever.recommender.scores(requests)[n]
    seen = set(requests.history.items[requests.history.row(n)].tolist()) | set(exclude)
    eligible = [p for p in range(len(scores)) if p not in seen and (allowed is None or allowed[p])]
    return sorted(eligible, key=lambda p: (-scores[p], p))[:k], scores


@pytest.mark.parametrize("kind", ["bundle", "exact", "flat", "hnsw", "ivf"])
def test_top_k_ranks_all_eligible_items(retriever, requests, kind):
    recommender = retriever.recommender
    if kind != "bundle":
        config = IndexConfig(kind=kind, use_gpu="no") if kind != "exact" else None
        index = None if config is None else build_index(recommender.vectors, config)
        retriever = Retriever(recommender, index)
    for n, (positions, scores) in enumerate(retriever.top_k(requests, 10)):
        wanted, all_scores = expected(retriever, requests, n, 10)
        assert positions.tolist() == wanted
        np.testing.assert_allclose(scores, all_scores[wanted], rtol=1e-5, atol=1e-5)
        assert scores.dtype == np.float32 and (np.diff(scores) <= 0).all()


def test_exclusions_and_filters_of_each_request(retriever, requests):
    exclude = [retriever.positions(["i0", "no such item", "i4"]), *[np.zeros(0, np.int64)] * 3]
    allowed = [None, retriever.compile_filter({"category": ["group2"]}), None, None]
    found = retriever.top_k(requests, 8, exclude=exclude, allowed=allowed)
    for n, (positions, _) in enumerate(found):
        wanted, _ = expected(retriever, requests, n, 8, allowed=allowed[n], exclude=exclude[n].tolist())
        assert positions.tolist() == wanted
    assert all(int(i[1:]) % 4 == 2 for i in retriever.item_ids(found[1][0]))


def test_k_beyond_the_catalogue_gives_every_eligible_item(retriever, requests):
    num_items = len(retriever.recommender.item_ids)
    for n, (positions, _) in enumerate(retriever.top_k(requests, 10 * num_items)):
        seen = set(requests.history.items[requests.history.row(n)].tolist())
        assert sorted(positions.tolist()) == sorted(set(range(num_items)) - seen)


def test_repeats_lets_seen_items_through(retriever, requests, monkeypatch):
    import dataclasses

    spec = retriever.recommender.spec
    repeats = dataclasses.replace(spec, split=dataclasses.replace(spec.split, repeats=True))
    monkeypatch.setattr(retriever.recommender, "spec", repeats)
    positions, _ = retriever.top_k(requests, 1000)[0]
    assert len(positions) == len(retriever.recommender.item_ids)


def test_filters(retriever):
    ids = retriever.recommender.item_ids

    def allowed(wanted):
        return {ids[p] for p in np.flatnonzero(retriever.compile_filter(wanted))}

    assert retriever.compile_filter({}) is None and retriever.compile_filter(None) is None
    assert allowed({"category": ["group0"]}) == {i for i in ids if int(i[1:]) % 4 == 0}
    assert allowed({"category": ["group0", "group1"]}) == {i for i in ids if int(i[1:]) % 4 < 2}
    assert allowed({"category": ["all"]}) == set(ids)  # the second of an item's values counts as the first
    assert allowed({"category": ["no such value"]}) == allowed({"category": []}) == set()
    with pytest.raises(UserError, match=r"unknown column 'colour'.*valid columns are category"):
        retriever.compile_filter({"colour": ["red"]})


def test_similar_items_leave_the_item_itself_out(retriever):
    vectors = retriever.recommender.item_vectors  # 16 numbers and a bias, of both heads
    heads = [vectors[:, :16], vectors[:, 17:-1]]
    cosines = sum(head @ head[5] for head in heads) / 2
    positions, scores = retriever.similar(5, 7)
    assert positions.tolist() == [p for p in np.argsort(-cosines, kind="stable").tolist() if p != 5][:7]
    np.testing.assert_allclose(scores, cosines[positions], rtol=1e-5, atol=1e-5)


def test_no_requests(retriever):
    made, _ = retriever.recommender.make_requests([])
    assert retriever.top_k(made, 5) == []


def test_an_index_of_other_vectors_is_refused(retriever):
    other = build_index(retriever.recommender.vectors[:-1], IndexConfig())
    with pytest.raises(UserError, match=r"expected 40 of width"):
        Retriever(retriever.recommender, other)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"found nothing at .*no-run"):
        find_bundle(str(tmp_path / "no-run"))
    with pytest.raises(UserError, match=r"a folder without bundle/"):
        find_bundle(str(tmp_path))


def test_a_run_and_its_bundle_are_both_accepted(tiny_run):
    assert find_bundle(tiny_run) == find_bundle(tiny_run + "/bundle")


def test_one_flipped_byte_in_any_file_of_a_bundle_is_refused(tiny_run, tmp_path):
    bundle = Path(find_bundle(tiny_run))
    for file in sorted(p for p in bundle.rglob("*") if p.is_file()):
        copy = tmp_path / "bundle"
        shutil.copytree(bundle, copy)
        damaged = copy / file.relative_to(bundle)
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(bytes(data))
        with pytest.raises(UserError):
            load_retriever(str(copy))
        shutil.rmtree(copy)
