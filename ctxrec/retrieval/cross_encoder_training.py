"""Train the second stage of a finished run, on its validation requests (`ctxrec.retrieval.rerank_candidates`).

Requests are divided at random. The largest part trains; by the second the epoch and the weight beside the retriever's
score are chosen; the third measures what is gained, and decides whether the second stage is used at all.

A request trains when one of its targets is among the retriever's best candidates (deeper ones than are put in a new
order later, for more to learn from): these alone can be put in another place, and a target that was not retrieved
would teach that bad scores are good.

Legend: N requests, P pairs of a request and a candidate.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ctxrec.core import storage
from ctxrec.core.config import Config, EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.core.terminal import progress_bar
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.data.requests import validation_requests
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import has_text
from ctxrec.metrics.intervals import bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.cross_encoder import (
    CrossEncoder,
    Found,
    Reranker,
    merge_adapter,
    new_order,
    retrieved_features,
    titles_of,
)
from ctxrec.retrieval.pair_reader import PairReader
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.request_texts import request_texts
from ctxrec.retrieval.rerank_candidates import Examples, find_candidates
from ctxrec.retrieval.reranker_files import save_reranker

logger = logging.getLogger(__name__)

_K = 10  # NDCG@10 chooses and measures
_METRIC = f"ndcg@{_K}"


@dataclass(frozen=True)
class RerankTrainingParams:
    """Tuned numbers of the second stage's training. No measurement supports any of them.

    Attributes:
        num_requests: limit of time: number of validation requests that are used.
        history_items: number of latest items of the history whose titles are read.
        item_tokens: number of tokens of a candidate, at most; no more than half of `rerank.max_tokens`.
        head_lr: peak learning rate of the head.
        negatives: number of candidates that were not taken, drawn for each one that was.
        depth: the network learns from `depth` times as many candidates as it puts in a new order later.
        choice_share, check_share: shares of the requests that choose the epoch and the weight, and that measure.
        weights: weights beside the retriever's score that are tried.
        max_targets: number of targets of a request that a step learns from, drawn at random.
        warmup: share of the steps in which the learning rates rise.
        clip: norm of the gradients at most.
        resamples: number of bootstrap resamples of the measured gain.
        requests_at_once: limit of memory: number of requests that are ranked at once.
    """

    num_requests: int = 4_000
    history_items: int = 6
    item_tokens: int = 24
    head_lr: float = 5e-3
    negatives: int = 7
    depth: int = 4
    choice_share: float = 0.2
    check_share: float = 0.2
    weights: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
    max_targets: int = 3
    warmup: float = 0.1
    clip: float = 1.0
    resamples: int = 1000
    requests_at_once: int = 64


RERANK_TRAINING = RerankTrainingParams()


def train_reranker(run: str, data: PreparedData, config: Config, *, out: str | None = None) -> dict[str, Any]:
    """Train the second stage of a finished run and write it to RUN/reranker, or to `out`.

    Args:
        run: path or URI.
        data: the prepared data of the run.
        config: options of the run; `rerank` matters here.

    Returns:
        What the third part of the requests says: "requests", "ndcg@10" of the "retriever" and "reranked", and the
        paired "gain" with its interval; "weight" 0 where the second stage adds nothing and the retriever's order stays.

    Raises:
        UserError: there is no encoder, no text, no validation request, or the run lacks its checkpoints.
    """
    encoder_path = _encoder_path(config)
    texts = data.item_texts
    if not has_text(texts).any():
        raise UserError(f"the items of {data.path} have no text; expected some, which the second stage reads")
    requests = validation_requests(data, RERANK_TRAINING.num_requests)
    if requests is None:
        raise UserError(
            f"the data at {data.path} has no validation request to learn from; set split.valid above 0 in the dataset "
            "spec, prepare and train again"
        )
    recommender = recommender_before_validation(run, data)
    logger.info("the retriever ranks %d validation requests", len(requests))
    examples = find_candidates(recommender, requests, config.rerank.candidates * RERANK_TRAINING.depth)
    torch.manual_seed(config.train.seed)
    reranker = make_reranker(encoder_path, texts, config, model_version=recommender.model_version)
    trainer = Trainer(reranker, config, recommender.features, titles_of(recommender.items))
    gain = trainer.fit(examples)
    save_reranker(out or RunPaths(run).reranker, reranker)
    return gain


def _encoder_path(config: Config) -> str:
    name = config.rerank.encoder or config.encoder.name
    if not name:
        raise UserError("neither rerank.encoder nor encoder.name is set; expected an encoder that reads the texts")
    option = "rerank.encoder" if config.rerank.encoder else "encoder.name"
    return resolve_encoder(name, storage.cache_dir(), option=option)


def make_reranker(encoder_path: str, texts: list[str], config: Config, *, model_version: str) -> Reranker:
    """A second stage that gives the retriever's order, with an adapter to train."""
    options = config.rerank
    encoder_config = EncoderConfig(
        name=encoder_path,
        rank=options.rank,
        alpha=2.0 * options.rank,
        top_layers=0,
        max_tokens=options.max_tokens,
        token_budget=max(config.encoder.token_budget, options.max_tokens),
    )
    encoder = TextEncoder(encoder_config, encoder_path, tune=True)
    reader = PairReader(encoder_path, max_tokens=options.max_tokens)
    return Reranker(
        network=CrossEncoder(encoder, token_budget=encoder_config.token_budget),
        reader=reader,
        items=reader.plain(texts, min(RERANK_TRAINING.item_tokens, options.max_tokens // 2)),
        weight=1.0,
        candidates=options.candidates,
        history_items=RERANK_TRAINING.history_items,
        model_version=model_version,
        gain={},
    )


class Trainer:
    """Trains a fresh `Reranker` in place."""

    def __init__(
        self,
        reranker: Reranker,
        config: Config,
        features: FeatureMeta,
        titles: list[str | None],
        params: RerankTrainingParams = RERANK_TRAINING,
    ) -> None:
        self.params, self.seed = params, config.train.seed
        self.reranker, self.options = reranker, config.rerank
        self.features, self.titles = features, titles
        self.rng = np.random.default_rng(config.train.seed)
        reranker.network.to("cuda" if torch.cuda.is_available() else "cpu")

    def fit(self, examples: Examples) -> dict[str, Any]:
        """Train, choose, measure; leaves the best weights in the reranker, its adapter merged. Returns the gain."""
        train, choice, check = self._divide(examples)
        rows = train.with_hit()
        logger.info(
            "%d of %d requests have a target among the best %d; %d and %d others choose and measure",
            len(rows), len(train), self.options.candidates * self.params.depth, len(choice), len(check),
        )  # fmt: skip
        weight, state = self._train(train.take(rows), choice) if len(rows) else (0.0, self._state())
        self.reranker.network.load_state_dict(state, strict=False)
        merge_adapter(self.reranker.network)
        self.reranker.weight = weight
        gain = self._measure(check)
        if weight == 0 or gain["gain"]["mean"] <= 0:
            self.reranker.weight = 0.0
        gain["weight"] = self.reranker.weight
        self.reranker.gain = gain
        self.reranker.network.cpu()
        return gain

    def _divide(self, examples: Examples) -> list[Examples]:
        """The parts that train, choose and measure."""
        order = self.rng.permutation(len(examples))
        num_choice, num_check = (
            round(share * len(order)) for share in (self.params.choice_share, self.params.check_share)
        )
        parts = np.split(order, [len(order) - num_choice - num_check, len(order) - num_check])
        return [examples.take(part) for part in parts]

    def _train(self, train: Examples, choice: Examples) -> tuple[float, dict[str, torch.Tensor]]:
        """The weight beside the retriever's score and the network's weights that gain most on the choosing part."""
        optimizer, schedule = self._optimizer(len(train))
        texts = request_texts(train.requests, self.features, self.titles, history_items=self.reranker.history_items)
        asked = self.reranker.reader.plain(texts, self.options.max_tokens)
        best, weight, state, begin = 0.0, 0.0, self._state(), time.monotonic()
        for epoch in range(self.options.epochs):
            losses, order = [], self.rng.permutation(len(train))
            starts = range(0, len(order), self.options.batch_size)
            bar = progress_bar(len(starts), f"rerank epoch {epoch + 1}", "step")
            for start in starts:
                self.reranker.network.train()
                optimizer.zero_grad()
                losses.append(self._backward(train, asked, order[start : start + self.options.batch_size]))
                torch.nn.utils.clip_grad_norm_(self.reranker.network.parameters(), self.params.clip)
                optimizer.step()
                schedule.step()
                bar.update()
            bar.close()
            gains = self._gains(choice)
            found = max(gains, key=lambda w: gains[w])
            logger.info(
                "epoch %d: loss %.4f, best weight %g, NDCG@10 %+.4f on the choosing part, %.0f s",
                epoch + 1, np.mean(losses), found, gains[found], time.monotonic() - begin,
            )  # fmt: skip
            if gains[found] > best:
                best, weight, state = gains[found], found, self._state()
        return weight, state

    def _optimizer(self, num_train: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        network, options = self.reranker.network, self.options
        adapter = [p for p in network.encoder.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [{"params": adapter, "lr": options.lr}, {"params": network.head.parameters(), "lr": self.params.head_lr}]
        )
        steps = options.epochs * -(-num_train // options.batch_size)
        warm = max(self.params.warmup * steps, 1)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, max(steps - step, 1) / max(steps - warm, 1), 1.0)
        )

    def _backward(self, train: Examples, asked: Tokens, rows: np.ndarray) -> float:
        """Mean binary cross-entropy over targets and candidates drawn beside them, and its gradients.

        A few pairs at a time, as many as one pass of the encoder takes, so that memory does not grow with the step.
        """
        row_P, item_P, features_P, taken_P = [], [], [], []
        for row in rows.tolist():
            items, scores = train.found[row]
            picked = self._draw(train.hits[row])
            row_P.append(np.full(len(picked), row))
            item_P.append(items[picked])
            features_P.append(retrieved_features(scores, self.options.candidates)[picked])
            taken_P.append(train.hits[row][picked])
        network, reader, total = self.reranker.network, self.reranker.reader, 0.0
        row, item, features, taken = map(np.concatenate, (row_P, item_P, features_P, taken_P))
        at_once = max(network.token_budget // reader.max_tokens, 1)
        for start in range(0, len(row), at_once):
            part = slice(start, start + at_once)
            logits = network(reader.pairs(asked, self.reranker.items, row[part], item[part]), features[part])
            wanted = torch.from_numpy(taken[part].astype(np.float32)).to(logits.device)
            loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(row)
            loss.backward()
            total += float(loss.detach())
        return total

    def _draw(self, hits: np.ndarray) -> np.ndarray:
        """Places of the targets among a request's candidates, and of others drawn at random."""
        taken, others = np.flatnonzero(hits), np.flatnonzero(~hits)
        taken = self.rng.permutation(taken)[: self.params.max_targets]
        num = min(len(others), self.params.negatives * len(taken))
        return np.concatenate([taken, self.rng.choice(others, num, replace=False)])

    def _state(self) -> dict[str, torch.Tensor]:
        """What is trained."""
        network = self.reranker.network
        return {n: copy.deepcopy(p.detach()) for n, p in network.named_parameters() if p.requires_grad}

    def _gains(self, part: Examples) -> dict[float, float]:
        """What each weight adds to the retriever's NDCG@10 on a part of the requests."""
        retrieved = self._ndcg(part, None, 0.0)
        logits = self._logits(part)
        return {
            w: float((self._ndcg(part, logits, w) - retrieved).mean()) if len(part) else 0.0
            for w in self.params.weights
        }

    def _measure(self, part: Examples) -> dict[str, Any]:
        """NDCG@10 with and without the second stage, the paired difference with its interval, and the time it takes."""
        retrieved, begin = self._ndcg(part, None, 0.0), time.perf_counter()
        logits = self._logits(part)
        seconds = time.perf_counter() - begin
        reranked = self._ndcg(part, logits, self.reranker.weight)
        if not len(part):
            nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}
            return {"requests": 0, "retriever": 0.0, "reranked": 0.0, "gain": nothing}
        differences = reranked - retrieved
        resampled = bootstrap_means(differences[:, None], num=self.params.resamples, seed=self.seed)[:, 0]
        num = max(len(part.with_hit()), 1)
        logger.info("%.0f ms a request for %d candidates", 1e3 * seconds / num, self.options.candidates)
        return {
            "requests": len(part),
            "retriever": float(retrieved.mean()),
            "reranked": float(reranked.mean()),
            "gain": percentile_interval(float(differences.mean()), resampled),
        }

    def _candidates(self, part: Examples) -> Found:
        num = self.options.candidates
        return [(items[:num], scores[:num]) for items, scores in part.found]

    def _logits(self, part: Examples) -> list[np.ndarray]:
        """Logits of the candidates of each request; zeros where no target is among them and no order helps."""
        found = self._candidates(part)
        logits = [np.zeros(len(items), np.float32) for items, _ in found]
        useful = [n for n in range(len(part)) if part.hits[n][: self.options.candidates].any()]
        for start in range(0, len(useful), self.params.requests_at_once):
            rows = np.array(useful[start : start + self.params.requests_at_once])
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
                items = items[new_order(scores, logits[n], weight, self.options.candidates)]
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
