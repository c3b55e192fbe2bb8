"""What makes a process of Ray Train a worker of ours: its threads and device, and where its checkpoints go."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
import torch

from ctxrec.core import ray_private
from ctxrec.encoder.cache import Place
from ctxrec.training import deepspeed_engine
from ctxrec.training.phase_setup import Report

Work = Callable[[dict[str, Any], Place, Report], None]


def on_ray(work: Work) -> Callable[[dict[str, Any]], None]:
    """`work` as the function that Ray Train calls on each worker with its job."""

    def run(job: dict[str, Any]) -> None:
        work(job, prepare_process(), report_to_ray)

    return run


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
