"""From trained weights to a bundle: text vectors of the tuned encoder, weights of the blend, files of the bundle.

Legend: I items, H encoder width.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.bundle.format import USER_MEAN, USER_SCALE, write_bundle
from ctxrec.core import schema
from ctxrec.data.requests import Requests
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable
from ctxrec.index.builder import Fill, add_here
from ctxrec.index.topk import top_k
from ctxrec.memory.blend import Blend
from ctxrec.memory.blend_fit import fit_blend
from ctxrec.memory.calibration import Calibrations
from ctxrec.memory.cold_start import choose_bonus, hidden_items, without_items
from ctxrec.memory.item_memory import as_if_known
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.memory.request_words import CONTEXT_TEXT, ReadTexts
from ctxrec.memory.scoring import BlendScorer, Scorer, in_parts, score_all
from ctxrec.memory.text_similarity import on_axes
from ctxrec.metrics.ranking import request_metrics
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.network import Network
from ctxrec.model.two_tower import NoTowers, Towers, make_towers
from ctxrec.training import checkpoint
from ctxrec.training.catalogue_vectors import encode_table
from ctxrec.training.context_texts import axes_of, context_reader
from ctxrec.training.live_calibration import fit_live_weights
from ctxrec.training.phase_setup import Setup
from ctxrec.training.score_calibration import calibrated
from ctxrec.training.validator import METRIC_K

logger = logging.getLogger(__name__)

_BATCH = 256
_SAMPLE = 200  # requests on which the index's recall is measured
_MEASURED = 5000  # requests on which the fitted blend is measured, at most
_SCORES_AT_ONCE = 1 << 25  # scores in memory at a time (128 MB)


@dataclass(frozen=True)
class Chosen:
    """The results of earlier phases that an export needs."""

    text: TextTable | None  # None without text encoder
    encoder: TextEncoder | None  # that the text vectors are by; None: it is not tuned
    share: float  # of its schedule, after which the first phase was best


def tuned_encoder(setup: Setup, best: dict[str, torch.Tensor]) -> TextEncoder:
    """The encoder with the best weights of its phase, with all of its layers, as a service loads it."""
    texts = setup.catalogue.texts
    assert texts is not None
    encoder = TextEncoder(setup.config.encoder, texts.encoder_path, tune=True)
    weights = {n.removeprefix("encoder."): w for n, w in best.items() if n.startswith("encoder.")}
    checkpoint.load_weights(encoder, weights)
    return encoder


def tuned_text(setup: Setup, encoder: TextEncoder) -> TextTable:
    """The text vectors of the catalogue by the tuned encoder; every worker must call it.

    All layers are computed, because vectors from stored states of 16 bits would differ from a service's in the fourth digit.
    """
    texts = setup.catalogue.texts
    assert texts is not None
    text = TextTable(**{**vars(texts.frozen), "vectors_IH": texts.frozen.vectors_IH.clone()})
    network = Network(torch.nn.Identity(), encoder).to(setup.worker.device)
    budget, place = setup.config.encoder.token_budget, setup.worker.place
    encode_table(network, texts.tokens, texts.present_I, text.vectors_IH, budget=budget, place=place)
    return text


@dataclass(frozen=True)
class FittedBlend:
    """The weights of the blend, float32 [2, K], and NDCG@10 of the validation requests with them; those of the live
    sources, where they gain something; and what makes scores probabilities, where enough outcomes are known."""

    weights_2K: np.ndarray
    ndcg: float
    live: LiveWeights | None = None
    probability: Calibrations | None = None


def calibrate(setup: Setup, towers: dict[str, torch.Tensor], chosen: Chosen) -> FittedBlend | None:
    """Fit the weights of the blend to the validation requests, on rank 0 alone.

    Args:
        setup: what all phases share.
        towers: trained weights of the towers; empty for a model without towers.
        chosen: text vectors that the towers were trained with, and their encoder.

    Returns:
        None on other ranks and without validation requests. Without the memory as a source there are no weights.
    """
    if setup.worker.rank != 0 or setup.log.validation is None:
        return None
    made, text = _made(setup, towers), chosen.text
    vectors = _vectors(made, setup.catalogue.items, text)
    if "memory" not in setup.config.model.sources:
        return _towers_alone(setup, _scorer(made, setup, text, vectors, None, None), setup.log.validation)
    queries = _queries(made, setup, text, vectors, setup.log.validation)
    blend, item_vectors = _blend(setup, schema.VALID, vectors, made, text), vectors.cpu().numpy()
    read = context_reader(setup, text, chosen.encoder)
    repeats = setup.log.data.spec.split.repeats
    weights = fit_blend(
        blend,
        item_vectors,
        queries,
        setup.log.validation,
        repeats=repeats,
        seed=setup.config.train.seed,
        read_texts=read,
    )
    blend = dataclasses.replace(blend, weights_2K=weights)
    if setup.config.train.new_items_cost:
        blend = _with_bonus(setup, made, blend, text, read)
    typical = np.logaddexp(0, blend.weights_2K[0])
    logger.info("blend  %s", "  ".join(f"{n} {w:.3f}" for n, w in zip(blend.sources, typical, strict=True)))
    scorer = _scorer(made, setup, text, vectors, blend, read)
    ndcg = _ndcg(scorer, setup.log.validation.evenly(_MEASURED), repeats=repeats)
    live = fit_live_weights(setup, blend, item_vectors, partial(_queries, made, setup, text, vectors), read)
    found = FittedBlend(blend.weights_2K, ndcg, live, calibrated(setup, scorer, live))
    logger.info("validation NDCG@10 of the blend %.4f", found.ndcg)
    return found


def _towers_alone(setup: Setup, scorer: BlendScorer, requests: Requests) -> FittedBlend:
    """What is known of a model without a blend."""
    ndcg = _ndcg(scorer, requests.evenly(_MEASURED), repeats=setup.log.data.spec.split.repeats)
    return FittedBlend(np.zeros((2, 0), np.float32), ndcg, None, calibrated(setup, scorer, None))


def _ndcg(scorer: Scorer, requests: Requests, *, repeats: bool) -> float:
    """Mean NDCG@10 of requests with targets over the whole catalogue."""
    assert requests.target_offsets is not None and requests.target_items is not None
    size = max(_SCORES_AT_ONCE // max(len(scorer.vectors), 1), 1)
    lists = [
        top_k(score_all(scorer, part), METRIC_K, None if repeats else part.seen())
        for start in range(0, len(requests), size)
        for part in [requests.take(np.arange(start, min(start + size, len(requests))))]
    ]
    found = request_metrics(np.concatenate(lists), requests.target_offsets, requests.target_items, [METRIC_K])
    return float(found[f"ndcg@{METRIC_K}"].mean())


def _with_bonus(
    setup: Setup, made: Towers | NoTowers, blend: Blend, text: TextTable | None, read: ReadTexts | None
) -> Blend:
    """The blend with a bonus for new items, chosen on validation requests with the events of some items hidden."""
    assert setup.log.validation is not None
    known_I = blend.memory.known_I
    hidden_I = hidden_items(known_I, seed=setup.config.train.seed)
    trained_I = setup.catalogue.items.trained_I * torch.from_numpy(~hidden_I).to(setup.catalogue.items.trained_I)
    vectors = _vectors(made, dataclasses.replace(setup.catalogue.items, trained_I=trained_I), text)
    memory = as_if_known(blend.memory, known_I & ~hidden_I, blend.text_IC)
    without = Blend.of(memory, blend.text_IC, vectors.cpu().numpy(), made.widths)
    scorer = _scorer(made, setup, text, vectors, dataclasses.replace(without, weights_2K=blend.weights_2K), read)
    bonus = choose_bonus(
        partial(score_all, scorer),
        without_items(setup.log.validation, hidden_I),
        ~memory.known_I,
        cost=setup.config.train.new_items_cost,
        repeats=setup.log.data.spec.split.repeats,
    )
    found = "new items get %.2f more: their NDCG@10 goes from %.4f to %.4f, that of all requests from %.4f to %.4f"
    logger.info(found, bonus.value, *bonus.new_ndcg, *bonus.ndcg)
    return blend.with_bonus(bonus.value)


def export(
    setup: Setup,
    towers: dict[str, torch.Tensor],
    chosen: Chosen,
    fitted: FittedBlend | None,
    path: str,
    *,
    refitted: bool,
) -> None:
    """Write a bundle; every worker must call it. The item memory holds the validation events in any case.

    Args:
        setup: what all phases share.
        towers: trained weights of the towers.
        chosen: text vectors and their encoder.
        fitted: weights of the blend; None where there was nothing to fit them to.
        path: of the bundle.
        refitted: whether the towers were trained on the validation events too.
    """
    if setup.worker.rank == 0:
        made = _made(setup, towers)
        items = setup.catalogue.refit_items if refitted else setup.catalogue.items
        text = chosen.text
        vectors = _vectors(made, items, text)
        blend = None
        if "memory" in setup.config.model.sources:
            blend = _blend(setup, schema.TEST, vectors, made, text)
            blend = dataclasses.replace(blend, weights_2K=blend.unfitted_2K if fitted is None else fitted.weights_2K)
            if "context" not in setup.config.model.sources:
                blend = blend.without([CONTEXT_TEXT])
        scale = {} if text is None else {"mean": text.mean_H.cpu().numpy(), "scale": text.scale_H.cpu().numpy()}
        if text is not None and blend is not None and blend.text_IC is not None:
            scale["centre"], scale["axes"] = axes_of(setup, text)
        if setup.user_texts is not None:
            scale |= {USER_MEAN: setup.user_texts.mean_H, USER_SCALE: setup.user_texts.scale_H}
        write_bundle(
            path,
            config=setup.config,
            data=setup.log.data,
            shape=setup.catalogue.shape,
            towers={n: w.contiguous() for n, w in towers.items()},
            item_vectors=np.ascontiguousarray(vectors.cpu().numpy()),
            trained=items.trained_I.cpu().numpy() > 0,
            text_scale=scale,
            media=setup.catalogue.media_IV,
            encoder=chosen.encoder.cpu() if chosen.encoder is not None else None,
            blend=blend,
            live=None if fitted is None else fitted.live,
            probability=None if fitted is None else fitted.probability,
            queries=_sample_queries(
                _scorer(made, setup, text, vectors, blend, context_reader(setup, text, chosen.encoder)),
                setup.log.validation,
            ),
            fill=_fill(),
            scratch=setup.worker.scratch,
        )
    if dist.is_initialized():
        dist.barrier()


def _fill() -> Fill:
    """How the lists of an index are filled: by all nodes of the cluster in a process that uses Ray, else by this one."""
    if "ray" not in sys.modules:
        return add_here
    from ctxrec.index.ray_fill import add_on_nodes

    return add_on_nodes


def _made(setup: Setup, towers: dict[str, torch.Tensor]) -> Towers | NoTowers:
    made = make_towers(setup.config, setup.catalogue.shape)
    made.load_state_dict(towers)
    return made.to(setup.worker.device).eval()


@torch.inference_mode()
def _vectors(made: Towers | NoTowers, items: ItemTensors, text: TextTable | None) -> torch.Tensor:
    """Item vectors: float32 [I, W]."""
    return made(items, text)[0].float()


@torch.inference_mode()
def _queries(
    made: Towers | NoTowers, setup: Setup, text: TextTable | None, vectors_IW: torch.Tensor, requests: Requests
) -> np.ndarray:
    """The towers' queries of requests: float32 [N, W]."""
    if isinstance(made, NoTowers):
        return np.zeros((len(requests), 0), np.float32)

    def ask(part: Requests) -> np.ndarray:
        batch = setup.log.batcher.requests(part).to(setup.worker.device)
        return made(setup.catalogue.items, text, batch, item_vectors=vectors_IW, last=True)[1].float().cpu().numpy()

    return in_parts(requests, _BATCH, ask, width=sum(made.widths))


def _scorer(
    made: Towers | NoTowers,
    setup: Setup,
    text: TextTable | None,
    vectors_IW: torch.Tensor,
    blend: Blend | None,
    read: ReadTexts | None,
) -> BlendScorer:
    """A scorer with these towers and this blend, which scores as the service does."""
    ask = partial(_queries, made, setup, text, vectors_IW)
    return BlendScorer(ask, vectors_IW.cpu().numpy(), blend, read)


def _sample_queries(scorer: Scorer, validation: Requests | None) -> np.ndarray | None:
    """Search vectors of some validation requests: float32 [N, D]; None without validation requests."""
    return None if validation is None else scorer.queries(validation.evenly(_SAMPLE))


def _blend(
    setup: Setup, before: int, vectors_IW: torch.Tensor, made: Towers | NoTowers, text: TextTable | None
) -> Blend:
    """A blend of equal weights, whose memory holds the events of earlier splits than `before`."""
    text_IC = None
    if text is not None and setup.config.model.content_dim:
        text_IC = on_axes(text.vectors_IH.cpu().numpy(), text.present_I.cpu().numpy(), *axes_of(setup, text))
    return Blend.of(setup.log.memory(before, text_IC), text_IC, vectors_IW.cpu().numpy(), made.widths)
