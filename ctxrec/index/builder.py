"""From item vectors to an index: which kind, by size, hardware and a goal of latency, and how many lists.

Legend: I items, D width of a vector.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import faiss
import numpy as np

from ctxrec.core.config import IndexConfig
from ctxrec.index.exact import ByColumn, exact_search
from ctxrec.index.faiss_index import Index, num_gpus

logger = logging.getLogger(__name__)

_POINTS_PER_LIST = 39  # FAISS's minimum of training points for each list of an IVF index
_PQ_LEAST, _PQ_NUMBERS = 2_000, 4  # items that a code needs at least for its training; numbers of a vector in a code
_AUTO_FLAT, _GPU_FACTOR, _AUTO_IVF = 200_000, 10, 5_000_000  # items up to which `auto` takes flat (with a GPU) and ivf
# Links of a graph's node and candidates at its building: FAISS's own examples, and enough for a recall of .99 here.
_HNSW_LINKS, _EF_CONSTRUCTION = 32, 200
_TIMED_ROWS, _TIMED_QUERIES, _TIMED_K = 200_000, 20, 10  # by which the time of a search is measured

Fill = Callable[[faiss.Index, np.ndarray], None]  # puts vectors into the lists of a trained index


def add_here(trained: faiss.Index, vectors: np.ndarray) -> None:
    """Add vectors [I, D] to a trained index in this process."""
    trained.add(vectors)


def build_index(
    vectors: np.ndarray, config: IndexConfig, *, queries: np.ndarray | None = None, fill: Fill = add_here
) -> Index:
    """Build an index of item vectors.

    Args:
        vectors: float32 [I, D], row = item position; at least one row.
        config: kind and its options. A catalogue that is too small for the kind gets a flat index.
        queries: float32 [N, D] of some requests, by which recall is measured; None: made up.
        fill: how lists are filled; `ctxrec.index.ray_fill.add_on_nodes` for a cluster.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    num_items, dim = vectors.shape
    assert num_items > 0, "an index needs at least one item"
    timed = config.kind == "auto" and config.latency_ms > 0
    kind = choose_kind(num_items, config, exact_ms=exact_ms(vectors) if timed else None)
    if kind == "cagra":
        made = _on_gpu(vectors)
    elif kind == "hnsw":
        made = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = _EF_CONSTRUCTION
        made.add(vectors)
    elif kind == "ivf" and (num_lists := _num_lists(num_items)) >= 2:
        made = faiss.index_factory(dim, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        made.train(vectors)
        fill(made, vectors)
    elif kind == "ivfpq" and num_items >= _PQ_LEAST and (num_lists := _num_lists(num_items)) >= 2:
        codes = -(-dim // _PQ_NUMBERS)
        names = f"Pad{codes * _PQ_NUMBERS},IVF{num_lists},PQ{codes}np,RFlat"  # np: no polysemous codes, which take minutes and are not used
        made = faiss.index_factory(dim, names, faiss.METRIC_INNER_PRODUCT)
        made.train(vectors)
        fill(made.base_index, vectors)
        made.refine_index.add(vectors)
        made.ntotal = num_items
    else:
        if kind in ("ivf", "ivfpq"):
            logger.info("index.kind = %s is for large catalogues; %d items get a flat index", kind, num_items)
        made = faiss.IndexFlatIP(dim)
        made.add(vectors)
    index = Index(made, config)
    index.reach(config.recall, queries)
    if timed and index.kind != "flat":
        _compare(index, vectors, config.latency_ms)
    return index


def choose_kind(num_items: int, config: IndexConfig, *, exact_ms: float | None = None) -> str:
    """The kind of index that is built; for `auto` by size and hardware, with the reason in the log.

    `exact_ms`: what ranking all items for one query takes here, where there is a goal for it.
    """
    gpus = num_gpus(config)
    has_cagra = gpus > 0 and "CUVS" in faiss.get_compile_options()
    if config.kind == "cagra" and not has_cagra:
        logger.info("index.kind = cagra needs a GPU and ctxrec[gpu-cuvs]; a graph is built on the CPU instead (hnsw)")
        return "hnsw"
    if config.kind != "auto":
        return config.kind
    limit = _AUTO_FLAT * (_GPU_FACTOR if gpus else 1)
    is_small = num_items <= limit if exact_ms is None else exact_ms <= config.latency_ms
    approximate = "ivfpq" if num_items > _AUTO_IVF else "cagra" if has_cagra else "ivf"
    kind = "flat" if is_small else approximate
    slow = f"ranking all of them is slow beyond {limit:,}"
    if exact_ms is not None:
        slow = f"ranking all of them takes {exact_ms:.1f} ms where {config.latency_ms:g} are the goal"
    why = {
        "flat": "ranking all of them is exact, fast enough, and the cheapest in batches",
        "ivf": f"{slow}; lists are searched until recall is {config.recall}",
        "cagra": f"{slow}; the GPU searches a graph until recall is {config.recall}",
        "ivfpq": f"{slow}, and beyond {_AUTO_IVF:,} whole vectors are too much to read; compressed ones are, the best exactly",
    }[kind]
    logger.info("index.kind = auto takes %s for %d items and %d GPUs: %s", kind, num_items, gpus, why)
    return kind


def exact_ms(vectors: np.ndarray) -> float:
    """Milliseconds in which all vectors are ranked for one query on this machine's CPU, as replicas do it."""
    some = vectors[:_TIMED_ROWS]
    columns = ByColumn(some).vectors
    took = _median_ms(lambda query: exact_search(columns, query, _TIMED_K), some)
    return took * len(vectors) / len(some)


def _compare(index: Index, vectors: np.ndarray, goal_ms: float) -> None:
    took = _median_ms(lambda query: index.search(query, _TIMED_K), vectors)
    level = logging.INFO if took <= goal_ms else logging.WARNING
    logger.log(level, "a search of this %s takes %.2f ms; index.latency_ms is %g", index.kind, took, goal_ms)


def _median_ms(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    took = []
    for n in range(min(_TIMED_QUERIES, len(queries))):
        began = time.perf_counter()
        search(queries[n : n + 1])
        took.append(1000 * (time.perf_counter() - began))
    return float(np.median(took))


def _on_gpu(vectors: np.ndarray) -> faiss.Index:
    """A graph made by CAGRA, in the form in which it is saved: CPUs search it too, and a GPU takes it back as it is."""
    wanted = faiss.GpuIndexCagraConfig()
    wanted.graph_degree = 2 * _HNSW_LINKS  # as many as the lowest level of a hnsw has
    wanted.intermediate_graph_degree = 2 * wanted.graph_degree
    graph = faiss.GpuIndexCagra(faiss.StandardGpuResources(), vectors.shape[1], faiss.METRIC_INNER_PRODUCT, wanted)
    graph.train(vectors)
    return faiss.index_gpu_to_cpu(graph)


def _num_lists(num_items: int) -> int:
    return min(round(4 * math.sqrt(num_items)), num_items // _POINTS_PER_LIST)
