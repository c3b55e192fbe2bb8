"""A run's model as it was before it saw any validation event, rebuilt from its checkpoints.

A bundle has seen them: its towers were refitted on them and its memory holds them. Here are the towers of the last phase
that trained on training events alone, their item vectors, and an item memory without validation events. Only the weights
of the blend, two numbers a source, are those fitted on the validation events.

Legend: I items, W width of the towers' vectors, C reduced width.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch

from ctxrec.bundle import format as bundle_format
from ctxrec.core import schema, storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.data.features import ItemFeatures, item_features
from ctxrec.data.log_statistics import LogScan, scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.tensor_files import read_tensors
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_table import TextTable, encode_catalogue, has_text, make_text_table
from ctxrec.memory.blend import Blend
from ctxrec.memory.item_memory import fit_memory
from ctxrec.memory.text_similarity import on_axes, text_axes
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.two_tower import Towers, make_towers
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.recommender import Recommender

logger = logging.getLogger(__name__)

_TRAIN_AGAIN = "restore it, or train another run"


def recommender_before_validation(run: str, data: PreparedData, *, tuned: bool = True) -> Recommender:
    """The run's model as it was before it saw any validation event.

    Args:
        run: path or URI of a finished run.
        data: what it was trained on.
        tuned: False takes the model before its encoder was tuned.

    Raises:
        UserError: the run lacks the checkpoints of its training.
    """
    bundle = RunPaths(run).bundle
    bundled = load_recommender(bundle if tuned else RunPaths(run).before)
    catalogue = item_features(data.items, data.features)
    folder, _ = bundle_format.check_bundle(bundle, scratch=storage.temporary_folder())
    shape = dataclasses.replace(bundle_format.read_about(folder).model_shape, features=data.features)
    trained = bundled.config
    towers, phase = make_towers(bundle_format.with_bundled_model(trained, folder), shape), ""
    if isinstance(towers, Towers):
        phase, weights = _last_weights(run, ("encoder", "towers") if tuned else ("towers",))
        towers.load_state_dict({n.removeprefix("towers."): w for n, w in weights.items() if n.startswith("towers.")})
    towers.eval()
    text = _text_table(run, folder, shape, catalogue, trained, tuned=phase == "encoder")
    media = bundle_format.load_media(folder)
    log = scan_log(data, history=trained.model.history, keep_events=bundled.blend is not None)
    items = ItemTensors.of(catalogue, shape, trained=log.train.trained_I, media=media)
    with torch.inference_mode():
        vectors_IW = towers(items, text)[0].float().numpy()
    blend = None
    if bundled.blend is not None:
        axes = None if bundled.texts is None else bundled.texts.axes
        blend = _blend_before(data, log, bundled.blend, vectors_IW, text, trained, axes)
    return Recommender(
        config=trained,
        spec=bundled.spec,
        features=data.features,
        towers=towers,
        items=bundled.items,
        item_vectors=vectors_IW,
        histories=bundled.histories,
        model_version=bundled.model_version,
        blend=blend,
        texts=bundled.texts,
        live_weights=bundled.live_weights,
        calibration=bundled.calibration,
    )


def _last_weights(run: str, phases: tuple[str, ...]) -> tuple[str, dict[str, torch.Tensor]]:
    """The first of these phases that the run had, and its best weights."""
    for phase in phases:
        path = RunPaths(run).best(phase)
        if storage.exists(path):
            return phase, read_tensors(path, remedy=_TRAIN_AGAIN)
    raise UserError(
        f"{RunPaths(run).checkpoints} has no best-towers.safetensors, the weights from before validation events "
        "were used; expected the checkpoints of the training. Train again"
    )


def _text_table(
    run: str, folder: str, shape: ModelShape, catalogue: ItemFeatures, config: Config, *, tuned: bool
) -> TextTable | None:
    """Text vectors as the towers' phase saw them: of the plain encoder, or of the tuned one, on the same scale."""
    if not shape.text_width:
        return None
    vectors = read_tensors(RunPaths(run).text_vectors, remedy=_TRAIN_AGAIN)["vectors"].numpy()
    table = make_text_table(vectors, has_text(catalogue.texts))
    if not tuned:
        return table
    encoder_path = resolve_encoder(config.encoder.name, storage.cache_dir())
    encoder = bundle_format.load_encoder(config, encoder_path, BundlePaths(folder).adapter)
    logger.info("encoding %d texts with the tuned encoder", len(catalogue))
    vectors, _ = encode_catalogue(encoder, encoder_path, catalogue.texts, config.encoder)
    return dataclasses.replace(table, vectors_IH=torch.from_numpy(vectors))


def _blend_before(
    data: PreparedData,
    log: LogScan,
    bundled: Blend,
    vectors_IW: np.ndarray,
    text: TextTable | None,
    config: Config,
    axes: tuple[np.ndarray, np.ndarray] | None,
) -> Blend:
    """The blend with a memory of the training events alone; the weights are the bundle's, and so are the axes."""
    text_IC = None
    if bundled.text_IC is not None and text is not None:
        vectors, present = text.vectors_IH.numpy(), text.present_I.numpy()
        axes = text_axes(vectors, present, config.model.content_dim) if axes is None else axes
        text_IC = on_axes(vectors, present, *axes)
    memory = fit_memory(
        log.training_events(schema.VALID),
        len(vectors_IW),
        repeats=data.spec.split.repeats,
        text_IC=text_IC,
        kinds=data.kinds,
    )
    return dataclasses.replace(Blend.of(memory, text_IC, vectors_IW, bundled.widths), weights_2K=bundled.weights_2K)
