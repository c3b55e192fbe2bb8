"""How much the heads of the model and its item memory count for a request.

Every source is scaled to a standard deviation of 1 over the catalogue and takes a weight of 0 or more that
depends on the length of the history; the weights are those that make the validation events most likely.
Sources that are inner products stay one (their weights go into the query), so an index still finds the best.

Legend: N requests, I items, K sources, W width of the towers' vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from ctxrec.events import Events, Requests
from ctxrec.memory import ItemMemory

_CELLS = 1 << 25  # scores of all sources that the fit holds at once (128 MB)
_POOL = 20_000  # items that the fit ranks at most: the targets and others drawn at random
_TYPICAL = 2.0  # log(1 + events) of a typical history, where the second weight has no say
_PENALTY = 1e-3
_ITERATIONS = 60
STATIC = 2  # popularity and recent popularity: columns behind the towers' vectors


@dataclass(frozen=True)
class Blend:
    """Weights of the sources: each head of the towers, popularity, recent popularity, then the memory's.

    weights_2K: before softplus, for a typical history, and what a longer one adds.
    covariances: of the item vectors of each head, which give the spread of a query's scores.
    """

    memory: ItemMemory
    widths: tuple[int, ...]  # of the heads in the towers' vectors
    covariances: tuple[np.ndarray, ...]
    weights_2K: np.ndarray

    def vectors(self, item_vectors_IW: np.ndarray) -> np.ndarray:
        """What an index holds: the towers' vectors, then popularity. float32 [I, W + STATIC]"""
        static = np.stack([self.memory.popularity_I, self.memory.recent_I], 1)
        return np.concatenate([item_vectors_IW, static], 1)

    def queries(self, queries_NW: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
        """Queries for `vectors`, the weights in them. float32 [N, W + STATIC]"""
        weights_NK = source_weights(self.weights_2K, lengths_N)
        heads = scale_heads(queries_NW, self.widths, self.covariances)
        static = weights_NK[:, len(self.widths) : len(self.widths) + STATIC]
        weighted = [head * weights_NK[:, h : h + 1] for h, head in enumerate(heads)]
        return np.concatenate([*weighted, static], 1).astype(np.float32)

    def remembered(self, history: Events) -> sp.csr_array:
        """What the memory adds: sparse, 0 or more. float32 [N, I]"""
        weights_NK = source_weights(self.weights_2K, history.lengths)[:, len(self.widths) + STATIC :]
        total = sp.csr_array((len(history.lengths), len(self.memory.popularity_I)), dtype=np.float32)
        for k, scores in enumerate(self.memory.of_histories(history)):
            total = total + sp.diags_array(weights_NK[:, k]) @ scores
        return sp.csr_array(total, dtype=np.float32)


def source_weights(weights_2K: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Weight of every source for histories of these lengths: float32 [N, K], above 0."""
    return np.logaddexp(0, _gate(lengths_N) @ weights_2K).astype(np.float32)


def _gate(lengths_N: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(lengths_N)), np.log1p(lengths_N) - _TYPICAL], 1)


def head_slices(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for width, end in zip(widths, ends, strict=True)]


def head_covariances(item_vectors_IW: np.ndarray, widths: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Covariance of each head's item vectors over the catalogue: float32 [w, w]."""
    return tuple(
        np.atleast_2d(np.cov(item_vectors_IW[:, part], rowvar=False, bias=True)).astype(np.float32)
        for part in head_slices(widths)
    )


def scale_heads(queries_NW: np.ndarray, widths: Sequence[int], covariances: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each head's queries, scaled so that their scores have standard deviation 1 over the catalogue."""
    scaled = []
    for part, covariance in zip(head_slices(widths), covariances, strict=True):
        head = queries_NW[:, part]
        spread = np.sqrt(np.maximum(((head @ covariance) * head).sum(1, keepdims=True), 0))
        scaled.append(head / np.maximum(spread, 1e-6))
    return scaled


def fit_blend(
    memory: ItemMemory,
    item_vectors_IW: np.ndarray,
    queries_NW: np.ndarray,
    requests: Requests,
    widths: Sequence[int],
    *,
    repeats: bool,
    seed: int,
) -> np.ndarray:
    """Weights [2, K] that maximise the likelihood of the requests' targets under a softmax over the catalogue.

    Args:
        memory: fitted on the events before the requests, as the towers are.
        queries_NW: the towers' queries of the requests.
        requests: with targets.
        repeats: whether the items of a history compete; otherwise they are left out.
    """
    rng = np.random.default_rng(seed)
    num_sources = len(widths) + STATIC + len(memory.sources)
    num_items = len(item_vectors_IW)
    assert requests.target_items is not None
    pool = np.arange(num_items)
    if num_items > _POOL:
        pool = np.union1d(rng.choice(num_items, _POOL, replace=False), requests.target_items[: _POOL // 2])
    limit = max(_CELLS // (len(pool) * num_sources), 16)
    if len(requests) > limit:
        rows = np.sort(rng.choice(len(requests), limit, replace=False))
        requests, queries_NW = requests.take(rows), queries_NW[rows]
    heads = scale_heads(queries_NW, widths, head_covariances(item_vectors_IW, widths))
    parts = [head @ item_vectors_IW[pool, part].T for head, part in zip(heads, head_slices(widths), strict=True)]
    parts += [np.broadcast_to(v[pool], (len(requests), len(pool))) for v in (memory.popularity_I, memory.recent_I)]
    parts += [scores[:, pool].toarray() for scores in memory.of_histories(requests.history)]
    return _most_likely(np.stack(parts, -1), requests, pool, repeats=repeats)


def _most_likely(scores_NIK: np.ndarray, requests: Requests, pool: np.ndarray, *, repeats: bool) -> np.ndarray:
    """Newton-like ascent (L-BFGS) with a small ridge penalty, from equal weights."""
    num = len(requests)
    place = np.full(int(max(pool.max(), requests.history.items.max(initial=0), requests.target_items.max())) + 1, -1)
    place[pool] = np.arange(len(pool))
    out = torch.zeros(num, len(pool), dtype=torch.bool)
    if not repeats:
        seen = place[requests.history.items]
        row = np.repeat(np.arange(num), requests.history.lengths)
        out[row[seen >= 0], seen[seen >= 0]] = True
    counts = np.diff(requests.target_offsets)
    target, row = place[requests.target_items], np.repeat(np.arange(num), counts)
    kept = target >= 0
    share = torch.from_numpy((1.0 / counts[row[kept]]).astype(np.float32))
    row, target = torch.from_numpy(row[kept]), torch.from_numpy(target[kept])
    gate = torch.from_numpy(_gate(requests.history.lengths).astype(np.float32))
    scores = torch.from_numpy(np.ascontiguousarray(scores_NIK, np.float32))
    weights = torch.zeros(2, scores.shape[-1])
    weights[0] = -1.0
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], lr=1, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        mixed = torch.bmm(scores, F.softplus(gate @ weights)[..., None]).squeeze(-1).masked_fill(out, -1e9)
        value = -(torch.log_softmax(mixed, 1)[row, target] * share).sum() / num + _PENALTY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().numpy()
