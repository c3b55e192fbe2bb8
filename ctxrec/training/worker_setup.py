"""Make what the phases of a training share on one worker: this process, the log, the catalogue."""

from __future__ import annotations

import os
from typing import Any

import ray.train
import ray.train.torch
import torch

from ctxrec.core import ray_private
from ctxrec.core.config import Config
from ctxrec.data.batching import Batcher
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.model.network import FULL_SOFTMAX_ITEMS, choose_loss
from ctxrec.training import deepspeed_engine
from ctxrec.training.catalogue_vectors import read_catalogue
from ctxrec.training.phase_setup import Report, Setup, TrainingLog, Worker
from ctxrec.training.trackers import Tracker
from ctxrec.training.user_texts import read_user_texts
from ctxrec.training.validator import Validator


def prepare_process() -> Place:
    """Make this process of a Ray Train worker ready to train: its logging, device and threads; returns its place."""
    ray_private.quiet_train_reports()  # the tracker writes a line for every report
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cpu":
        deepspeed_engine.use_cpu_accelerator()
    else:
        torch.set_float32_matmul_precision("high")  # TF32 in the losses, which are float32 beside bf16
    torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))
    return Place(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        device,
    )


def report_to_ray(metrics: dict[str, Any], folder: str | None) -> None:
    """Report the figures of a checkpoint, and its folder on rank 0, to Ray Train, which keeps the latest ones."""
    ray.train.report(metrics, checkpoint=None if folder is None else ray.train.Checkpoint.from_directory(folder))


def set_up(
    config: Config,
    data_path: str,
    run: str,
    scratch: str,
    place: Place,
    *,
    profile: bool = False,
    report: Report = report_to_ray,
) -> Setup:
    """Read and make what all phases share; every worker must call it.

    Args:
        config: all options.
        data_path: folder that `prepare` wrote.
        run: the run, which keeps text vectors for later starts.
        scratch: a local folder for as long as the training lasts.
        place: of this worker.
        profile: trace some steps of each phase.
        report: takes the figures and the folder of each checkpoint.
    """
    data = PreparedData.open(data_path)
    scan = scan_log(
        data,
        history=config.model.history,
        num_validation_requests=config.train.valid_users,
        keep_events=place.rank == 0,
    )
    catalogue = read_catalogue(config, data, scan, run, place)
    user_texts = read_user_texts(config, data, catalogue, run, place)
    batcher = Batcher(
        data.features,
        history=config.model.history,
        kinds=data.kinds,
        user_texts=None if user_texts is None else user_texts.texts,
    )
    validator = None
    if scan.validation is not None:
        repeats, rank, world = data.spec.split.repeats, place.rank, place.world
        validator = Validator(scan.validation, batcher, repeats=repeats, rank=rank, world=world, device=place.device)
    return Setup(
        config=config,
        run=run,
        worker=Worker(
            place=place,
            dtype=deepspeed_engine.choose_precision(config.train, place.device),
            scratch=scratch,
            profile=profile,
            tracker=Tracker(run, config.to_dict(), config.train.trackers) if place.rank == 0 else None,
            report=report,
        ),
        log=TrainingLog(data, scan, batcher, validator),
        catalogue=catalogue,
        user_texts=user_texts,
    )


def describe_choices(
    config: Config, *, dtype: torch.dtype, device: torch.device, num_items: int, encoded: bool, cut: bool
) -> str:
    """One line about the choices that the options leave to the catalogue and the hardware.

    Args:
        config: all options.
        dtype: what products are computed in.
        device: of the workers.
        num_items: items of the catalogue.
        encoded: whether the encoder is tuned.
        cut: whether the states of the layers below the tuned ones come from disk.
    """
    loss = choose_loss(config.train, num_items)
    parts = [f"{'bf16' if dtype == torch.bfloat16 else 'fp32'} on {device.type}, ZeRO-{config.train.zero_stage}"]
    parts.append(
        f"{loss} over {num_items:,} items"
        + (f" (full up to {FULL_SOFTMAX_ITEMS:,})" if config.train.loss == "auto" else "")
    )
    if encoded:
        top = config.encoder.top_layers if config.encoder.tune != "full" else 0
        where = f"in the top {top} layers" if top else "in all layers"
        parts.append(f"{config.encoder.tune} {where}" + (", states below them from disk" if cut else ""))
        parts.append(f"{config.train.fresh_items} items of a step fresh")
    return "; ".join(parts)
