"""The catalogue as a training reads it: features of items, their texts, and vectors by encoders that are not tuned.

Legend: I items, H encoder width, V width of an image or audio encoder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.core import storage
from ctxrec.core.config import Config, EncoderConfig
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.features import item_features
from ctxrec.data.log_statistics import LogScan, TrainingPart
from ctxrec.data.prepared import PreparedData
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.cache import Place, item_keys, vector_store, with_states
from ctxrec.encoder.encode_plan import Tokens, plan_encoding, tokenise
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.media import media_tables
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable, has_text, make_text_table
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import EncodeInputs, Network
from ctxrec.training.tuning_rule import why_never_tuned, why_not_asked, why_not_taught

logger = logging.getLogger(__name__)

_CUT_SHARE = 0.1  # of the texts that are cut, from which on the log says so


@dataclass(frozen=True)
class CatalogueTexts:
    """The texts of the catalogue for the encoder, and the vectors that it gives them before it is tuned."""

    encoder_path: str  # a local folder
    tokens: Tokens  # with the states of the layers below the trained ones, where they are kept
    present_I: np.ndarray  # bool, which items have a text
    frozen: TextTable
    why_not_tuned: str  # why the encoder stays as it is, in words; "" where it is tuned


@dataclass(frozen=True)
class Catalogue:
    """All that a training knows of the items, on the worker's device.

    items, refit_items: with what the training events say of them, and with what the validation events say too.
    texts: None without text encoder, or where no item has a text.
    media_IV: vectors of images and sounds by kind, float16.
    """

    shape: ModelShape
    items: ItemTensors
    refit_items: ItemTensors
    texts: CatalogueTexts | None
    media_IV: dict[str, np.ndarray]

    @property
    def frozen(self) -> TextTable | None:
        """Text vectors of the encoder before it is tuned."""
        return None if self.texts is None else self.texts.frozen


def read_catalogue(config: Config, data: PreparedData, log: LogScan, run: str, place: Place) -> Catalogue:
    """Read the catalogue and encode what is not on disk yet; every worker must call it.

    Args:
        config: all options.
        data: the prepared data.
        log: a scan of its buckets, which says what items have events.
        run: the run, whose checkpoints keep the vectors of this training.
        place: of this worker.
    """
    features = item_features(data.items, data.features)
    texts, media = None, {}
    present_I = has_text(features.texts)
    if config.encoder.name and "text" in config.model.sources and present_I.any():
        texts = _read_texts(config, features.texts, present_I, log.train, run, place)
    if "media" in config.model.sources:
        media = media_tables(config.encoder, data, RunPaths(run).media_vectors, place)
    shape = ModelShape.of(
        config.model,
        data.features,
        num_items=len(features),
        text_width=texts.frozen.vectors_IH.shape[1] if texts is not None else 0,
        media_widths={kind: vectors.shape[1] for kind, vectors in media.items()},
    )
    return Catalogue(
        shape=shape,
        items=ItemTensors.of(features, shape, place.device, trained=log.train.trained_I, media=media),
        refit_items=ItemTensors.of(features, shape, place.device, trained=log.refit.trained_I, media=media),
        texts=texts,
        media_IV=media,
    )


def _read_texts(
    config: Config, texts: list[str], present_I: np.ndarray, log: TrainingPart, run: str, place: Place
) -> CatalogueTexts:
    encoder_path = resolve_encoder(config.encoder.name, storage.cache_dir())
    tokens = tokenise(encoder_path, texts, max_tokens=config.encoder.max_tokens)
    cut = float((tokens.lengths[present_I] >= config.encoder.max_tokens).mean())
    if place.rank == 0 and cut >= _CUT_SHARE:
        line = "%.0f %% of the items' texts are longer than encoder.max_tokens (%d) and are read to there alone"
        logger.info(line, 100 * cut, config.encoder.max_tokens)
    shown, forced = np.flatnonzero(log.trained_I & present_I), config.train.encoder_epochs != "auto"
    why_not = why_not_asked(config) or why_not_taught(
        int(log.events_K.sum()), int(log.trained_I.sum()), tokens, shown, forced=forced
    )
    if not why_not or (config.train.also and not why_never_tuned(config)):
        tokens = with_states(tokens, present_I, encoder_path, config.encoder, place)
    frozen = frozen_table(config.encoder, RunPaths(run).text_vectors, encoder_path, tokens, present_I, place)
    return CatalogueTexts(encoder_path, tokens, present_I, frozen, why_not)


def frozen_table(
    config: EncoderConfig, path: str, encoder_path: str, tokens: Tokens, present_I: np.ndarray, place: Place
) -> TextTable:
    """Vectors of the encoder before it is tuned: from the run's file `path`, or from the machine's disk, or encoded by all
    workers together."""
    if not storage.exists(path):
        encoder = TextEncoder(config, encoder_path, tune=False)
        table_IH = torch.zeros(len(present_I), encoder.width)
        _encode_new(config, encoder_path, encoder.to(place.device).eval(), tokens, present_I, place, table_IH)
        if place.rank == 0:
            write_tensors(path, {"vectors": table_IH, "present": torch.from_numpy(present_I.astype(np.uint8))})
        if dist.is_initialized():
            dist.barrier()
    vectors_IH = read_tensors(path, remedy=f"delete it, and {AGAIN} makes it anew")["vectors"].numpy()
    return make_text_table(vectors_IH, present_I).to(place.device)


def _encode_new(
    config: EncoderConfig,
    encoder_path: str,
    encoder: TextEncoder,
    tokens: Tokens,
    present_I: np.ndarray,
    place: Place,
    table_IH: torch.Tensor,
) -> None:
    """Fill the rows of `table_IH` from the machine's disk; all workers together encode those that some machine lacks."""
    store, keys = vector_store(encoder_path, config, encoder.width), item_keys(tokens)
    missing = torch.tensor([bool(has) and key not in store for has, key in zip(present_I, keys, strict=True)])
    missing = missing.to(place.device, torch.int32)
    if dist.is_initialized():
        dist.all_reduce(missing, op=dist.ReduceOp.MAX)
    missing_I = missing.cpu().numpy() > 0
    for item in np.flatnonzero(present_I & ~missing_I).tolist():
        table_IH[item] = torch.from_numpy(store.read(keys[item])[0].copy())
    if not missing_I.any():
        return
    network = Network(torch.nn.Identity(), encoder)
    encode_table(network, tokens, missing_I, table_IH, budget=config.token_budget, place=place)
    if place.local_rank == 0:
        vectors = table_IH.numpy()
        new = {keys[i]: vectors[i : i + 1] for i in np.flatnonzero(missing_I).tolist() if keys[i] not in store}
        try:
            store.write(new)
        except OSError as error:  # the disk is full: this training goes on, the next one encodes again
            logger.warning("the text vectors are not kept for later trainings: %s", error)


@torch.no_grad()
def encode_table(
    network: torch.nn.Module,
    tokens: Tokens,
    which_I: np.ndarray,
    table_IH: torch.Tensor,
    *,
    budget: int,
    place: Place,
) -> None:
    """Encode the texts of the items `which_I` (bool) into their rows of `table_IH`; each worker encodes its share.

    Args:
        network: a `Network` with the encoder.
        tokens: of all texts.
        which_I: the items whose rows are filled.
        table_IH: filled in place.
        budget: tokens of a forward pass at most.
        place: of this worker; all workers must call it.
    """
    was_training = network.training
    network.eval()
    plan = plan_encoding(np.flatnonzero(which_I), tokens.lengths, budget=budget, world=place.world)
    vectors_nH = network(EncodeInputs(tokens, plan, place.rank, place.device))
    table_IH[torch.from_numpy(plan.order[: plan.num_texts]).to(table_IH.device)] = vectors_nH.to(table_IH)
    network.train(was_training)
