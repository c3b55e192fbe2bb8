"""Measures every kind of index at several sizes: recall, time of single queries, build time, size, and recall under filters.

    python tests/bench/index_bench.py                          # 10,000 and 100,000 vectors of 128 numbers, minutes
    python tests/bench/index_bench.py --sizes 1000000 --kinds flat ivf ivfpq

Indexes are built by all cores and searched by one thread, unless OMP_NUM_THREADS is set. Vectors are clustered, as item
vectors are; each query lies between two of them. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import faiss
import numpy as np

from ctxrec.core.config import IndexConfig
from ctxrec.index.builder import build_index, choose_kind
from ctxrec.index.exact import ByColumn, exact_search
from ctxrec.index.faiss_index import Index
from ctxrec.index.topk import NO_ITEM

KINDS = ("exact", "flat", "hnsw", "ivf", "ivfpq", "auto")
SHARES = (1.0, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0001)
K, NUM_QUERIES, NUM_FILTERED = 10, 300, 60


def make_vectors(num: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors around so many centres that each has some hundred items."""
    centres = rng.normal(size=(max(num // 300, 10), dim)).astype(np.float32)
    made = centres[rng.integers(len(centres), size=num)]
    made += 0.7 * rng.standard_normal((num, dim), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def make_queries(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noisy queries between two items each, as of users with two interests."""
    first, second = (vectors[rng.integers(len(vectors), size=NUM_QUERIES)] for _ in range(2))
    noise = rng.standard_normal(first.shape, dtype=np.float32) / first.shape[1] ** 0.5
    return first + 0.6 * second + 0.5 * noise


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    parts = [np.isin(w[w != NO_ITEM], f).mean() for f, w in zip(found, wanted, strict=True) if (w != NO_ITEM).any()]
    return float(np.mean(parts))


def milliseconds(search, queries: np.ndarray) -> np.ndarray:
    """Times of single queries."""
    took = []
    for n in range(len(queries)):
        began = time.perf_counter()
        search(queries[n : n + 1])
        took.append(1000 * (time.perf_counter() - began))
    return np.array(took)


def _exact(columns: ByColumn, queries: np.ndarray, mask: np.ndarray | None = None):
    return exact_search(columns.vectors, queries, K, allowed=mask)


def _indexed(index: Index, queries: np.ndarray, mask: np.ndarray | None = None):
    return index.search(queries, K, allowed=mask)


def megabytes(index: Index) -> float:
    with tempfile.TemporaryDirectory() as folder:
        index.save(os.path.join(folder, "index"))
        return os.path.getsize(os.path.join(folder, "index")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    rows, filtered = [], []
    for size in args.sizes:
        rng = np.random.default_rng(0)
        vectors = make_vectors(size, args.dim, rng)
        queries = make_queries(vectors, rng)
        masks = [None if share == 1 else rng.random(size) < share for share in SHARES]
        some = queries[:NUM_FILTERED]
        exact, _ = exact_search(vectors, queries, K)
        wanted = [exact_search(vectors, some, K, allowed=mask)[0] for mask in masks]
        for kind in args.kinds:
            began = time.perf_counter()
            config = IndexConfig(kind="flat" if kind == "exact" else kind, use_gpu="no")
            if kind == "auto" and choose_kind(size, config) in args.kinds and choose_kind(size, config) == "flat":
                rows.append(f"| {size:,} | auto takes flat | | | | | | |")
                continue
            if kind == "exact":
                columns = ByColumn(vectors)
                search, name, size_mb = partial(_exact, columns), "exact, as replicas search", vectors.nbytes / 1e6
                build_s = time.perf_counter() - began
            else:
                faiss.omp_set_num_threads(os.cpu_count() or 1)
                index = build_index(vectors, config)
                build_s = time.perf_counter() - began
                faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
                name, size_mb = kind if kind == index.kind else f"{kind} takes {index.kind}", megabytes(index)
                search = partial(_indexed, index)
            search(queries[:1])
            took = milliseconds(search, queries)
            began = time.perf_counter()
            found, _ = search(queries[:32])
            batch_ms = 1000 * (time.perf_counter() - began) / 32
            found, _ = search(queries)
            p50, p99 = np.percentile(took, [50, 99])
            rows.append(
                f"| {size:,} | {name} | {recall(found, exact):.4f} | {p50:.2f} | {p99:.2f} | {batch_ms:.2f} | "
                f"{build_s:.1f} | {size_mb:.0f} |"
            )
            cells = [f"{recall(search(some, mask)[0], best):.3f}" for mask, best in zip(masks, wanted, strict=True)]
            filtered.append(f"| {size:,} | {name} | {' | '.join(cells)} |")
            print(rows[-1], filtered[-1], file=sys.stderr, flush=True)
    print(
        f"\nvectors x {args.dim}, k = {K}, {os.environ['OMP_NUM_THREADS']} thread, {NUM_QUERIES} queries one by one\n"
    )
    print("| vectors | index | recall@10 | p50 ms | p99 ms | ms a query in batches of 32 | build s | MB |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print("\nrecall@10 against exact search where a filter lets a share of the items pass:\n")
    print("| vectors | index | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " |")
    print("|---|---|" + "---|" * len(SHARES))
    print("\n".join(filtered))


if __name__ == "__main__":
    main()
