"""Fit the weights of a blend with live sources to a replay of the last part of the log; a log that stands still gets none.

Legend: N requests, I items that compete, K sources of the blend, H live sources.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.index.topk import top_k
from ctxrec.memory.blend import NEW, Blend
from ctxrec.memory.blend_fit import BLEND_FIT, BlendFit, BlendFitParams, query_weight, scores_of_sources
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCountParams, LiveCounts
from ctxrec.memory.live_replay import Replayed, source_features
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY, WORDS, ReadTexts, context_texts, word_queries
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics

logger = logging.getLogger(__name__)

_K = 10  # cut-off of the lists that decide
_FIT = dataclasses.replace(BLEND_FIT, max_targets=3, iterations=30)


@dataclass(frozen=True)
class LiveFitParams:
    """Tuned numbers and limits of the fit of the live sources. No measurement supports them.

    Attributes:
        requests: limit of time: so many requests are replayed at most, at even distances.
        max_items: limit of time and memory: number of items that compete, the targets, those of the stream that have most
            events during the replay, and others drawn at random.
        blocks: parts of equal size into which the replay is cut by time to decide. An even number: what is learnt from every
            other one is judged by those between.
        start: weight of every live source before the fit.
        resamples: of the bootstrap that decides.
        blend_fit: those of the fit itself. Fewer targets of a request and fewer iterations than in the fit of a blend keep the
            time near that of one, although there are five fits.
    """

    requests: int = 3_000
    max_items: int = 4_000
    blocks: int = 6
    start: float = 0.3
    resamples: int = 1_000
    blend_fit: BlendFitParams = _FIT


LIVE_FIT = LiveFitParams()


def fit_live(
    blend: Blend,
    item_vectors_IW: np.ndarray,
    tower_queries: Callable[[Requests], np.ndarray],
    requests: Requests,
    stream: Stream,
    *,
    repeats: bool,
    seed: int,
    read_texts: ReadTexts | None = None,
    params: LiveFitParams = LIVE_FIT,
    counts: LiveCountParams = LIVE_COUNTS,
) -> LiveWeights | None:
    """The weights of all sources, live ones among them, that rank the targets of a replay best; None where the replay
    shows no gain.

    Each request is asked at its own time, and the live sources know the events before it. Weights are fitted as those of
    a blend are, from the blend's on, to every other block of the replay: once with live sources and once without, because
    a fit to the replay gains by itself. Both are judged by the blocks between, and then the blocks change places. So every
    request judges, and a calm day cannot decide alone. Live sources count if the lower bound of the paired difference in
    NDCG@10 over all requests is above 0. The weights are then fitted again to all of the replay.

    Args:
        blend: its memory is fitted on the events before the replay, and its weights to requests without live sources.
        item_vectors_IW: the towers' vectors of the catalogue.
        tower_queries: the towers' queries of requests, float32 [N, W].
        requests: of the replay, in the order of time (`ctxrec.data.replay.event_requests`).
        stream: all events up to the end of the replay.
        repeats: whether the items of a history compete.
        seed: makes the draws repeatable.
        read_texts: vectors of the texts of contexts; None: these texts have no effect.
        params, counts: tuned numbers and limits.
    """
    rng = np.random.default_rng(seed)
    requests = requests.evenly(params.requests)
    if len(requests) < 2:
        return None
    odd = np.arange(len(requests)) * params.blocks // len(requests) % 2 == 1
    halves = np.flatnonzero(~odd), np.flatnonzero(odd)
    if not all(map(len, halves)):
        return None
    pool = _competing_items(len(item_vectors_IW), requests, stream, rng, params)
    replay = _Replay(
        blend, item_vectors_IW, tower_queries, requests, stream, pool, repeats, rng, read_texts, params, counts
    )
    gain = replay.gain(halves)
    kept = gain["low"] > 0
    told = "live sources %s: NDCG@10 of the replay, fitted to every other block, changes by %+.4f (%+.4f to %+.4f)"
    logger.info(told, "count" if kept else "do not count", gain["mean"], gain["low"], gain["high"])
    if not kept:
        return None
    best_2K, spread = replay.fitted(np.arange(len(requests)))
    weights_2K = blend.weights_2K.copy()
    weights_2K[:, replay.fits] = best_2K[:, : len(replay.fits)]
    if QUERY in blend.sources:
        weights_2K[:, blend.sources.index(QUERY)] = query_weight(blend, weights_2K, spread, params.blend_fit)
    found = LiveWeights(counts.half_lives_s, weights_2K, best_2K[:, len(replay.fits) :])
    typical = zip([*blend.sources, *found.names], found.typical, strict=True)
    logger.info("live blend  %s", "  ".join(f"{name} {weight:.3f}" for name, weight in typical))
    return found


def _competing_items(
    num_items: int, requests: Requests, stream: Stream, rng: np.random.Generator, params: LiveFitParams
) -> np.ndarray:
    """Positions of the items that compete, int64 in order: all of a catalogue that is not too large."""
    assert requests.target_items is not None
    if num_items <= params.max_items:
        return np.arange(num_items)
    during = stream.items[stream.before(int(requests.times[0])) :]
    counts = np.bincount(during, minlength=num_items)
    busiest = np.argsort(-counts, kind="stable")[: params.max_items // 2]
    targets = rng.permutation(np.unique(requests.target_items))[: params.max_items // 4]
    drawn = rng.choice(num_items, params.max_items // 4, replace=False)
    return np.unique(np.concatenate([busiest[counts[busiest] > 0], targets, drawn]))


@dataclass(frozen=True)
class _Replay:
    """The requests of a replay, and what is fitted and measured on some of them."""

    blend: Blend
    item_vectors_IW: np.ndarray
    tower_queries: Callable[[Requests], np.ndarray]
    requests: Requests
    stream: Stream
    pool: np.ndarray
    repeats: bool
    rng: np.random.Generator
    read_texts: ReadTexts | None
    params: LiveFitParams
    counts: LiveCountParams

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Those of `WORDS` that requests have."""
        found = self.read_texts is not None and any(context_texts(self.requests)) and self.blend.text_IC is not None
        return (CONTEXT_TEXT,) if found else ()

    @cached_property
    def fits(self) -> np.ndarray:
        """Places of the sources of the blend whose weights are fitted, int64."""
        names = self.blend.sources
        return np.array([k for k, name in enumerate(names) if name not in WORDS or name in self.words])

    def weights(self, live: float) -> np.ndarray:
        """The blend's weights, and one for all live sources: float32 [2, K + H]."""
        of_live = np.array([[live], [0]]).repeat(len(self.counts.half_lives_s), axis=1)
        return np.concatenate([self.blend.weights_2K[:, self.fits], of_live], 1).astype(np.float32)

    def fitted(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """The weights that rank the targets of these requests best, float32 [2, K + H], and the spread of their scores."""
        fit = self._fit(self._some(rows))
        best = fit.best(torch.from_numpy(self.weights(self.params.start)), self.params.blend_fit)
        return np.asarray(best.numpy(), np.float32), fit.spread(best)

    def with_and_without_live(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weights that rank the targets of these requests best, and the best ones with live weights of 0; both
        float32 [2, K + H], and fitted to the same targets."""
        fit, start = self._fit(self._some(rows)), torch.from_numpy(self.weights(self.params.start))
        best = fit.best(start, self.params.blend_fit)
        own = fit.without_live()
        held = torch.zeros_like(start)
        held[:, : own.scores_NIK.shape[-1]] = own.best(start[:, : own.scores_NIK.shape[-1]], self.params.blend_fit)
        return best.numpy(), held.numpy()

    def _some(self, rows: np.ndarray) -> np.ndarray:
        """As many of the rows as lie in memory at a time, at even distances."""
        return rows[np.linspace(0, len(rows) - 1, min(len(rows), self._at_once)).astype(int)]

    def gain(self, halves: tuple[np.ndarray, np.ndarray]) -> Interval:
        """NDCG@10 with live sources minus that without, with the interval of the paired difference; the weights of one half
        of the requests (rows, int64) are fitted to the other half."""
        differences = []
        for fitted, judging in (halves, halves[::-1]):
            weights = self.with_and_without_live(fitted)
            parts = [judging[start : start + self._at_once] for start in range(0, len(judging), self._at_once)]
            differences += [self._difference(part, *weights) for part in parts]
        difference = np.concatenate(differences)
        resampled = bootstrap_means(difference[:, None], num=self.params.resamples, seed=0)[:, 0]
        return percentile_interval(float(difference.mean()), resampled)

    @property
    def _at_once(self) -> int:
        """Requests whose scores of all sources lie in memory at a time."""
        return max(self.params.blend_fit.scores_at_once // (len(self.pool) * self.weights(0.0).shape[1]), 16)

    def _difference(self, rows: np.ndarray, weights_2K: np.ndarray, other_2K: np.ndarray) -> np.ndarray:
        """NDCG@10 of each request with weights minus that with others, over the items of the pool: float64 [N]."""
        some, fit, ndcg = self.requests.take(rows), self._fit(rows), []
        assert some.target_offsets is not None and some.target_items is not None
        for weights in (weights_2K, other_2K):
            scores = fit.scores(torch.from_numpy(weights)).numpy()
            scores[fit.excluded_NI.numpy()] = -np.inf
            top = top_k(scores, _K)
            lists = np.where(top >= 0, self.pool[np.maximum(top, 0)], -1)
            ndcg.append(request_metrics(lists, some.target_offsets, some.target_items, [_K])[f"ndcg@{_K}"])
        return ndcg[0] - ndcg[1]

    def _fit(self, rows: np.ndarray) -> BlendFit:
        """Scores of all sources for some requests, each with the counts of its own moment."""
        some, blend, num_items = self.requests.take(rows), self.blend, len(self.item_vectors_IW)
        read = self.read_texts if self.words else None
        words = blend.word_queries(word_queries(some, read))
        words = {name: words.get(name, np.zeros((len(some), blend.text_IC.shape[1]), np.float32))
                 for name in self.words if blend.text_IC is not None}  # fmt: skip
        queries = self.tower_queries(some)
        own_NIK = scores_of_sources(blend, self.item_vectors_IW, queries, some, self.pool, words)
        own_NIK[..., [blend.sources[k] for k in self.fits].index(NEW)] = ~blend.memory.known_I[self.pool]
        replayed = Replayed(self.stream, LiveCounts(num_items, self.counts))
        live_NIH = source_features(replayed, some.times, self.pool, num_items)
        return BlendFit.of(
            np.concatenate([own_NIK, live_NIH], -1),
            some,
            self.pool,
            self.rng,
            repeats=self.repeats,
            num_live=live_NIH.shape[-1],
            params=self.params.blend_fit,
        )
