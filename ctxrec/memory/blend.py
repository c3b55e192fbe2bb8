"""How much the heads of the model and its item memory count for a request.

Every source is scaled to a standard deviation of 1 over the catalogue and takes a weight of 0 or more that
depends on the length of the history; the weights are those that rank the validation events best.
Sources that are inner products stay one (their weights go into the query), so an index still finds the best.

Legend: N requests, I items, K sources, W width of the towers' vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from ctxrec.data.events import Events
from ctxrec.data.requests import Requests
from ctxrec.memory.item_memory import ItemMemory
from ctxrec.memory.text_similarity import history_queries

_CELLS = 1 << 25  # scores of all sources that the fit holds at once (128 MB)
_POOL = 20_000  # items that the fit ranks at most: the targets and others drawn at random
_TYPICAL = 2.0  # log(1 + events) of a typical history, where the second weight has no say
_PENALTY, _RANKING_PENALTY = 1e-3, 1e-2  # the second keeps the ranking from learning the validation events by heart
_STEP = 0.1  # of a score, in which a rank changes smoothly
_TARGETS = 20  # of a request, drawn at random, that count in the fit at most
_NO_SCORE = -1e9
_START = -1.0  # of the weights, before softplus
_SEQUENCE, _OTHERS = 1.5, 0.2  # weights where there is nothing to fit them to
_NOTHING = -20.0  # before softplus
_ITERATIONS = 60
STATIC = ("popularity", "recent popularity", "new item")  # columns behind the vectors of the heads
NEW = STATIC[-1]


@dataclass(frozen=True)
class Blend:
    """Weights of the sources: each head (the towers' and, behind them, that of the text), popularity, recent
    popularity, being new (1 for items without events, else 0; `with_bonus`), then the memory's.

    text_IC: text vectors of unit length (`ctxrec.memory.text_similarity`); None: no such head.
    widths: of the towers' heads in their vectors.
    covariances: of the item vectors of each head, which give the spread of a query's scores.
    weights_2K: before softplus, for a typical history, and what a longer one adds.
    """

    memory: ItemMemory
    text_IC: np.ndarray | None
    widths: tuple[int, ...]
    covariances: tuple[np.ndarray, ...]
    weights_2K: np.ndarray

    @staticmethod
    def of(memory: ItemMemory, text_IC: np.ndarray | None, item_vectors_IW: np.ndarray, widths: Sequence[int]) -> Blend:
        """A blend of equal weights, without a bonus for new items."""
        heads = [item_vectors_IW[:, part] for part in head_slices(widths)] + ([] if text_IC is None else [text_IC])
        covariances = [np.atleast_2d(np.cov(head, rowvar=False, bias=True)).astype(np.float32) for head in heads]
        weights = np.zeros((2, len(heads) + len(STATIC) + len(memory.sources)), np.float32)
        weights[0] = _START
        return Blend(memory, text_IC, tuple(widths), tuple(covariances), weights).with_bonus(0)

    @property
    def unfitted_2K(self) -> np.ndarray:
        """Weights for a log without validation events: near what these chose on several data sets of shops and films."""
        weights = np.zeros_like(self.weights_2K)
        weights[0] = np.log(np.expm1([_SEQUENCE if name == "sequence" else _OTHERS for name in self.sources]))
        return dataclasses.replace(self, weights_2K=weights).with_bonus(0).weights_2K

    def with_bonus(self, bonus: float) -> Blend:
        """The blend that adds so much (0 or more) to the scores of new items."""
        weights = self.weights_2K.copy()
        weights[:, self.sources.index(NEW)] = np.log(np.expm1(bonus)) if bonus > 1e-6 else _NOTHING, 0
        return dataclasses.replace(self, weights_2K=weights)

    @property
    def sources(self) -> list[str]:
        heads = list(("sequence", "content")[: len(self.widths)]) + ([] if self.text_IC is None else ["text"])
        return [*heads, *STATIC, *self.memory.sources]

    @property
    def _num_heads(self) -> int:
        return len(self.covariances)

    def vectors(self, item_vectors_IW: np.ndarray) -> np.ndarray:
        """What an index holds: the towers' vectors, the texts', then `STATIC`. float32 [I, W + C + 3]"""
        static = np.stack([self.memory.popularity_I, self.memory.recent_I, ~self.memory.known_I], 1, dtype=np.float32)
        text = [] if self.text_IC is None else [self.text_IC]
        return np.concatenate([item_vectors_IW, *text, static], 1)

    def queries(self, queries_NW: np.ndarray, history: Events) -> np.ndarray:
        """Queries for `vectors`, the weights in them. float32 [N, W + C + 3]"""
        weights_NK = source_weights(self.weights_2K, history.lengths)
        static = weights_NK[:, self._num_heads : self._num_heads + len(STATIC)]
        heads = self.head_queries(queries_NW, history)
        weighted = [head * weights_NK[:, h : h + 1] for h, head in enumerate(heads)]
        return np.concatenate([*weighted, static], 1).astype(np.float32)

    def head_queries(self, queries_NW: np.ndarray, history: Events) -> list[np.ndarray]:
        """Each head's queries, scaled so that their scores have standard deviation 1 over the catalogue."""
        heads = [queries_NW[:, part] for part in head_slices(self.widths)]
        if self.text_IC is not None:
            heads.append(history_queries(history, self.text_IC))
        return [_scaled(head, covariance) for head, covariance in zip(heads, self.covariances, strict=True)]

    def remembered(self, history: Events) -> sp.csr_array:
        """What the memory adds: sparse, 0 or more. float32 [N, I]"""
        weights_NK = source_weights(self.weights_2K, history.lengths)[:, self._num_heads + len(STATIC) :]
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


def _scaled(queries: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    spread = np.sqrt(np.maximum(((queries @ covariance) * queries).sum(1, keepdims=True), 0))
    return np.divide(queries, spread, out=np.zeros_like(queries), where=spread > 1e-6)  # else it tells no two apart


def fit_blend(
    blend: Blend, item_vectors_IW: np.ndarray, queries_NW: np.ndarray, requests: Requests, *, repeats: bool, seed: int
) -> np.ndarray:
    """Weights [2, K] that rank the requests' targets best: first by their likelihood, then by a smooth NDCG.

    Args:
        blend: its memory fitted on the events before the requests, as the towers are.
        queries_NW: the towers' queries of the requests.
        requests: with targets.
        repeats: whether the items of a history compete; otherwise they are left out.
    """
    rng = np.random.default_rng(seed)
    num_items = len(item_vectors_IW)
    limit = max(_CELLS // (min(num_items, _POOL) * len(blend.sources)), 16)
    if len(requests) > limit:
        rows = np.sort(rng.choice(len(requests), limit, replace=False))
        requests, queries_NW = requests.take(rows), queries_NW[rows]
    assert requests.target_items is not None
    pool = np.arange(num_items)
    if num_items > _POOL:
        targets = rng.permutation(np.unique(requests.target_items))[: _POOL // 2]
        pool = np.union1d(rng.choice(num_items, _POOL, replace=False), targets)
    vectors = [item_vectors_IW[pool, part] for part in head_slices(blend.widths)]
    vectors += [] if blend.text_IC is None else [blend.text_IC[pool]]
    memory, heads = blend.memory, blend.head_queries(queries_NW, requests.history)
    parts = [head @ items.T for head, items in zip(heads, vectors, strict=True)]
    parts += [np.broadcast_to(v[pool], (len(requests), len(pool))) for v in (memory.popularity_I, memory.recent_I)]
    # What being new is worth no validation event can tell (`ctxrec.memory.cold_start`).
    parts.append(np.zeros_like(parts[-1]))
    parts += [scores[:, pool].toarray() for scores in memory.of_histories(requests.history)]
    fit = _Fit.of(np.stack(parts, -1), requests, pool, rng, repeats=repeats)
    likely = _descend(fit.surprise, torch.from_numpy(blend.weights_2K), penalty=_PENALTY)
    # Likelihood cares for targets that no list will show; the ranking at the top decides the rest.
    return _descend(fit.smooth_regret, likely, penalty=_RANKING_PENALTY).numpy()


@dataclass(frozen=True)
class _Fit:
    """What the weights are fitted to: scores of all sources for the requests' targets and what competes with them."""

    scores_NIK: torch.Tensor
    gate_N2: torch.Tensor
    out_NI: torch.Tensor  # bool, what may not be recommended
    row_T: torch.Tensor  # the request of each target
    target_T: torch.Tensor
    share_T: torch.Tensor  # 1 over the number of targets of the request

    @staticmethod
    def of(
        scores_NIK: np.ndarray, requests: Requests, pool: np.ndarray, rng: np.random.Generator, *, repeats: bool
    ) -> _Fit:
        num = len(requests)
        assert requests.target_items is not None and requests.target_offsets is not None
        place = np.full(
            int(max(pool.max(), requests.history.items.max(initial=0), requests.target_items.max())) + 1, -1
        )
        place[pool] = np.arange(len(pool))
        out = np.zeros((num, len(pool)), bool)
        if not repeats:
            seen, row = place[requests.history.items], np.repeat(np.arange(num), requests.history.lengths)
            out[row[seen >= 0], seen[seen >= 0]] = True
        counts = np.diff(requests.target_offsets)
        row = np.repeat(np.arange(num), counts)
        # Of a long list of targets any may count, not the first: those of a new user's first minutes are of one kind.
        shuffled = np.lexsort((rng.random(len(row)), row))
        number = np.arange(len(row)) - np.repeat(requests.target_offsets[:-1], counts)
        most = int(np.clip(_CELLS // (len(pool) * num), 1, _TARGETS))
        chosen = shuffled[number < most]
        row, target = row[chosen], place[requests.target_items[chosen]]
        row, target = row[target >= 0], target[target >= 0]
        share = 1.0 / np.bincount(row, minlength=num)[row]
        return _Fit(
            scores_NIK=torch.from_numpy(np.ascontiguousarray(scores_NIK, np.float32)),
            gate_N2=torch.from_numpy(_gate(requests.history.lengths).astype(np.float32)),
            out_NI=torch.from_numpy(out),
            row_T=torch.from_numpy(row),
            target_T=torch.from_numpy(target),
            share_T=torch.from_numpy(share.astype(np.float32)),
        )

    def _mixed(self, weights_2K: torch.Tensor) -> torch.Tensor:
        weights_NK = F.softplus(self.gate_N2 @ weights_2K)
        return torch.bmm(self.scores_NIK, weights_NK[..., None]).squeeze(-1).masked_fill(self.out_NI, _NO_SCORE)

    def surprise(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """Mean of -log p(target) under a softmax over what competes."""
        log_p = torch.log_softmax(self._mixed(weights_2K), 1)[self.row_T, self.target_T]
        return -(log_p * self.share_T).sum() / len(self.gate_N2)

    def smooth_regret(self, weights_2K: torch.Tensor) -> torch.Tensor:
        """Minus the mean NDCG, with a rank in which a step is a sigmoid (ApproxNDCG; Qin, Liu and Li, 2010)."""
        mixed = self._mixed(weights_2K)
        ahead = (mixed[self.row_T] - mixed[self.row_T, self.target_T][:, None]) / _STEP
        rank = torch.sigmoid(ahead).sum(1) + 0.5  # the target itself counts a half
        return -(self.share_T / torch.log2(1 + rank)).sum() / len(self.gate_N2)


def _descend(loss: Callable[[torch.Tensor], torch.Tensor], start_2K: torch.Tensor, *, penalty: float) -> torch.Tensor:
    """The weights of least loss, by L-BFGS; `penalty` times their squared distance from the start is added."""
    weights = start_2K.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], lr=1, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights) + penalty * (weights - start_2K).square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()
