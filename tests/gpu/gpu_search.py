"""The parts of `gpu_check.py` that run in its own process: texts encoded a second, and exact search on both devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import faiss
import numpy as np
import torch

from ctxrec.core.config import EncoderConfig, IndexConfig
from ctxrec.encoder.encode_plan import tokenise
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import encode_tokens
from ctxrec.index.builder import build_index
from ctxrec.index.faiss_index import num_gpus

DIM, K, QUERIES = 128, 100, 32


def texts_a_second(path: str, texts: list[str], device: str) -> tuple[float, float]:
    """Texts and tokens that an encoder without gradients reads in a second, the first pass left out."""
    config = EncoderConfig(name=path)
    encoder = TextEncoder(config, path, tune=False).eval()
    encoder.fit_to(torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32)
    tokens = tokenise(path, texts, max_tokens=config.max_tokens)
    which = np.arange(len(texts))
    encode_tokens(encoder, tokens, which[:64], budget=config.token_budget)
    began = time.perf_counter()
    encode_tokens(encoder, tokens, which, budget=config.token_budget)
    seconds = time.perf_counter() - began
    return len(texts) / seconds, float(tokens.lengths.sum()) / seconds


def milliseconds(search: Callable[..., object], *args: object, repeats: int = 10) -> float:
    """The median of some calls with these arguments, the first left out."""
    took = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        search(*args)
        took.append(1000 * (time.perf_counter() - began))
    return float(np.median(took[1:]))


def vectors_of(num: int, seed: int = 0) -> np.ndarray:
    """Random unit vectors [num, DIM], made in parts so that little more memory is used."""
    made, rng = np.empty((num, DIM), np.float32), np.random.default_rng(seed)
    for start in range(0, num, 1 << 20):
        part = made[start : start + (1 << 20)]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def exact_rows(sizes: list[int], device: str) -> Iterator[list[str]]:
    """Exact search of K among so many vectors: torch on the device against FAISS on the CPU."""
    queries = vectors_of(QUERIES, seed=1)
    for size in sizes:
        vectors = vectors_of(size)
        on_cpu = faiss.IndexFlatIP(DIM)
        on_cpu.add(vectors)
        wanted = on_cpu.search(queries, K)[1]
        for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
            by_torch = partial(_torch_search, torch.from_numpy(vectors).to(device, dtype))
            found = by_torch(queries)
            recall = np.mean([len(np.intersect1d(f, w)) / K for f, w in zip(found, wanted, strict=True)])
            took = [f"{milliseconds(by_torch, part):.2f}" for part in (queries[:1], queries)]
            yield [f"{size:,}", f"torch {str(dtype)[6:]}, {device}", f"{recall:.4f}", *took]
        took = [f"{milliseconds(on_cpu.search, part, K, repeats=3):.2f}" for part in (queries[:1], queries)]
        yield [f"{size:,}", "FAISS flat, cpu", "1.0000", *took]


def _torch_search(vectors: torch.Tensor, queries: np.ndarray) -> np.ndarray:
    scores = torch.from_numpy(queries).to(vectors.device, vectors.dtype) @ vectors.T
    return scores.topk(K).indices.cpu().numpy()


def index_rows(sizes: list[int]) -> Iterator[list[str]]:
    """The product's own indexes: with and without a filter on a hundredth of the items, on a GPU where FAISS has one."""
    gpu = num_gpus(IndexConfig()) > 0
    queries = vectors_of(QUERIES, seed=1)
    for size in sizes:
        vectors = vectors_of(size)
        allowed = np.random.default_rng(2).random(size) < 0.01
        flat = build_index(vectors, IndexConfig(kind="flat", use_gpu="no"))
        for kind in ("flat", "ivf", "cagra") if gpu else ("flat", "ivf"):
            began = time.perf_counter()
            index = build_index(vectors, IndexConfig(kind=kind, use_gpu="yes" if gpu else "no"))
            seconds = time.perf_counter() - began
            for way, mask in (("all", None), ("1 % allowed", allowed)):
                right = flat.search(queries, K, allowed=mask)[0]
                found = index.search(queries, K, allowed=mask)[0]
                recall = np.mean([np.isin(w[w >= 0], f).mean() for f, w in zip(found, right, strict=True)])
                took = milliseconds(partial(index.search, allowed=mask), queries, K, repeats=3)
                where = "cuda" if gpu else "cpu"
                yield [f"{size:,}", f"{index.kind}, {where}, {way}", f"{recall:.3f}", f"{took:.2f}", f"{seconds:.1f}"]
