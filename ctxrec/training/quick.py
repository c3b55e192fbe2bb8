"""The quick preset: a model without towers, made in this process in one go, without Ray and DeepSpeed.

It has what has a closed form or comes from the encoder as it is: the item memory, the texts, popularity, and the blend of
them, fitted to the validation events. The bundle has the same files as that of a full training.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from typing import Any

import torch

from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.core.stopwatch import Stopwatch
from ctxrec.data.batching import Batcher
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.training.catalogue_vectors import read_catalogue
from ctxrec.training.export import Chosen, calibrate, export
from ctxrec.training.phase_setup import Setup, TrainingLog, Worker

logger = logging.getLogger(__name__)


def train_quick(data: PreparedData, run: str, config: Config) -> dict[str, Any]:
    """Write the bundle of a model without towers.

    Args:
        data: the prepared data.
        run: path or URI of the run.
        config: all options; of [train], only those of the blend count.

    Returns:
        Facts for the manifest of the run.

    Raises:
        UserError: `model.sources` has no memory, without which nothing would be left.
    """
    if "memory" not in config.model.sources:
        raise UserError(
            f"model.sources is {list(config.model.sources)}, and train.preset is 'quick'; expected 'memory' among the "
            'sources, which a quick model ranks by. Add it, or train with train.preset = "full"'
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with tempfile.TemporaryDirectory(prefix="ctxrec-quick-") as scratch:
            return _train(data, run, config, scratch)
    finally:
        torch.set_num_threads(threads)


def _train(data: PreparedData, run: str, config: Config, scratch: str) -> dict[str, Any]:
    watch = Stopwatch()

    def done(step: str, result: str) -> None:
        watch.lap(step)
        logger.info("%s: %.1f s; %s", step, watch.seconds[step], result)

    setup = _set_up(data, run, config, scratch)
    done("log and texts", f"{data.num_items:,} items, {data.meta['counts']['train']:,} training events")
    chosen = Chosen(setup.catalogue.frozen, None, 1.0)
    fitted = calibrate(setup, {}, chosen)
    done("blend", "no validation events: set weights" if fitted is None else f"NDCG@10 {fitted.ndcg:.4f}")
    export(setup, {}, chosen, fitted, RunPaths(run).bundle, refitted=True)
    done("bundle", RunPaths(run).bundle)
    facts: dict[str, Any] = {"seconds": {step: round(seconds, 2) for step, seconds in watch.seconds.items()}}
    return facts if fitted is None else facts | {"valid_ndcg@10": fitted.ndcg}


def _set_up(data: PreparedData, run: str, config: Config, scratch: str) -> Setup:
    """The log and the catalogue, with the text vectors of the encoder as it is."""
    place = Place(0, 1, 0, 1, torch.device("cuda" if _on_gpu(config) else "cpu"))
    scan = scan_log(
        data, history=config.model.history, num_validation_requests=config.train.valid_users, keep_events=True
    )
    # No towers read images and sounds.
    sources = tuple(source for source in config.model.sources if source != "media")
    reduced = dataclasses.replace(config, model=dataclasses.replace(config.model, sources=sources))
    return Setup(
        config=config,
        run=run,
        worker=Worker(place=place, dtype=torch.float32, scratch=scratch, profile=False, tracker=None),
        log=TrainingLog(
            data,
            scan,
            Batcher(data.features, history=config.model.history, kinds=data.kinds),
            validator=None,
        ),
        catalogue=read_catalogue(reduced, data, scan, run, place),
    )


def _on_gpu(config: Config) -> bool:
    return config.train.use_gpu != "no" and torch.cuda.is_available()
