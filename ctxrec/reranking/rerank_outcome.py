"""Whether a trained second stage stays, and with which weight: decided by validation requests, none of which trained it.

By one part of them the epoch and the weight beside the retriever's score are chosen; the other part measures what is
gained, and decides whether the second stage is used at all.

Legend: N requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ctxrec.data.prepared import FeatureMeta
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics
from ctxrec.reranking.rerank_candidates import Examples
from ctxrec.reranking.rerank_params import RERANK_TRAINING, RerankTrainingParams
from ctxrec.retrieval.cross_encoder import Found, Reranker, merge_adapter, new_order
from ctxrec.training import checkpoint

logger = logging.getLogger(__name__)

_K = 10  # NDCG@10 chooses and measures
_METRIC = f"ndcg@{_K}"


class Outcome:
    """Chooses among trained weights of a second stage, and measures what it gains.

    Args:
        reranker: whose weights they are.
        features: vocabularies of the requests' codes.
        titles: of the catalogue.
        seed: of the resampling.
        dtype: what products are computed in, as in the training.
        params: tuned numbers.
    """

    def __init__(
        self,
        reranker: Reranker,
        features: FeatureMeta,
        titles: list[str | None],
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        params: RerankTrainingParams = RERANK_TRAINING,
    ) -> None:
        self.dtype = dtype
        self.reranker, self.features, self.titles, self.seed, self.params = reranker, features, titles, seed, params

    def decide(self, epochs: Iterable[dict[str, torch.Tensor]], choice: Examples, check: Examples) -> dict[str, Any]:
        """Choose, measure, and leave the result in the reranker, its adapter merged; returns the gain.

        Args:
            epochs: trained weights, one after the other.
            choice: chooses the epoch and the weight.
            check: measures; the second stage gets weight 0 where it gains nothing here.
        """
        network = self.reranker.network.to("cuda" if torch.cuda.is_available() else "cpu")
        best, weight = 0.0, 0.0
        state = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
        for number, weights in enumerate(epochs, 1):
            checkpoint.load_weights(network, weights)
            gains = self._gains(choice)
            found = max(gains, key=lambda w: gains[w])
            logger.info("epoch %d: best weight %g, NDCG@10 %+.4f on the choosing part", number, found, gains[found])
            if gains[found] > best:
                best, weight, state = gains[found], found, weights
        checkpoint.load_weights(network, state)
        merge_adapter(network)
        self.reranker.weight = weight
        gain = self._measure(check)
        if weight == 0 or gain["gain"]["mean"] <= 0:
            self.reranker.weight = 0.0
        gain["weight"] = self.reranker.weight
        self.reranker.gain = gain
        network.cpu()
        return gain

    def _gains(self, part: Examples) -> dict[float, float]:
        """What each weight adds to the retriever's NDCG@10 on a part of the requests."""
        retrieved, logits = self._ndcg(part, None, 0.0), self._logits(part)
        return {
            w: float((self._ndcg(part, logits, w) - retrieved).mean()) if len(part) else 0.0
            for w in self.params.weights
        }

    def _measure(self, part: Examples) -> dict[str, Any]:
        """NDCG@10 with and without the second stage, the paired difference with its interval, and the time it takes."""
        if not len(part):
            nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}
            return {"requests": 0, "retriever": 0.0, "reranked": 0.0, "gain": nothing}
        retrieved, begin = self._ndcg(part, None, 0.0), time.perf_counter()
        logits = self._logits(part)
        seconds = time.perf_counter() - begin
        reranked = self._ndcg(part, logits, self.reranker.weight)
        differences = reranked - retrieved
        resampled = bootstrap_means(differences[:, None], num=self.params.resamples, seed=self.seed)[:, 0]
        num = max(len(self._useful(part)), 1)
        logger.info("%.0f ms a request for %d candidates", 1e3 * seconds / num, self.reranker.candidates)
        return {
            "requests": len(part),
            "retriever": float(retrieved.mean()),
            "reranked": float(reranked.mean()),
            "gain": percentile_interval(float(differences.mean()), resampled),
        }

    def _candidates(self, part: Examples) -> Found:
        num = self.reranker.candidates
        return [(items[:num], scores[:num]) for items, scores in part.found]

    def _useful(self, part: Examples) -> list[int]:
        """Rows with a target among the candidates, as no other order helps the others."""
        return [n for n in range(len(part)) if part.hits[n][: self.reranker.candidates].any()]

    def _logits(self, part: Examples) -> list[np.ndarray]:
        """Logits of the candidates of each request; zeros where no target is among them."""
        found = self._candidates(part)
        logits = [np.zeros(len(items), np.float32) for items, _ in found]
        useful = self._useful(part)
        for start in range(0, len(useful), self.params.requests_at_once):
            rows = np.array(useful[start : start + self.params.requests_at_once])
            device = self.reranker.network.head.weight.device.type
            with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                made = self.reranker.logits(
                    part.requests.take(rows), [found[n] for n in rows], features=self.features, titles=self.titles
                )
            for n, row in zip(rows, made, strict=True):
                logits[n] = row
        return logits

    def _ndcg(self, part: Examples, logits: list[np.ndarray] | None, weight: float) -> np.ndarray:
        """NDCG@10 of each request, by the retriever's order or (with logits) by the second stage's: float64 [N]."""
        top = np.full((len(part), _K), -1, np.int64)
        for n, (items, scores) in enumerate(self._candidates(part)):
            if logits is not None:
                items = items[new_order(scores, logits[n], weight, self.reranker.candidates)]
            top[n, : len(items)] = items[:_K]
        requests = part.requests
        assert requests.target_offsets is not None and requests.target_items is not None
        return request_metrics(top, requests.target_offsets, requests.target_items, [_K])[_METRIC]


def summary(gain: dict[str, Any]) -> str:
    """What a training gave, in one line or two."""
    interval = gain["gain"]
    line = (
        f"{gain['requests']} validation requests kept apart: NDCG@10 {gain['retriever']:.4f} of the retriever, "
        f"{gain['reranked']:.4f} re-ranked, {interval['mean']:+.4f} "
        f"(95 % interval {interval['low']:+.4f} to {interval['high']:+.4f})"
    )
    if gain["weight"] == 0:
        return f"{line}\nnothing gained: the second stage has weight 0, and the retriever's order stays"
    return f"{line}\nuse it with --set rerank.use=true"
