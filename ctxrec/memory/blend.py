"""The blend: how much each head of the model and each source of the item memory counts for a request.

Every source is scaled to a standard deviation of 1 over the catalogue and takes a weight of 0 or more. The weight
depends on the length of the history; `ctxrec.memory.blend_fit` fits it to the validation events.
A source that is an inner product stays one, because its weight goes into the query: an index still finds the best items.
The words of a request (`ctxrec.memory.request_words`) are compared with the item vectors of the text head, as the texts
of its history are. Their weights count for the requests that bring words, and all other scores stay as they are.

Legend: N requests, I items, K sources, W width of the towers' vectors, C width of text vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import Events
from ctxrec.memory.item_memory import ItemMemory
from ctxrec.memory.request_words import QUERY, WORDS
from ctxrec.memory.text_similarity import history_queries

STATIC = ("popularity", "recent popularity", "new item")  # columns behind the vectors of the heads
NEW = STATIC[-1]
_NO_WEIGHT = -20.0  # before softplus; after it, a weight of 0


@dataclass(frozen=True)
class BlendParams:
    """Tuned numbers of the blend's weights. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        typical: log(1 + events) of a typical history, for which the second row of the weights has no effect. No
            measurement supports it.
        start: weight of every source before the fit, before softplus. No measurement supports it.
        unfitted_sequence, unfitted_other: weights of the sequence head and of every other source where no validation
            event exists. They are near the weights that the fit chose on several data sets of shops and films.
        unfitted_query: weight of a request's query where no validation event exists. The fit on MovieLens-100K gave 1.9.
    """

    typical: float = 2.0
    start: float = -1.0
    unfitted_sequence: float = 1.5
    unfitted_other: float = 0.2
    unfitted_query: float = 2.0


BLEND = BlendParams()
# Weights of `WORDS`, before softplus, in a bundle of a version that read no words: a query has one, and lists that were
# asked with texts in the context stay as they were.
EARLIER_WORDS_22 = np.array([[_NO_WEIGHT, np.log(np.expm1(BLEND.unfitted_query))], [0, 0]], np.float32)


@dataclass(frozen=True)
class Blend:
    """Weights of the sources: each head (the towers' and, behind them, that of the text), the words of the request
    where there is a text head, popularity, recent popularity, being new (1 for items without events, else 0;
    `with_bonus`), then the memory's.

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
        words = () if text_IC is None else WORDS
        weights = np.zeros((2, len(heads) + len(words) + len(STATIC) + len(memory.sources)), np.float32)
        weights[0] = BLEND.start
        return Blend(memory, text_IC, tuple(widths), tuple(covariances), weights).with_bonus(0)

    @property
    def unfitted_2K(self) -> np.ndarray:
        """Weights for a log without validation events (`BlendParams`): float32 [2, K], before softplus."""
        weights = np.zeros_like(self.weights_2K)
        own = {"sequence": BLEND.unfitted_sequence, QUERY: BLEND.unfitted_query}
        chosen = [own.get(name, BLEND.unfitted_other) for name in self.sources]
        weights[0] = np.log(np.expm1(chosen))
        return dataclasses.replace(self, weights_2K=weights).with_bonus(0).weights_2K

    def with_bonus(self, bonus: float) -> Blend:
        """The blend that adds `bonus` (0 or more) to the scores of new items."""
        weights = self.weights_2K.copy()
        weights[:, self.sources.index(NEW)] = np.log(np.expm1(bonus)) if bonus > 1e-6 else _NO_WEIGHT, 0
        return dataclasses.replace(self, weights_2K=weights)

    def without(self, sources: Sequence[str]) -> Blend:
        """The blend in which these sources have no weight."""
        weights = self.weights_2K.copy()
        hidden = [k for k, name in enumerate(self.sources) if name in sources]
        weights[:, hidden] = np.array([[_NO_WEIGHT], [0]])
        return dataclasses.replace(self, weights_2K=weights)

    @property
    def sources(self) -> list[str]:
        """Names of the K sources, in the order of the weights."""
        heads = list(("sequence", "content")[: len(self.widths)]) + ([] if self.text_IC is None else ["text", *WORDS])
        return [*heads, *STATIC, *self.memory.sources]

    @property
    def heard(self) -> tuple[str, ...]:
        """Those of `WORDS` that have a weight."""
        weights = dict(zip(self.sources, np.logaddexp(0, self.weights_2K[0]), strict=True))
        return tuple(source for source in WORDS if weights.get(source, 0) > 1e-6)

    @property
    def _static(self) -> slice:
        """Places of `STATIC` among the sources; those of the memory follow."""
        start = self.sources.index(STATIC[0])
        return slice(start, start + len(STATIC))

    def vectors(self, item_vectors_IW: np.ndarray) -> np.ndarray:
        """What an index holds: the towers' vectors, the texts', then `STATIC`. float32 [I, W + C + 3]"""
        static = np.stack([self.memory.popularity_I, self.memory.recent_I, ~self.memory.known_I], 1, dtype=np.float32)
        return join_vectors(item_vectors_IW, self.text_IC, static)

    def queries(
        self,
        queries_NW: np.ndarray,
        history: Events,
        words: Mapping[str, np.ndarray] | None = None,
        weights_NK: np.ndarray | None = None,
    ) -> np.ndarray:
        """Queries for `vectors` that contain the weights: float32 [N, W + C + 3].

        Args:
            queries_NW: the towers' queries.
            history: of the requests.
            words: of the requests (`ctxrec.memory.request_words.word_queries`); None: they have none.
            weights_NK: of the requests, float32; None: those of the blend.
        """
        weights_NK = source_weights(self.weights_2K, history.lengths) if weights_NK is None else weights_NK
        heads = self.head_queries(queries_NW, history)
        weighted = [head * weights_NK[:, h : h + 1] for h, head in enumerate(heads)]
        for source, query in self.word_queries(words or {}).items():
            place = self.sources.index(source)
            weighted[-1] = weighted[-1] + query * weights_NK[:, place : place + 1]
        return np.concatenate([*weighted, weights_NK[:, self._static]], 1).astype(np.float32)

    def word_queries(self, words: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Queries of a request's words by source, scaled as those of `head_queries`: float32 [N, C] each; none without a
        text head."""
        if self.text_IC is None:
            return {}
        return {source: _scaled_queries(query, self.covariances[-1]) for source, query in words.items()}

    def head_queries(self, queries_NW: np.ndarray, history: Events) -> list[np.ndarray]:
        """Queries of each head, float32 [N, width of the head], scaled so that their scores have standard deviation 1
        over the catalogue."""
        heads = [queries_NW[:, part] for part in head_slices(self.widths)]
        like = list(heads)
        if self.text_IC is not None:
            like.append(history_queries(history, self.text_IC))
            speaks_A = self.memory.speaks_A
            heads.append(like[-1] if speaks_A is None else history_queries(history, self.text_IC, speaks_A))
        return [_scaled_queries(*head) for head in zip(heads, self.covariances, like, strict=True)]

    def remembered(self, history: Events, weights_NK: np.ndarray | None = None) -> sp.csr_array:
        """The memory's weighted scores, 0 or more: sparse float32 [N, I]. Weights as in `queries`."""
        weights_NK = source_weights(self.weights_2K, history.lengths) if weights_NK is None else weights_NK
        weights_NK = weights_NK[:, self._static.stop :]
        total = sp.csr_array((len(history.lengths), len(self.memory.popularity_I)), dtype=np.float32)
        for k, scores in enumerate(self.memory.source_scores(history)):
            total = total + sp.diags_array(weights_NK[:, k]) @ scores
        return sp.csr_array(total, dtype=np.float32)


def join_vectors(item_vectors_IW: np.ndarray, text_IC: np.ndarray | None, static_IS: np.ndarray) -> np.ndarray:
    """The search vectors of items: the towers' vectors, then the text vectors, then the columns of `STATIC`.
    float32 [I, D]"""
    text = [] if text_IC is None else [text_IC]
    return np.concatenate([item_vectors_IW, *text, static_IS], 1).astype(np.float32, copy=False)


def source_weights(weights_2K: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Weight of every source for histories of these lengths: float32 [N, K], above 0."""
    return np.logaddexp(0, length_features(lengths_N) @ weights_2K).astype(np.float32)


def length_features(lengths_N: np.ndarray) -> np.ndarray:
    """What the weights depend on: 1, and log(1 + length) minus that of a typical history. float64 [N, 2]"""
    return np.stack([np.ones(len(lengths_N)), np.log1p(lengths_N) - BLEND.typical], 1)


def head_slices(widths: Sequence[int]) -> list[slice]:
    """Columns of each head in the towers' vectors."""
    ends = np.cumsum(widths)
    return [slice(int(end - width), int(end)) for width, end in zip(widths, ends, strict=True)]


def _scaled_queries(queries: np.ndarray, covariance: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Queries over the standard deviation of their scores, or of those of the queries `like`; 0 where all items score the
    same."""
    of = queries if like is None else like
    spread = np.sqrt(np.maximum(((of @ covariance) * of).sum(1, keepdims=True), 0))
    return np.divide(queries, spread, out=np.zeros_like(queries), where=spread > 1e-6)
