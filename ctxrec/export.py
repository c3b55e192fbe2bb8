"""From trained weights to a bundle: the tuned encoder's text vectors, the blend of all sources, the export.

Legend: I items, H encoder width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from ctxrec import checkpoint, schema
from ctxrec.baselines import TrainingEvents
from ctxrec.blend import Blend, fit_blend, head_covariances
from ctxrec.bundle import write_bundle
from ctxrec.encoder import TextEncoder
from ctxrec.events import Requests, histories_from_table
from ctxrec.job import Setup, encode_table
from ctxrec.memory import ItemMemory, fit_memory
from ctxrec.model import ItemTensors, TextTable, Towers
from ctxrec.network import Network
from ctxrec.texts import has_text

logger = logging.getLogger(__name__)

_BATCH = 256


@dataclass(frozen=True)
class Chosen:
    """What earlier phases settled: the text vectors and their encoder (None: not tuned), and where in its
    schedule the first phase was best."""

    text: TextTable | None
    encoder: TextEncoder | None
    share: float


def tuned_text(setup: Setup, best: dict[str, torch.Tensor]) -> tuple[TextEncoder, TextTable]:
    """The encoder of a phase's best weights, and the catalogue's vectors by it; every worker takes part."""
    assert setup.tokens is not None and setup.frozen is not None
    encoder = TextEncoder(setup.config.encoder, setup.encoder_path, tune=True)
    weights = {n.removeprefix("encoder."): w for n, w in best.items() if n.startswith("encoder.")}
    checkpoint.load_weights(encoder, weights)
    text = TextTable(**{**vars(setup.frozen), "vectors_IH": setup.frozen.vectors_IH.clone()})
    network = Network(torch.nn.Identity(), encoder).to(setup.device)  # type: ignore[arg-type]
    present = has_text(setup.catalogue.texts)
    encode_table(network, setup.tokens, present, setup.config, text.vectors_IH, setup.rank, setup.world, setup.device)
    return encoder, text


def calibrate(setup: Setup, towers: dict[str, torch.Tensor], text: TextTable | None) -> np.ndarray | None:
    """Weights of the blend, by the validation requests; rank 0 alone. None where there is no memory or no request."""
    if setup.rank != 0 or not setup.config.model.use_memory or setup.valid is None:
        return None
    made = _made(setup, towers)
    vectors, queries = _apply(made, setup, setup.items, text, setup.valid)
    memory = _memory(setup, schema.TRAIN)
    repeats = setup.data.spec.split.repeats
    weights = fit_blend(
        memory, vectors, queries, setup.valid, made.widths, repeats=repeats, seed=setup.config.train.seed
    )
    names = [*("sequence", "content")[: len(made.widths)], "popularity", "recent popularity", *memory.sources]
    typical = np.logaddexp(0, weights[0])
    logger.info("blend  %s", "  ".join(f"{n} {w:.3f}" for n, w in zip(names, typical, strict=True)))
    return weights


def export(
    setup: Setup,
    towers: dict[str, torch.Tensor],
    chosen: Chosen,
    weights: np.ndarray | None,
    path: str,
    *,
    refitted: bool,
) -> None:
    """Write a bundle; `refitted`: the towers have seen the validation events. The memory always has."""
    if setup.rank == 0:
        made = _made(setup, towers)
        items = setup.refit_items if refitted else setup.items
        vectors, _ = _apply(made, setup, items, chosen.text, None)
        blend = None
        if weights is not None:
            blend = Blend(_memory(setup, schema.VALID), made.widths, head_covariances(vectors, made.widths), weights)
        text = chosen.text
        scale = {} if text is None else {"mean": text.mean_H.cpu().numpy(), "scale": text.scale_H.cpu().numpy()}
        write_bundle(
            path,
            config=setup.config,
            data=setup.data,
            shape=setup.shape,
            towers={n: w.contiguous() for n, w in towers.items()},
            item_vectors=np.ascontiguousarray(vectors),
            trained=items.trained_I.cpu().numpy() > 0,
            text_scale=scale,
            encoder=chosen.encoder.cpu() if chosen.encoder is not None else None,
            blend=blend,
            scratch=setup.scratch,
        )
    dist.barrier()


def _made(setup: Setup, towers: dict[str, torch.Tensor]) -> Towers:
    made = Towers(setup.config.model, setup.shape, temperature=setup.config.train.temperature)
    made.load_state_dict(towers)
    return made.to(setup.device).eval()


def _apply(
    made: Towers, setup: Setup, items: ItemTensors, text: TextTable | None, requests: Requests | None
) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors [I, W] and the requests' queries [N, W]."""
    queries = []
    with torch.inference_mode():
        vectors, _ = made(items, text)
        for start in range(0, 0 if requests is None else len(requests), _BATCH):
            assert requests is not None
            part = requests.take(np.arange(start, min(start + _BATCH, len(requests))))
            batch = setup.batcher.requests(part).to(setup.device)
            _, query = made(items, text, batch, item_vectors=vectors, last=True)
            queries.append(query.float().cpu().numpy())
    found = np.concatenate(queries) if queries else np.zeros((0, vectors.shape[1]), np.float32)
    return vectors.float().cpu().numpy(), found


def _memory(setup: Setup, last_split: int) -> ItemMemory:
    """The memory of all events of splits up to `last_split`."""

    def parts():
        for bucket in range(len(setup.data.bucket_paths)):
            histories = histories_from_table(setup.data.read_bucket(bucket), setup.data.features)
            events = histories.events
            yield TrainingEvents.select(events.offsets, events.items, events.times, histories.split <= last_split)

    if last_split not in setup.memories:
        repeats = setup.data.spec.split.repeats
        setup.memories[last_split] = fit_memory(parts(), setup.shape.num_items, repeats=repeats)
    return setup.memories[last_split]
