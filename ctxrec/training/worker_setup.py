"""What the phases of a training share on one worker: this process, the log, the catalogue."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
import ray.train
import ray.train.torch
import torch

from ctxrec.core import ray_private
from ctxrec.core.config import Config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.batching import Batcher
from ctxrec.data.log_statistics import LogScan, scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.encoder.cache import Place
from ctxrec.memory.item_memory import ItemMemory, fit_memory
from ctxrec.model.network import FULL_SOFTMAX_ITEMS, choose_loss
from ctxrec.training import deepspeed_engine
from ctxrec.training.catalogue_vectors import Catalogue, read_catalogue
from ctxrec.training.trackers import Tracker
from ctxrec.training.validator import Validator


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a training."""

    place: Place
    dtype: torch.dtype  # what products are computed in
    scratch: str  # a local folder for as long as the training lasts
    profile: bool  # trace some steps of each phase
    tracker: Tracker | None  # on rank 0 alone

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def world(self) -> int:
        return self.place.world

    @property
    def device(self) -> torch.device:
        return self.place.device


@dataclass(frozen=True)
class TrainingLog:
    """The behaviour log: its buckets, what one read of them found, and what is made of both."""

    data: PreparedData
    scan: LogScan  # with the events on rank 0 alone, which alone makes memories
    batcher: Batcher
    validator: Validator | None  # None without validation requests
    _memory: list[tuple[tuple[int, bytes], ItemMemory]] = field(default_factory=list)  # the last one, and what it is of

    @property
    def validation(self) -> Requests | None:
        """The validation requests."""
        return self.scan.validation

    def memory(self, before: int, text_IC: np.ndarray | None) -> ItemMemory:
        """What the events of earlier splits than `before` say of items; on rank 0 alone.

        It takes minutes for a large catalogue, so the last one is kept.

        Args:
            before: schema.VALID or schema.TEST.
            text_IC: text vectors, its prior (`ctxrec.memory.item_memory.fit_memory`).
        """
        key = (before, b"" if text_IC is None else hashlib.blake2b(text_IC.tobytes()).digest())
        if not self._memory or self._memory[0][0] != key:
            parts, repeats = self.scan.training_events(before), self.data.spec.split.repeats
            self._memory[:] = [(key, fit_memory(parts, self.data.num_items, repeats=repeats, text_IC=text_IC))]
        return self._memory[0][1]


@dataclass(frozen=True)
class Setup:
    """What all phases of a training share on one worker."""

    config: Config
    run: str
    worker: Worker
    log: TrainingLog
    catalogue: Catalogue

    @property
    def checkpoints(self) -> str:
        return RunPaths(self.run).checkpoints


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


def set_up(config: Config, data_path: str, run: str, scratch: str, place: Place, *, profile: bool = False) -> Setup:
    """Read and make what all phases share; every worker must call it.

    Args:
        config: all options.
        data_path: folder that `prepare` wrote.
        run: the run, which keeps text vectors for later starts.
        scratch: a local folder for as long as the training lasts.
        place: of this worker.
        profile: trace some steps of each phase.
    """
    data = PreparedData.open(data_path)
    scan = scan_log(
        data,
        history=config.model.history,
        num_validation_requests=config.train.valid_users,
        keep_events=place.rank == 0,
    )
    batcher = Batcher(data.features, history=config.model.history, action_weights=data.spec.events.actions)
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
        ),
        log=TrainingLog(data, scan, batcher, validator),
        catalogue=read_catalogue(config, data, scan, run, place),
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
