"""Fit the weights of a blend to validation requests: first by likelihood, then by the ranking at the top.

Legend: N requests, I items that compete, K sources, T targets of all requests, W width of the towers' vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ctxrec.data.requests import Requests
from ctxrec.memory.blend import Blend, head_slices, length_features
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY, WORDS, ReadTexts, context_texts, word_queries

_NO_SCORE = -1e9


@dataclass(frozen=True)
class BlendFitParams:
    """Tuned numbers and limits of the fit of a blend. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        nll_penalty: weight of the squared distance from the start while the likelihood is maximised. No measurement
            supports it.
        ranking_penalty: the same while the ranking is improved. With .01 instead of .0001 the test NDCG@10 rises on
            five of six data sets: with less, the ranking overfits to the validation events.
        rank_step: difference of scores within which a rank changes smoothly. Smaller steps gained nothing.
        max_targets: number of targets of a request that count, drawn at random. Targets drawn from all of them instead
            of the first five raised `temporal` of MovieLens-100K from .354 to .379. No measurement supports 20.
        max_items: limit of time and memory: number of items that compete, the targets and others drawn at random.
        scores_at_once: limit of memory: 128 MB of scores of all sources.
        iterations: number of L-BFGS iterations at most. No measurement supports it.
        query_share: standard deviation of the scores of a query, relative to that of all other scores of a request. Of .25
            to 5, 1 is the best for queries of genres and of one title word on MovieLens-100K, and 1 to 2 for half a title.
    """

    nll_penalty: float = 1e-3
    ranking_penalty: float = 1e-2
    rank_step: float = 0.1
    max_targets: int = 20
    max_items: int = 20_000
    scores_at_once: int = 1 << 25
    iterations: int = 60
    query_share: float = 1.0


BLEND_FIT = BlendFitParams()


def fit_blend(
    blend: Blend,
    item_vectors_IW: np.ndarray,
    queries_NW: np.ndarray,
    requests: Requests,
    *,
    repeats: bool,
    seed: int,
    read_texts: ReadTexts | None = None,
    params: BlendFitParams = BLEND_FIT,
) -> np.ndarray:
    """The weights that rank the requests' targets best.

    The negative log-likelihood of the targets is minimised first. It also counts targets that no list will show, so
    the weights then minimise `BlendFit.approx_ndcg_loss`, held near those of the first step by a penalty.

    No log has queries, because a query is what a client asks beside the context. A query weighs `query_share` times
    the standard deviation of all other scores, and no less than the texts of the contexts do.

    Args:
        blend: its memory is fitted on the events before the requests, as the towers are.
        item_vectors_IW: the towers' vectors of the catalogue.
        queries_NW: the towers' queries of the requests.
        requests: requests with targets; their weights, where they have any, are above 0.
        repeats: whether the items of a history compete; otherwise they are left out.
        seed: makes the draws of requests, items and targets repeatable.
        read_texts: vectors of the texts of contexts; None: these texts have no effect, and keep the weight of `blend`.
        params: tuned numbers and limits.

    Returns:
        float32 [2, K], before softplus (`Blend.weights_2K`).
    """
    rng = np.random.default_rng(seed)
    num_sources = len([name for name in blend.sources if name not in WORDS]) + any(context_texts(requests))
    rows = _drawn_requests(num_sources, len(item_vectors_IW), requests, rng, params)
    requests, queries_NW = requests.take(rows), queries_NW[rows]
    pool = _competing_items(len(item_vectors_IW), requests, rng, params)
    words = blend.word_queries(word_queries(requests, read_texts))
    fitted = np.array([k for k, name in enumerate(blend.sources) if name not in WORDS or name in words])
    scores_NIK = scores_of_sources(blend, item_vectors_IW, queries_NW, requests, pool, words)
    fit = BlendFit.of(scores_NIK, requests, pool, rng, repeats=repeats, params=params)
    start_2K = torch.from_numpy(np.ascontiguousarray(blend.weights_2K[:, fitted]))
    best_2K = fit.best(start_2K, params)
    weights_2K = blend.weights_2K.copy()
    weights_2K[:, fitted] = best_2K.numpy()
    if QUERY in blend.sources:
        weights_2K[:, blend.sources.index(QUERY)] = query_weight(blend, weights_2K, fit.spread(best_2K), params)
    return weights_2K


def query_weight(blend: Blend, weights_2K: np.ndarray, spread: float, params: BlendFitParams) -> np.ndarray:
    """The weight of queries, [2], before softplus: the same for histories of all lengths, unless it is that of the texts
    of contexts."""
    least = np.log(np.expm1(max(params.query_share * spread, 1e-3)))
    of_context = weights_2K[:, blend.sources.index(CONTEXT_TEXT)]
    return of_context if of_context[0] > least else np.array([least, 0], np.float32)


def _drawn_requests(
    num_sources: int, num_items: int, requests: Requests, rng: np.random.Generator, params: BlendFitParams
) -> np.ndarray:
    """Rows of as many requests, drawn at random, as memory holds scores of."""
    limit = max(params.scores_at_once // (min(num_items, params.max_items) * num_sources), 16)
    if len(requests) <= limit:
        return np.arange(len(requests))
    return np.sort(rng.choice(len(requests), limit, replace=False))


def _competing_items(
    num_items: int, requests: Requests, rng: np.random.Generator, params: BlendFitParams
) -> np.ndarray:
    """Positions of the items that compete, in order: all of a catalogue that is not too large."""
    assert requests.target_items is not None
    if num_items <= params.max_items:
        return np.arange(num_items)
    targets = rng.permutation(np.unique(requests.target_items))[: params.max_items // 2]
    return np.union1d(rng.choice(num_items, params.max_items, replace=False), targets)


def scores_of_sources(
    blend: Blend,
    item_vectors_IW: np.ndarray,
    queries_NW: np.ndarray,
    requests: Requests,
    pool: np.ndarray,
    words: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Scores of each source for the items of the pool, without those of `WORDS` that no request has: float32 [N, I, K]."""
    vectors = [item_vectors_IW[pool, part] for part in head_slices(blend.widths)]
    vectors += [] if blend.text_IC is None else [blend.text_IC[pool]]
    memory, heads = blend.memory, blend.head_queries(queries_NW, requests.history)
    parts = [head @ items.T for head, items in zip(heads, vectors, strict=True)]
    parts += [words[source] @ vectors[-1].T for source in WORDS if source in words]
    parts += [np.broadcast_to(v[pool], (len(requests), len(pool))) for v in (memory.popularity_I, memory.recent_I)]
    # No validation event tells what being new is worth: `ctxrec.memory.cold_start` chooses that weight.
    parts.append(np.zeros_like(parts[-1]))
    parts += [scores[:, pool].toarray() for scores in memory.source_scores(requests.history)]
    return np.stack(parts, -1)


@dataclass(frozen=True)
class BlendFit:
    """What the weights are fitted to: scores of all sources for the requests' targets and for what competes with them."""

    scores_NIK: torch.Tensor
    lengths_N2: torch.Tensor  # features of the history's length (`ctxrec.memory.blend.length_features`)
    excluded_NI: torch.Tensor  # bool, what may not be recommended
    row_T: torch.Tensor  # the request of each target
    target_T: torch.Tensor
    share_T: torch.Tensor  # 1 over the number of targets of the request, times the weight of the target
    rank_step: float
    num_live: int = (
        0  # so many of the last sources are live: their weights have a sign, and their sum is never negative
    )

    @staticmethod
    def of(
        scores_NIK: np.ndarray,
        requests: Requests,
        pool: np.ndarray,
        rng: np.random.Generator,
        *,
        repeats: bool,
        num_live: int = 0,
        params: BlendFitParams = BLEND_FIT,
    ) -> BlendFit:
        """Tensors of the fit; `pool`: the catalogue's positions of the I items."""
        num = len(requests)
        assert requests.target_items is not None and requests.target_offsets is not None
        last = max(pool.max(), requests.history.items.max(initial=0), requests.target_items.max())
        place = np.full(int(last) + 1, -1)
        place[pool] = np.arange(len(pool))
        excluded = np.zeros((num, len(pool)), bool)
        if not repeats:
            seen, row = place[requests.history.items], np.repeat(np.arange(num), requests.history.lengths)
            excluded[row[seen >= 0], seen[seen >= 0]] = True
        row, drawn = _drawn_targets(requests, len(pool), rng, params)
        target = place[requests.target_items[drawn]]
        row, target, drawn = row[target >= 0], target[target >= 0], drawn[target >= 0]
        share = 1.0 / np.bincount(row, minlength=num)[row]
        if requests.target_weights is not None:  # on average a request counts 1, as it does without weights
            share = share * requests.target_weights[drawn]
            share *= num / max(share.sum(), 1e-9)
        return BlendFit(
            scores_NIK=torch.from_numpy(np.ascontiguousarray(scores_NIK, np.float32)),
            lengths_N2=torch.from_numpy(length_features(requests.history.lengths).astype(np.float32)),
            excluded_NI=torch.from_numpy(excluded),
            row_T=torch.from_numpy(row),
            target_T=torch.from_numpy(target),
            share_T=torch.from_numpy(share.astype(np.float32)),
            rank_step=params.rank_step,
            num_live=num_live,
        )

    def without_live(self) -> BlendFit:
        """The same requests and targets without the live sources."""
        first = self.scores_NIK.shape[-1] - self.num_live
        return dataclasses.replace(self, scores_NIK=self.scores_NIK[..., :first].contiguous(), num_live=0)

    def best(self, start_2K: torch.Tensor, params: BlendFitParams) -> torch.Tensor:
        """The weights that rank the targets best, from the likeliest ones on: float32 [2, K]."""
        likeliest = _minimise(self.nll, start_2K, penalty=params.nll_penalty, iterations=params.iterations)
        return _minimise(self.approx_ndcg_loss, likeliest, penalty=params.ranking_penalty, iterations=params.iterations)

    def scores(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """Scores of the blend: float32 [N, I]."""
        weights_NK, first = self.lengths_N2 @ weights_2K, weights_2K.shape[1] - self.num_live
        total = torch.bmm(self.scores_NIK[..., :first], F.softplus(weights_NK[:, :first, None])).squeeze(-1)
        if not self.num_live:
            return total
        return total + F.relu(torch.bmm(self.scores_NIK[..., first:], weights_NK[:, first:, None]).squeeze(-1))

    def _blended(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """The scores, far below all others for items that may not be recommended: float32 [N, I]."""
        return self.scores(weights_2K).masked_fill(self.excluded_NI, _NO_SCORE)

    def spread(self, weights_2K: torch.Tensor) -> float:
        """Mean standard deviation of a request's scores over the items that compete."""
        return float(self.scores(weights_2K).std(1, unbiased=False).mean())

    def nll(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood, a scalar: the mean of -log p(target) under a softmax over the items that compete."""
        log_p = torch.log_softmax(self._blended(weights_2K), 1)[self.row_T, self.target_T]
        return -(log_p * self.share_T).sum() / len(self.lengths_N2)

    def approx_ndcg_loss(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """Minus the mean NDCG, a scalar, with ranks made of sigmoids (ApproxNDCG; Qin, Liu and Li, 2010)."""
        blended = self._blended(weights_2K)
        ahead = (blended[self.row_T] - blended[self.row_T, self.target_T][:, None]) / self.rank_step
        rank = torch.sigmoid(ahead).sum(1) + 0.5  # the target itself counts a half
        return -(self.share_T / torch.log2(1 + rank)).sum() / len(self.lengths_N2)


def _drawn_targets(
    requests: Requests, num_items: int, rng: np.random.Generator, params: BlendFitParams
) -> tuple[np.ndarray, np.ndarray]:
    """Requests and places of the targets that count, int64 [T] each, at most `max_targets` of each request.

    They are drawn at random and are not the first ones: the first targets of a new user are of one kind.
    """
    assert requests.target_items is not None and requests.target_offsets is not None
    num, counts = len(requests), np.diff(requests.target_offsets)
    row = np.repeat(np.arange(num), counts)
    shuffled = np.lexsort((rng.random(len(row)), row))
    number = np.arange(len(row)) - np.repeat(requests.target_offsets[:-1], counts)
    most = int(np.clip(params.scores_at_once // (num_items * num), 1, params.max_targets))
    chosen = shuffled[number < most]
    return row[chosen], chosen


def _minimise(
    loss: Callable[[torch.Tensor], torch.Tensor], start_2K: torch.Tensor, *, penalty: float, iterations: int
) -> torch.Tensor:
    """The weights of least loss by L-BFGS; `penalty` times their squared distance from the start is added to it.
    float32 [2, K]"""
    weights = start_2K.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], lr=1, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights) + penalty * (weights - start_2K).square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()
