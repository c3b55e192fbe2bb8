"""An index's lists filled by all nodes of a Ray cluster: finding the list of each vector is most of the work of a large one."""

from __future__ import annotations

import logging
import math
import os

import faiss
import numpy as np
import ray

from ctxrec.index.builder import add_here

logger = logging.getLogger(__name__)

_PART_BYTES = 1 << 29  # vectors of one task, at most


def add_on_nodes(trained: faiss.Index, vectors: np.ndarray) -> None:
    """Put vectors into the lists of a trained index, in their order; here where the cluster is one node."""
    num_nodes = sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
    if num_nodes == 1:
        add_here(trained, vectors)
    else:
        add_by_tasks(trained, vectors, max(num_nodes, math.ceil(vectors.nbytes / _PART_BYTES)))


def add_by_tasks(trained: faiss.Index, vectors: np.ndarray, num_parts: int) -> None:
    """The same in so many Ray tasks, spread over the nodes."""
    logger.info("%d vectors are put into lists by %d tasks", len(vectors), num_parts)
    empty = ray.put(faiss.serialize_index(trained))
    # Without CPUs of their own, as the workers of a training may hold all of them.
    fill = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_filled)
    for part in [fill.remote(empty, rows) for rows in np.array_split(vectors, num_parts)]:
        trained.merge_from(faiss.deserialize_index(ray.get(part)), trained.ntotal)


def _filled(empty: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A serialized index of some vectors, from one that is trained and empty."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = faiss.deserialize_index(empty)
    index.add(vectors)
    return faiss.serialize_index(index)
