"""From item vectors to an index: which kind, and how many lists.

Legend: I items, D width of a vector.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import faiss
import numpy as np

from ctxrec.config import IndexConfig
from ctxrec.errors import UserError
from ctxrec.index import Index

logger = logging.getLogger(__name__)

_POINTS_PER_LIST = 39  # FAISS's minimum of training points for each list of an IVF index
_PQ_LEAST, _PQ_NUMBERS = 2_000, 4  # items that a code needs at least for its training; numbers of a vector in a code
_AUTO_FLAT, _GPU_FACTOR, _AUTO_IVF = 200_000, 10, 5_000_000  # items up to which `auto` takes flat (with a GPU) and ivf

Fill = Callable[[faiss.Index, np.ndarray], None]  # puts vectors into the lists of a trained index


def add_here(trained: faiss.Index, vectors: np.ndarray) -> None:
    trained.add(vectors)


def build_index(
    vectors: np.ndarray, config: IndexConfig, *, queries: np.ndarray | None = None, fill: Fill = add_here
) -> Index:
    """Build an index of item vectors.

    Args:
        vectors: float32 [I, D], row = item position; at least one row.
        config: kind and its options. What is too small a catalogue for its kind becomes flat.
        queries: float32 [N, D] of some requests, by which recall is measured; None: made up.
        fill: how lists are filled; `ctxrec.index_filling.add_on_nodes` for a cluster.

    Raises:
        UserError: `index.nlist` is larger than the catalogue.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    num_items, dim = vectors.shape
    assert num_items > 0, "an index needs at least one item"
    kind = choose_kind(num_items, config)
    if kind == "hnsw":
        made = faiss.IndexHNSWFlat(dim, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = config.ef_construction
        made.add(vectors)
    elif kind == "ivf" and (num_lists := _num_lists(num_items, config)) >= 2:
        made = faiss.index_factory(dim, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        made.train(vectors)
        fill(made, vectors)
    elif kind == "ivfpq" and num_items >= _PQ_LEAST and (num_lists := _num_lists(num_items, config)) >= 2:
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
    return index


def choose_kind(num_items: int, config: IndexConfig) -> str:
    """The kind of index that is built; for `auto` by size and hardware, with the reason in the log."""
    if config.kind != "auto":
        return config.kind
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") and config.use_gpu != "no" else 0
    limit = _AUTO_FLAT * (_GPU_FACTOR if num_gpus else 1)
    kind = "flat" if num_items <= limit else "ivf" if num_items <= _AUTO_IVF else "ivfpq"
    why = {
        "flat": "ranking all of them is exact, fast enough, and the cheapest in batches",
        "ivf": f"ranking all of them is slow beyond {limit:,}; lists are searched until recall is {config.recall}",
        "ivfpq": f"beyond {_AUTO_IVF:,} whole vectors are too much to read; compressed ones are, the best exactly",
    }[kind]
    logger.info("index.kind = auto takes %s for %d items and %d GPUs: %s", kind, num_items, num_gpus, why)
    return kind


def _num_lists(num_items: int, config: IndexConfig) -> int:
    if config.nlist > num_items:
        raise UserError(
            f"index.nlist is {config.nlist}; expected at most the number of items ({num_items}). "
            "Take 0 for the automatic choice"
        )
    return config.nlist or min(round(4 * math.sqrt(num_items)), num_items // _POINTS_PER_LIST)
