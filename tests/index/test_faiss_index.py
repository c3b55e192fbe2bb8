"""FAISS indexes against exact numpy ranking: recall, filters of every selectivity, ties, short answers."""

from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pytest
import scipy.sparse as sp

from ctxrec.core.config import IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.index.builder import build_index, choose_kind
from ctxrec.index.exact import ByColumn, exact_search
from ctxrec.index.faiss_index import Index, load_index
from ctxrec.index.ray_fill import add_by_tasks
from ctxrec.index.topk import NO_ITEM

KINDS = ["flat", "hnsw", "ivf", "ivfpq"]


def config(kind: str, **more) -> IndexConfig:
    return IndexConfig(kind=kind, use_gpu="no", **more)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """3,000 unit vectors around 60 centres, as item vectors are: clustered, not uniform."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(60, 32))[rng.integers(60, size=3000)] + 0.6 * rng.normal(size=(3000, 32))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def queries(vectors) -> np.ndarray:
    rng = np.random.default_rng(1)
    made = vectors[rng.integers(len(vectors), size=200)] + 0.3 * rng.normal(size=(200, 32))
    return made.astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors):
    made = build_index(vectors, config(request.param))
    assert made.kind == request.param
    return made


def reference(vectors, query, k, allowed=None, excluded=()):
    """The definition, spelled out: rank all eligible items by (-score, position)."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    eligible = np.setdiff1d(np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed), excluded)
    return eligible[np.lexsort((eligible, -scores[eligible]))][:k].tolist()


def recall(found: np.ndarray, wanted: list[int]) -> float:
    return len(set(found.tolist()) & set(wanted)) / max(len(wanted), 1)


def check_row(vectors, query, ids, scores, *, num, allowed=None, excluded=()):
    """`num` distinct eligible items, their true scores, in order."""
    ids, scores = ids[ids != NO_ITEM], scores[ids != NO_ITEM]
    assert len(ids) == len(set(ids.tolist())) == num
    assert not set(ids.tolist()) & set(np.asarray(excluded).tolist())
    assert allowed is None or allowed[ids].all()
    np.testing.assert_allclose(scores, vectors[ids] @ query, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_recall_without_filter(index, vectors, queries):
    ids, scores = index.search(queries, 10)
    assert ids.shape == scores.shape == (200, 10) and ids.dtype == np.int64 and scores.dtype == np.float32
    for n, query in enumerate(queries):
        check_row(vectors, query, ids[n], scores[n], num=10)
    mean = np.mean([recall(ids[n], reference(vectors, q, 10)) for n, q in enumerate(queries)])
    assert mean == 1.0 if index.kind == "flat" else mean >= 0.99


SHARES = [1.0, 0.5, 0.1, 0.06, 0.03, 0.01, 0.001, 0.0001]


@pytest.mark.parametrize("alike", [False, True], ids=["any items", "like items"])
@pytest.mark.parametrize("share", SHARES)
def test_filters_of_every_selectivity_give_k_results_and_the_right_ones(index, vectors, queries, share, alike):
    check_filter(index, vectors, queries, share, alike)


@pytest.mark.parametrize("alike", [False, True], ids=["any items", "like items"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_filters_of_every_selectivity_where_searches_know_no_selectors(kind, vectors, queries, share, alike):
    """As on a GPU: FAISS's CPU index stands in for its GPU form, and what a filter takes away is fetched and dropped."""
    index = build_index(vectors, config(kind))
    index.__dict__["_gpu_index"] = index._index
    assert index.on_gpu
    check_filter(index, vectors, queries, share, alike)


def check_filter(index, vectors, queries, share, alike):
    """k results where so many are eligible, of recall 0.99; also where those that pass lie together, as the items of a
    category do."""
    rng = np.random.default_rng(2)
    order = np.argsort(vectors @ rng.normal(size=32)) if alike else rng.permutation(len(vectors))
    allowed = np.zeros(len(vectors), bool)
    allowed[order[: max(round(share * len(vectors)), 1)]] = True
    ids, scores = index.search(queries, 10, allowed=allowed)
    wanted = min(10, int(allowed.sum()))
    recalls = []
    for n, query in enumerate(queries):
        check_row(vectors, query, ids[n], scores[n], num=wanted, allowed=allowed)
        recalls.append(recall(ids[n], reference(vectors, query, 10, allowed)))
    assert np.mean(recalls) >= (1.0 if index.kind == "flat" else 0.99)


def test_a_filter_far_from_the_query_still_gives_k_results(index, vectors, queries):
    """The items allowed are those least like the query: graph and lists near the query hold none of them."""
    for query in queries[:5]:
        worst = np.argsort(vectors @ query)[:200]
        allowed = np.zeros(len(vectors), bool)
        allowed[worst] = True
        ids, scores = index.search(query[None], 10, allowed=allowed)
        check_row(vectors, query, ids[0], scores[0], num=10, allowed=allowed)


def test_each_row_has_its_own_mask_and_exclusions(index, vectors, queries):
    rng = np.random.default_rng(3)
    half = rng.random(len(vectors)) < 0.5
    masks = [None, half, rng.random(len(vectors)) < 0.2, half, None]
    excluded = [
        np.argsort(-(vectors @ queries[0]))[:300],  # everything near the query is seen
        np.zeros(0, np.int64),
        np.flatnonzero(half)[:50],
        np.array([5, 5, 5, 9]),  # repeated, as a history with repeats has it
        np.zeros(0, np.int64),
    ]
    ids, scores = index.search(queries[:5], 20, allowed=masks, excluded=excluded)
    for n in range(5):
        check_row(vectors, queries[n], ids[n], scores[n], num=20, allowed=masks[n], excluded=excluded[n])
        if index.kind == "flat":
            assert ids[n].tolist() == reference(vectors, queries[n], 20, masks[n], excluded[n])


def test_k_of_one_and_k_beyond_the_catalogue(index, vectors, queries):
    ids, _ = index.search(queries[:3], 1)
    assert ids.shape == (3, 1)
    ids, scores = index.search(queries[:3], 10_000, excluded=[np.arange(10)] * 3)
    assert ids.shape == (3, 3000)
    for n in range(3):
        check_row(vectors, queries[n], ids[n], scores[n], num=2990, excluded=np.arange(10))
        assert ids[n, -10:].tolist() == [NO_ITEM] * 10 and np.isneginf(scores[n, -10:]).all()


def test_everything_excluded_is_empty(index, vectors, queries):
    ids, scores = index.search(queries[:2], 5, excluded=[np.arange(3000), np.arange(2998)])
    assert ids[0].tolist() == [NO_ITEM] * 5 and np.isneginf(scores[0]).all()
    assert sorted(ids[1, :2].tolist()) == [2998, 2999] and ids[1, 2:].tolist() == [NO_ITEM] * 3
    ids, _ = index.search(queries[:1], 5, allowed=np.zeros(3000, bool))
    assert ids.tolist() == [[NO_ITEM] * 5]


def test_no_queries(index):
    ids, scores = index.search(np.zeros((0, 32), np.float32), 5, allowed=[], excluded=[])
    assert ids.shape == scores.shape == (0, 5)


@pytest.mark.parametrize("allowed_share", [None, 0.5])
def test_flat_breaks_ties_by_position_also_at_the_border(allowed_share):
    """Integer vectors, so equal scores are exactly equal; hundreds of items share each score."""
    rng = np.random.default_rng(4)
    vectors = rng.integers(0, 2, size=(2000, 4)).astype(np.float32)
    queries = rng.integers(0, 3, size=(30, 4)).astype(np.float32)
    allowed = None if allowed_share is None else rng.random(2000) < allowed_share
    excluded = [rng.integers(2000, size=25) for _ in range(30)]
    index = build_index(vectors, config("flat"))
    ids, _ = index.search(queries, 10, allowed=allowed, excluded=excluded)
    exact, _ = exact_search(vectors, queries, 10, allowed=allowed, excluded=excluded)
    for n in range(30):
        wanted = reference(vectors, queries[n], 10, allowed, excluded[n])
        assert ids[n].tolist() == wanted
        assert exact[n].tolist() == wanted


def test_exact_search_splits_large_score_matrices(monkeypatch, vectors, queries):
    whole = exact_search(vectors, queries, 7)
    monkeypatch.setattr("ctxrec.index.exact._SCORES_AT_ONCE", 3 * len(vectors))
    parts = exact_search(vectors, queries, 7)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_filled_by_tasks_are_those_filled_here(kind, vectors, queries, ray_cluster):
    here = build_index(vectors, config(kind))
    by_tasks = build_index(vectors, config(kind), fill=lambda trained, rows: add_by_tasks(trained, rows, 7))
    assert by_tasks.kind == kind and by_tasks.num_items == len(vectors)
    np.testing.assert_array_equal(by_tasks.vectors, vectors)
    for one, other in zip(here.search(queries, 10), by_tasks.search(queries, 10), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_what_is_searched_is_chosen_by_recall_and_saved(kind, vectors, queries, tmp_path, caplog):
    with caplog.at_level("INFO"):
        low, high = (build_index(vectors, config(kind, recall=recall)) for recall in (0.6, 0.995))
    first, last = (int(line.split(" of ")[0]) for line in caplog.messages if "are searched" in line)
    assert first < last
    for index in (low, high):
        index.save(str(tmp_path / "index"))
        loaded = load_index(str(tmp_path / "index"), config(kind))
        np.testing.assert_array_equal(loaded.search(queries, 10)[0], index.search(queries, 10)[0])


def test_recall_is_measured_on_the_queries_that_are_given(vectors, queries):
    """Between near items few lists are enough; a query far from all of them needs many."""
    far = np.random.default_rng(9).normal(size=(50, 32)).astype(np.float32)
    near = build_index(vectors, config("ivf"), queries=vectors[:50])
    wide = build_index(vectors, config("ivf"), queries=far)
    wanted = [reference(vectors, q, 10) for q in far]

    def found(index) -> float:
        return float(np.mean([recall(row, w) for row, w in zip(index.search(far, 10)[0], wanted, strict=True)]))

    assert found(near) < 0.99 <= found(wide)


def test_a_loaded_index_takes_no_memory_of_its_own(tmp_path):
    """100 MB of vectors, in a process of its own."""
    path = str(tmp_path / "index")
    rows = np.random.default_rng(0).normal(size=(200_000, 128)).astype(np.float32)
    build_index(rows, config("flat")).save(path)
    code = (
        "import psutil; from ctxrec.core.config import IndexConfig; from ctxrec.index.faiss_index import load_index; me = psutil.Process();"
        f"before = me.memory_info().rss; index = load_index({path!r}, IndexConfig(use_gpu='no'));"
        "assert index.num_items == 200_000; print(me.memory_info().rss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20e6


def test_save_and_load(index, vectors, queries, tmp_path):
    path = str(tmp_path / "index.faiss")
    index.save(path)
    loaded = load_index(path, config(index.kind))
    assert loaded.kind == index.kind and (loaded.num_items, loaded.dim) == (3000, 32)
    np.testing.assert_array_equal(loaded.vectors, vectors)
    for before, after in zip(index.search(queries, 10), loaded.search(queries, 10), strict=True):
        np.testing.assert_array_equal(before, after)


def test_search_options_are_those_of_the_config_at_load(vectors, queries, tmp_path):
    path = str(tmp_path / "index.faiss")
    build_index(vectors, config("ivf")).save(path)

    def mean_recall(nprobe: int) -> float:
        ids, _ = load_index(path, config("ivf", nprobe=nprobe)).search(queries, 10)
        return float(np.mean([recall(ids[n], reference(vectors, q, 10)) for n, q in enumerate(queries)]))

    assert mean_recall(1) < mean_recall(64) == 1.0


def test_a_file_that_is_no_index_is_refused(tmp_path):
    path = tmp_path / "index.faiss"
    path.write_bytes(b"not an index at all")
    with pytest.raises(UserError, match="no FAISS index"):
        load_index(str(path), config("flat"))
    with pytest.raises(UserError, match="nothing"):
        load_index(str(tmp_path / "missing"), config("flat"))


def test_ivf_on_a_tiny_catalogue_becomes_flat_and_says_so(vectors, caplog):
    with caplog.at_level("INFO"):
        index = build_index(vectors[:50], config("ivf"))
    assert index.kind == "flat" and "50 items get a flat index" in caplog.text
    assert build_index(vectors[:1], config("hnsw")).search(vectors[:1], 3)[0].tolist() == [[0]]


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0, reason="a GPU is there")
def test_asking_for_a_gpu_that_is_not_there_is_a_users_mistake(vectors, queries):
    index = build_index(vectors, IndexConfig(kind="flat", use_gpu="yes"))
    with pytest.raises(UserError, match=r"index\.use_gpu is yes"):
        index.search(queries, 3)
    assert build_index(vectors, IndexConfig(kind="flat", use_gpu="auto")).search(queries, 3)[0].shape == (200, 3)


def test_what_cagra_built_is_searched_by_a_cpu_too(vectors, queries, tmp_path, caplog):
    """The form in which it is saved; its graph is made by FAISS's CPU code here."""
    made = faiss.IndexHNSWCagra(32, 32, faiss.METRIC_INNER_PRODUCT)
    made.add(vectors)
    Index(made, config("cagra", ef_search=256)).save(str(tmp_path / "index"))
    index = load_index(str(tmp_path / "index"), config("cagra", ef_search=256))
    assert index.kind == "cagra" and not index.on_gpu
    np.testing.assert_array_equal(index.vectors, vectors)
    for share in (1.0, 0.5, 0.06):
        check_filter(index, vectors, queries, share, alike=False)
    index.reach(0.99, queries)


@pytest.mark.skipif("CUVS" in faiss.get_compile_options(), reason="FAISS has cuVS here")
def test_cagra_without_a_gpu_becomes_hnsw_and_says_so(vectors, caplog):
    with caplog.at_level("INFO"):
        assert build_index(vectors, config("cagra")).kind == "hnsw"
    assert "needs a GPU and ctxrec[gpu-cuvs]" in caplog.text


@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="FAISS has no GPU support here")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["flat", "ivf", "cagra"])
def test_gpu_answers_are_the_right_ones(kind, share, vectors, queries):
    if faiss.get_num_gpus() == 0 or (kind == "cagra" and "CUVS" not in faiss.get_compile_options()):
        pytest.skip("no GPU, or no cuVS")
    index = build_index(vectors, IndexConfig(kind=kind, use_gpu="yes"))
    assert index.on_gpu and index.kind == kind
    for alike in (False, True):
        check_filter(index, vectors, queries, share, alike)
    rng = np.random.default_rng(5)
    allowed = [None if n % 2 else rng.random(3000) < share for n in range(200)]
    excluded = [rng.integers(3000, size=20) for _ in range(200)]
    ids, scores = index.search(queries, 10, allowed=allowed, excluded=excluded)
    found = []
    for n in range(200):
        wanted = reference(vectors, queries[n], 10, allowed[n], excluded[n])
        check_row(vectors, queries[n], ids[n], scores[n], num=len(wanted), allowed=allowed[n], excluded=excluded[n])
        found.append(recall(ids[n], wanted) if wanted else 1.0)
    assert np.mean(found) >= 0.99


def test_what_is_added_counts_with_masks_and_exclusions():
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    added = sp.random_array((6, 300), density=0.1, format="csr", dtype=np.float32, rng=rng) * 5
    few, many = np.zeros(300, bool), np.ones(300, bool)
    few[rng.choice(300, 20, replace=False)] = True
    many[rng.choice(300, 20, replace=False)] = False
    masks = [None, few, many, few, None, np.zeros(300, bool)]
    excluded = [rng.integers(0, 300, 30) for _ in range(6)]
    ids, scores = exact_search(vectors, queries, 12, allowed=masks, excluded=excluded, added=added)
    whole = queries @ vectors.T + added.toarray()
    for n, mask in enumerate(masks):
        whole[n, excluded[n]] = -np.inf
        if mask is not None:
            whole[n, ~mask] = -np.inf
        wanted = [p for p in np.argsort(-whole[n], kind="stable") if whole[n, p] > -np.inf][:12]
        assert ids[n].tolist() == [*wanted, *[NO_ITEM] * (12 - len(wanted))]
        np.testing.assert_allclose(scores[n, : len(wanted)], whole[n, wanted], atol=1e-5)


def test_auto_takes_flat_for_small_catalogues_and_lists_for_large_ones(vectors, caplog):
    assert build_index(vectors, config("auto")).kind == "flat"
    with caplog.at_level("INFO", logger="ctxrec.index.faiss_index"):
        kinds = [choose_kind(num, config("auto")) for num in (200_000, 200_001, 5_000_001)]
    assert kinds == ["flat", "ivf", "ivfpq"]
    assert all("recall" in text or "exact" in text for text in caplog.messages)


def test_auto_goes_by_a_goal_of_latency_and_says_why(vectors, caplog):
    """Whatever the size: all are ranked where this machine does it in time."""
    with caplog.at_level("INFO"):
        assert build_index(vectors, config("auto", latency_ms=1000.0)).kind == "flat"
        assert build_index(vectors, config("auto", latency_ms=1e-6)).kind == "ivf"
    assert "where 1e-06 are the goal" in caplog.text and "index.latency_ms is 1e-06" in caplog.text
    assert choose_kind(3_000_000, config("auto", latency_ms=50.0), exact_ms=49.0) == "flat"
    assert choose_kind(100_000, config("auto", latency_ms=1.0), exact_ms=2.0) == "ivf"
    assert choose_kind(6_000_000, config("auto", latency_ms=1.0), exact_ms=99.0) == "ivfpq"


def test_auto_searches_as_many_lists_as_the_recall_needs(vectors, queries, monkeypatch, tmp_path):
    monkeypatch.setattr("ctxrec.index.builder._AUTO_FLAT", 1000)
    made = build_index(vectors, config("auto", recall=1.0))
    assert made.kind == "ivf"
    made.save(str(tmp_path / "index"))
    loaded = load_index(str(tmp_path / "index"), config("auto"))
    ids, _ = loaded.search(vectors[:40], 10)
    wanted, _ = exact_search(vectors, vectors[:40], 10)
    assert np.mean([recall(ids[n], wanted[n].tolist()) for n in range(40)]) > 0.98


def test_vectors_by_column_are_the_same_vectors_and_grow():
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(700, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    columns = ByColumn(vectors[:500])
    few = rng.random(500) < 0.1
    for allowed in (None, few, ~few):
        plain = exact_search(vectors[:500], queries, 9, allowed=allowed)
        found = exact_search(columns.vectors, queries, 9, allowed=allowed)
        np.testing.assert_array_equal(found[0], plain[0])
        np.testing.assert_allclose(found[1], plain[1], atol=1e-5)
    vectors[3] += 1
    columns.put(vectors[:510], np.array([3, *range(500, 510)]))
    columns.put(vectors, np.arange(510, 700))
    np.testing.assert_array_equal(columns.vectors, vectors)
