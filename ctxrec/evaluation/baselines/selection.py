"""Choose the options of the baselines on the validation split, and fit the baselines to the events of earlier splits."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ctxrec.core import schema, storage
from ctxrec.core.config import Config, EncoderConfig
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.log_statistics import LogStatistics, gather_statistics, scan_log, users_of_both
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import encode_catalogue
from ctxrec.evaluation.baselines.als import ALS
from ctxrec.evaluation.baselines.ensemble import Ensemble, choose_weights, standardised
from ctxrec.evaluation.baselines.itemknn import ItemKNN
from ctxrec.evaluation.baselines.markov import Markov
from ctxrec.evaluation.baselines.popularity import Popularity, RecentPopularity
from ctxrec.evaluation.baselines.protocol import Baseline
from ctxrec.evaluation.baselines.text import UntunedEncoder
from ctxrec.evaluation.systems import ENSEMBLE, TEXT
from ctxrec.index.topk import top_k
from ctxrec.memory.ease import EASE
from ctxrec.metrics.ranking import request_metrics

logger = logging.getLogger(__name__)

SPLITS = {"valid": schema.VALID, "test": schema.TEST}
MARKOV_LAST, MARKOV_DECAY = 10, 0.7
CHOICE_K = 10  # options are chosen by NDCG at this cut-off
_CELLS = 1 << 25  # scores of one component that a choice holds in memory at most (128 MB)


@dataclass(frozen=True)
class BaselineParams:
    """What the baselines' own options are chosen from. The first value serves where there is no split to choose on.

    Attributes:
        ease_weights: ridge weights of EASE. On MovieLens-100K 500 is best (NDCG@10 .074; 50 has .070).
        als_factors: numbers of factors of ALS.
        als_seed: seed of the factors of ALS.
        neighbours: number of neighbours of an item that ItemKNN keeps. No measurement supports it.
        choice_requests: limit of time: number of validation requests that choose.
    """

    ease_weights: tuple[float, ...] = (500.0, 200.0, 50.0)
    als_factors: tuple[int, ...] = (64, 128)
    als_seed: int = 0
    neighbours: int = 100
    choice_requests: int = 5_000


BASELINES = BaselineParams()


@dataclass(frozen=True)
class BaselineOptions:
    """Options chosen on the validation split: EASE's ridge weight, the number of ALS factors, the ensemble's weights."""

    ease_lambda: float
    als_factors: int
    ensemble: dict[str, float]


@dataclass(frozen=True)
class FittedBaselines:
    """Fitted baselines with their options and the notes about them."""

    fitted: dict[str, Baseline]
    item_counts: np.ndarray  # int64 [I] events that the baselines were fitted on
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def fit_baselines(
    prepared: PreparedData, split: str, config: Config, *, run: str | None, params: BaselineParams = BASELINES
) -> FittedBaselines:
    """Fit every baseline that the data allow for ranking `split`.

    Options are chosen with models fitted on the training events alone, by NDCG@10 on the validation split;
    then all are fitted anew on the events of all earlier splits. Where `split` is the validation split, or
    there is none, the first of each of the choices serves.

    Args:
        prepared: the data.
        split: "valid" or "test".
        config: `evaluate.max_baseline_items` and the section `encoder` count.
        run: a run folder with vectors of the un-tuned encoder; None encodes the catalogue here.
        params: what the options are chosen from.
    """
    most, notes = config.evaluate.max_baseline_items, []
    matrices = prepared.num_items <= most
    if not matrices:
        notes.append(
            f"ItemKNN, EASE and the ensemble left out: {prepared.num_items:,} items are more than "
            f"evaluate.max_baseline_items ({most:,})"
        )
    text = _text_baseline(prepared, config, run, notes)
    options, chosen = BaselineOptions(params.ease_weights[0], params.als_factors[0], dict(_DEFAULT_WEIGHTS)), False
    limit = max(1, min(params.choice_requests, _CELLS // max(prepared.num_items, 1))) if split == "test" else 0
    scan = scan_log(prepared, history=config.model.history, num_validation_requests=limit, keep_events=True)
    requests = scan.validation
    if requests is not None:
        logger.info("choosing the baselines' options on %s validation requests", f"{len(requests):,}")
        log = gather_statistics(scan.training_events(schema.VALID), prepared.num_items)
        users_II = users_of_both(log.users_items) if matrices else None
        repeats = prepared.spec.split.repeats
        options, chosen = _choose(log, users_II, text, requests, params, repeats=repeats), True
        del log, users_II
    log = gather_statistics(scan.training_events(SPLITS[split]), prepared.num_items)
    fitted: dict[str, Baseline] = {
        "popularity": Popularity().fit(log),
        "popularity_7d": RecentPopularity().fit(log),
        "markov": Markov().fit(log),
        "als": ALS(factors=options.als_factors, seed=params.als_seed).fit(log),
    }
    if matrices:
        users_II = users_of_both(log.users_items)
        fitted["itemknn"] = ItemKNN(neighbours=params.neighbours).fit(users_II)
        fitted["ease"] = EASE(weight=options.ease_lambda).fit(users_II)
    if text is not None:
        fitted[TEXT] = text
    if matrices:
        parts = _components(log, fitted["ease"], text)
        weights = _renormalised({name: options.ensemble.get(name, 0.0) for name in parts})
        fitted[ENSEMBLE] = Ensemble(parts, weights)
    for note in notes:
        logger.warning(note)
    return FittedBaselines(fitted, log.item_counts, _report(options, fitted, chosen=chosen), notes)


_DEFAULT_WEIGHTS = {"ease": 0.4, "markov10": 0.3, TEXT: 0.2, "log_popularity": 0.1}


def _renormalised(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _report(options: BaselineOptions, fitted: dict[str, Baseline], *, chosen: bool) -> dict[str, Any]:
    """The options in metrics.json, for the baselines that exist."""
    said: dict[str, Any] = {"chosen_on": "valid" if chosen else "defaults", "als_factors": options.als_factors}
    if "ease" in fitted:
        ensemble = fitted[ENSEMBLE]
        assert isinstance(ensemble, Ensemble)
        said |= {"ease_lambda": options.ease_lambda, ENSEMBLE: {k: round(w, 4) for k, w in ensemble.weights.items()}}
    return said


def _components(log: LogStatistics, ease: Baseline, text: Baseline | None) -> dict[str, Baseline]:
    """The components of the ensemble."""
    parts = {
        "ease": ease,
        "markov10": Markov(last=MARKOV_LAST, decay=MARKOV_DECAY).fit(log),
        "log_popularity": Popularity(logarithm=True).fit(log),
    }
    return parts if text is None else parts | {TEXT: text}


@dataclass(frozen=True)
class _Quality:
    """NDCG of scores on the requests that choose."""

    requests: Requests
    repeats: bool

    def __call__(self, scores_NI: np.ndarray) -> float:
        top = top_k(scores_NI, CHOICE_K, None if self.repeats else self.requests.seen())
        offsets, items = self.requests.target_offsets, self.requests.target_items
        assert offsets is not None and items is not None
        return float(request_metrics(top, offsets, items, [CHOICE_K])[f"ndcg@{CHOICE_K}"].mean())


def _choose(
    log: LogStatistics,
    users_II: np.ndarray | None,
    text: Baseline | None,
    requests: Requests,
    params: BaselineParams,
    *,
    repeats: bool,
) -> BaselineOptions:
    """The options that rank the requests best, with models fitted to the events before them."""
    quality = _Quality(requests, repeats)
    factors = {
        f: quality(ALS(factors=f, seed=params.als_seed).fit(log).scores(requests).astype(np.float32))
        for f in params.als_factors
    }
    best_factors = max(factors, key=lambda f: factors[f])
    logger.info("ALS factors: %s", _listed(factors))
    if users_II is None:
        return BaselineOptions(params.ease_weights[0], best_factors, {})
    lambdas, mixes, others = {}, {}, None
    for weight in params.ease_weights:
        ease = EASE(weight=weight).fit(users_II)
        scores = ease.scores(requests)
        lambdas[weight] = quality(scores)
        if others is None:
            parts = _components(log, ease, text)
            others = {name: standardised(part.scores(requests)) for name, part in parts.items() if name != "ease"}
        weights, found = choose_weights([standardised(scores), *others.values()], quality)
        mixes[weight] = (found, dict(zip(["ease", *others], weights, strict=True)))
    logger.info("EASE lambda: %s; ensemble with it: %s", _listed(lambdas), _listed({w: m[0] for w, m in mixes.items()}))
    best_lambda = max(lambdas, key=lambda w: lambdas[w])
    return BaselineOptions(best_lambda, best_factors, mixes[best_lambda][1])


def _listed(found: dict[Any, float]) -> str:
    return ", ".join(f"{key:g} {value:.4f}" for key, value in found.items())


def _text_baseline(prepared: PreparedData, config: Config, run: str | None, notes: list[str]) -> UntunedEncoder | None:
    """The text baseline, from a run's vectors of the un-tuned encoder, or from vectors that are made here."""
    if run is not None:
        path, remedy = RunPaths(run).text_vectors, "restore it, or train another run"
        if not storage.exists(path):
            notes.append("un-tuned encoder left out: the run has no text vectors")
            return None
    elif not config.encoder.name:
        notes.append("un-tuned encoder left out: encoder.name is empty")
        return None
    else:
        path, remedy = text_vectors(prepared, config.encoder), f"delete it, and {AGAIN} makes it anew"
    text = {name: tensor.numpy() for name, tensor in read_tensors(path, remedy=remedy).items()}
    if not text["present"].any():
        notes.append("un-tuned encoder left out: no item has text")
        return None
    return UntunedEncoder().fit(text["vectors"], text["present"])


def text_vectors(prepared: PreparedData, config: EncoderConfig) -> str:
    """Path of the un-tuned encoder's vectors of the catalogue; the cache keeps them for the next evaluation."""
    options = {key: getattr(config, key) for key in ("name", "pooling", "max_tokens")}
    key = storage.sha256_json({"data": prepared.fingerprint, "encoder": options})
    path = os.path.join(storage.cache_dir(), "text", f"{key[:24]}.safetensors")
    if not storage.exists(path):
        logger.info("encoding %s item texts with %s", f"{prepared.num_items:,}", config.name)
        encoder_path = resolve_encoder(config.name, storage.cache_dir())
        encoder = TextEncoder(config, encoder_path, tune=False).eval()
        vectors, present = encode_catalogue(encoder, encoder_path, prepared.item_texts, config)
        tensors = {"vectors": torch.from_numpy(vectors), "present": torch.from_numpy(present.astype(np.uint8))}
        write_tensors(path, tensors)
    return path
