"""Fit the weights of a blend with live sources to a replay of the last part of the log; a log that stands still gets none.

Legend: N requests, I items that compete, K sources of the blend, H live sources.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ctxrec.data.replay import Stream
from ctxrec.data.requests import Requests
from ctxrec.index.topk import top_k
from ctxrec.memory.blend import NEW, Blend
from ctxrec.memory.blend_fit import BLEND_FIT, BlendFit, BlendFitParams, minimise, query_weight, scores_of_sources
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCountParams, LiveCounts
from ctxrec.memory.live_replay import Replayed, source_features
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.memory.request_words import QUERY, WORDS, ReadTexts, context_texts, word_queries
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics

logger = logging.getLogger(__name__)

_K = 10  # cut-off of the lists that decide


@dataclass(frozen=True)
class LiveFitParams:
    """Tuned numbers and limits of the fit of the live sources. No measurement supports them.

    Attributes:
        requests: limit of time: so many requests are replayed at most, at even distances.
        max_items: limit of time and memory: number of items that compete, the targets, those of the stream that have most
            events during the replay, and others drawn at random.
        fit_share: share of the replay, by time, that the weights are fitted to before the rest decides.
        start: weight of every live source before the fit.
        resamples: of the bootstrap that decides.
        blend_fit: those of the fit itself.
    """

    requests: int = 3_000
    max_items: int = 4_000
    fit_share: float = 0.6
    start: float = 0.3
    resamples: int = 1_000
    blend_fit: BlendFitParams = BLEND_FIT


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
    """The weights of all sources, live ones among them, that rank the targets of a replay best; None where the later part
    of the replay shows no gain.

    Each request is asked at its own time, and the live sources know the events before it. Weights are fitted as those of
    a blend are, from the blend's on, to the earlier part of the replay. They count if the lower bound of the paired
    difference to the blend in NDCG@10 on the later part is above 0, and are then fitted again to all of the replay.

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
    num_items, num_live = len(item_vectors_IW), len(counts.half_lives_s)
    most = params.blend_fit.scores_at_once // (min(num_items, params.max_items) * (len(blend.sources) + num_live))
    requests = requests.evenly(max(min(params.requests, most), 16))
    pool = _competing_items(num_items, requests, stream, rng, params)
    words = blend.word_queries(word_queries(requests, read_texts if any(context_texts(requests)) else None))
    fitted = np.array([k for k, name in enumerate(blend.sources) if name not in WORDS or name in words])
    own = scores_of_sources(blend, item_vectors_IW, tower_queries(requests), requests, pool, words)
    own[..., [blend.sources[k] for k in fitted].index(NEW)] = ~blend.memory.known_I[pool]
    live = source_features(Replayed(stream, LiveCounts(num_items, counts)), requests.times, pool, num_items)
    replay = _Replay(np.concatenate([own, live], -1), num_live, requests, pool, repeats, rng, params)
    start_2K = np.concatenate([blend.weights_2K[:, fitted], np.full((2, num_live), [[params.start], [0]])], 1)
    still_2K = np.concatenate([blend.weights_2K[:, fitted], np.zeros((2, num_live))], 1)
    cut = max(int(params.fit_share * len(requests)), 1)
    early, late = np.arange(cut), np.arange(cut, len(requests))
    if not len(late):
        return None
    gain = replay.gain(late, replay.fitted(early, start_2K)[0], still_2K)
    kept = gain["low"] > 0
    told = "live sources %s: NDCG@10 of the later part of the replay changes by %+.4f (%+.4f to %+.4f)"
    logger.info(told, "count" if kept else "do not count", gain["mean"], gain["low"], gain["high"])
    if not kept:
        return None
    best_2K, spread = replay.fitted(np.arange(len(requests)), start_2K)
    weights_2K = blend.weights_2K.copy()
    weights_2K[:, fitted] = best_2K[:, : len(fitted)]
    if QUERY in blend.sources:
        weights_2K[:, blend.sources.index(QUERY)] = query_weight(blend, weights_2K, spread, params.blend_fit)
    found = LiveWeights(counts.half_lives_s, weights_2K, best_2K[:, len(fitted) :])
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
    """Scores of all sources for the requests of a replay, and what is fitted and measured on some of them."""

    scores_NIK: np.ndarray
    num_live: int  # of the sources, the last ones
    requests: Requests
    pool: np.ndarray
    repeats: bool
    rng: np.random.Generator
    params: LiveFitParams

    def fitted(self, rows: np.ndarray, start_2K: np.ndarray) -> tuple[np.ndarray, float]:
        """The weights that rank the targets of these requests best, float32 [2, K], and the spread of their scores."""
        options, fit = self.params.blend_fit, self._fit(rows)
        start = torch.from_numpy(start_2K.astype(np.float32))
        likeliest = minimise(fit.nll, start, penalty=options.nll_penalty, iterations=options.iterations)
        best = minimise(fit.approx_ndcg_loss, likeliest, penalty=options.ranking_penalty, iterations=options.iterations)
        return np.asarray(best.numpy(), np.float32), fit.spread(best)

    def gain(self, rows: np.ndarray, weights_2K: np.ndarray, other_2K: np.ndarray) -> Interval:
        """NDCG@10 of some requests with weights minus that with others, with the interval of the paired difference."""
        fit = self._fit(rows)
        difference = self._ndcg(rows, fit, weights_2K) - self._ndcg(rows, fit, other_2K)
        resampled = bootstrap_means(difference[:, None], num=self.params.resamples, seed=0)[:, 0]
        return percentile_interval(float(difference.mean()), resampled)

    def _fit(self, rows: np.ndarray) -> BlendFit:
        return BlendFit.of(
            self.scores_NIK[rows],
            self.requests.take(rows),
            self.pool,
            self.rng,
            repeats=self.repeats,
            num_live=self.num_live,
            params=self.params.blend_fit,
        )

    def _ndcg(self, rows: np.ndarray, fit: BlendFit, weights_2K: np.ndarray) -> np.ndarray:
        """NDCG@10 of each request over the items of the pool: float64 [N]."""
        some = self.requests.take(rows)
        assert some.target_offsets is not None and some.target_items is not None
        scores = fit.scores(torch.from_numpy(weights_2K.astype(np.float32))).numpy()
        scores[fit.excluded_NI.numpy()] = -np.inf
        top = top_k(scores, _K)
        lists = np.where(top >= 0, self.pool[np.maximum(top, 0)], -1)
        return request_metrics(lists, some.target_offsets, some.target_items, [_K])[f"ndcg@{_K}"]
