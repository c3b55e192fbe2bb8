"""Items that come after training: rows to tables, vectors equal to those of training, and exact search with them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from ctxrec.bundle.registry import find_bundle
from ctxrec.core import schema
from ctxrec.core.config import IndexConfig
from ctxrec.data.posted_rows import posted_table
from ctxrec.index.builder import build_index
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.live_catalogue import EncodedItems
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.retriever import Retriever, load_retriever

NOW = 1_700_000_000.0


@pytest.fixture
def retriever(tiny_run) -> Retriever:
    return load_retriever(tiny_run)


@pytest.fixture
def encoder(tiny_run, retriever) -> ItemEncoder:
    return ItemEncoder(find_bundle(tiny_run), retriever.recommender)


def shop_rows(tiny_spec) -> list[dict]:
    return pq.read_table(tiny_spec.replace("dataset.toml", "items.parquet")).to_pylist()


def test_rows_of_the_item_file_give_the_vectors_of_the_training(tiny_spec, retriever, encoder):
    """The tuned encoder, the towers, IDs, categories, numbers and the own scores of both heads, all of it."""
    rows = shop_rows(tiny_spec)
    made = encoder.encode(posted_table(rows, retriever.recommender.spec))
    places = [retriever.recommender.item_position[row["item_id"]] for row in rows]
    np.testing.assert_allclose(made.vectors, retriever.recommender.vectors[places], atol=2e-4)
    assert made.proxy_weights.nnz == 0


def test_a_new_item_has_its_content_and_what_its_like_have(tiny_spec, retriever, encoder):
    recommender = retriever.recommender
    rows = shop_rows(tiny_spec)
    new = [{**rows[5], "item_id": "new"}, {"item_id": "bare"}]
    made = encoder.encode(posted_table(new, recommender.spec))
    old = recommender.vectors[recommender.item_position["i5"]]
    text = slice(sum(recommender.widths), sum(recommender.widths) + recommender.blend.text_IC.shape[1])
    np.testing.assert_allclose(made.vectors[0, text], old[text], atol=2e-4)
    assert not made.vectors[1, text].any()
    content = slice(recommender.widths[0], sum(recommender.widths) - 1)
    np.testing.assert_allclose(made.vectors[0, content], old[content], atol=2e-4)
    assert not np.allclose(made.vectors[0, : recommender.widths[0]], old[: recommender.widths[0]], atol=1e-2), "no ID"
    speaks = made.proxy_weights[[0]]
    assert recommender.item_position["i5"] in speaks.indices and np.isclose(speaks.sum(), 1)
    popularity = speaks @ recommender.vectors[:, -3:-1]
    np.testing.assert_allclose(made.vectors[0, -3:-1], popularity[0], atol=1e-5)
    assert made.proxy_weights[[1]].nnz == 0 and not made.vectors[1, -3:-1].any()
    assert made.vectors[:, -1].tolist() == [1, 1] and old[-1] == 0, "they are new"


RAW = [
    RawRequest(user_id="u1", timestamp=NOW, context={"device": "tv"}),
    RawRequest(history=[RawEvent("i3", action="buy"), RawEvent("n2"), RawEvent("i7")], timestamp=NOW),
    RawRequest(history=[RawEvent("n0")], timestamp=NOW),
    RawRequest(user_id="nobody", timestamp=NOW),
]


def changed_shop(retriever, tiny_spec, encoder) -> None:
    """Four new items, two changed ones, three taken out, in three steps."""
    spec, rows = retriever.recommender.spec, shop_rows(tiny_spec)
    new = [{**rows[n + 4], "item_id": f"n{n}", "price": 100.0 + n} for n in range(4)]
    retriever.update(encoder.encode(posted_table(new[:3], spec)))
    retriever.update(None, removed=["i9", "n1", "no such item"])
    changed = [{**rows[8], "category": ["sale"], "price": 0.5}, {**rows[10], "title": "blue ring a"}]
    retriever.update(encoder.encode(posted_table([*changed, new[3], {**new[3], "price": 7.5}], spec)), removed=["i0"])


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw", "ivf"])
def test_search_is_exact_over_a_catalogue_that_has_changed(tiny_spec, retriever, encoder, kind):
    recommender = retriever.recommender
    if kind == "exact":
        retriever = Retriever(recommender, None)
    else:
        retriever = Retriever(recommender, build_index(recommender.vectors, IndexConfig(kind=kind, use_gpu="no")))
    changed_shop(retriever, tiny_spec, encoder)
    gone = {recommender.item_position[i] for i in ("i9", "n1", "i0")}
    assert [retriever.has_item(i) for i in ("i9", "n1", "n0", "i8", "i1", "?")] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    requests, fallback = recommender.make_requests(RAW)
    assert fallback.tolist() == [False, False, False, True]
    scores = recommender.scores(requests)
    assert scores.shape == (4, 44)
    filters = [None, retriever.compile_filter({"price": ColumnRule(min=5)}), None, None]
    exclude = [np.array([recommender.item_position["n0"], 3]), *[np.zeros(0, np.int64)] * 3]
    for k in (1, 7, 100):
        found = retriever.top_k(requests, k, allowed=filters, exclude=exclude)
        for n, (positions, row_scores) in enumerate(found):
            out = gone | set(exclude[n].tolist()) | set(requests.history.items[requests.history.row(n)].tolist())
            wanted = [p for p in range(44) if p not in out and (filters[n] is None or filters[n][p])]
            wanted = sorted(wanted, key=lambda p: (-scores[n][p], p))[:k]
            np.testing.assert_allclose(row_scores, scores[n][wanted], rtol=1e-5, atol=1e-4)
            assert sorted(positions.tolist()) == sorted(wanted) or (kind == "exact" and k < 100)
    place = recommender.item_position["n0"]
    ends = np.cumsum(recommender.widths)
    heads = [recommender.item_vectors[:, e - w : e - 1] for e, w in zip(ends, recommender.widths, strict=True)]
    cosines = sum(head @ head[place] for head in heads) / len(heads)
    similar, likeness = retriever.similar(place, 100)
    assert sorted(similar.tolist()) == [p for p in range(44) if p not in gone | {place}]
    np.testing.assert_allclose(likeness, cosines[similar], rtol=1e-5, atol=1e-4)
    assert (np.diff(likeness) <= 0).all()


def test_filters_know_what_changed(tiny_spec, retriever, encoder):
    before = retriever.compile_filter({"category": ["group0"]})
    changed_shop(retriever, tiny_spec, encoder)

    def passing(**rules) -> set[str]:
        return set(retriever.item_ids(np.flatnonzero(retriever.compile_filter(rules))))

    assert len(before) == 40
    assert passing(category=["sale"]) == {"i8"}
    assert "i8" not in passing(category=["group0"]) and "n0" in passing(category=["group0"])
    assert passing(price=ColumnRule(min=100)) == {"n0", "n1", "n2"}
    assert passing(price=ColumnRule(min=7.5, max=7.5)) == {"n3"}
    assert passing(price=ColumnRule(max=0.5)) == {"i8"}
    assert "i8" in passing(category=ColumnRule(none=["group0"])) and "n0" not in passing(
        category=ColumnRule(none=["group0"])
    )
    mask = retriever.compile_filter(None, allow=["n0", "i1"])
    assert set(retriever.item_ids(np.flatnonzero(mask))) == {"n0", "i1"}


def test_many_changes_one_after_the_other(retriever):
    """Beyond the room of the vectors, and beyond what a flat index fetches and drops, against plain ranking."""
    recommender = retriever.recommender
    rng = np.random.default_rng(0)
    width, size = recommender.vectors.shape[1], len(recommender.item_ids)
    for step in range(4):
        ids = [f"x{step}-{n}" for n in range(700)] + [f"i{n}" for n in range(0, 40, 3)]
        columns = {schema.ITEM_ID: pa.array(ids), schema.ITEM_TITLE: pa.nulls(len(ids), pa.string()), "cat_category": pa.array([["x"]] * len(ids), pa.list_(pa.string())),
                   "num_price": pa.array([1.0] * len(ids), pa.float32())}  # fmt: skip
        vectors = rng.normal(size=(len(ids), width)).astype(np.float32)
        nobody = sp.csr_array((len(ids), size), dtype=np.float32)
        retriever.update(EncodedItems(pa.table(columns), vectors, nobody), removed=[f"x{step}-{n}" for n in range(50)])
        retriever.update(None, removed=["i1"])
    assert len(recommender.item_ids) == 40 + 2800 and retriever.num_live_items == 2600 + 14
    requests, _ = recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW)])
    scores = recommender.scores(requests)[0]
    scores[
        [recommender.item_position[i] for i in ["i1", *(f"x{s}-{n}" for s in range(4) for n in range(50))]]
    ] = -np.inf
    scores[requests.history.items] = -np.inf
    positions, found = retriever.top_k(requests, 50)[0]
    np.testing.assert_allclose(found, np.sort(scores)[::-1][:50], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores[positions], found, rtol=1e-5, atol=1e-4)
