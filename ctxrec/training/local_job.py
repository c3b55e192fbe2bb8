"""A training in the command's own process, without Ray: `train.workers = 0`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.run_paths import RunPaths
from ctxrec.encoder.cache import Place
from ctxrec.training import checkpoint, deepspeed_engine
from ctxrec.training.attempt import attempt
from ctxrec.training.driver import trains_on_gpus
from ctxrec.training.phase_setup import Report
from ctxrec.training.worker import train_worker

if TYPE_CHECKING:
    from ray.train import UserCallback

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # DeepSpeed reads them


def run_here(
    job: dict[str, Any],
    config: Config,
    callbacks: Sequence[UserCallback],
    worker: Callable[[dict[str, Any], Place, Report], None] = train_worker,
) -> None:
    """Run a training to its end in this process, from its newest checkpoint where it has one.

    Args:
        job: what the only worker is given (`ctxrec.training.worker.train_worker`).
        config: all options.
        callbacks: are given the figures and the checkpoint of each evaluation, as Ray Train's workers would give them.
        worker: what the only worker runs.

    Raises:
        UserError: the training found a user's mistake.
        Stopped: SIGTERM came, and a checkpoint is saved.
    """
    checkpoints, kept = RunPaths(job["run"]).checkpoints, config.train.keep_checkpoints

    def report(metrics: dict[str, Any], folder: str | None) -> None:
        assert folder is not None
        path = storage.join(checkpoints, f"checkpoint_{datetime.now():%Y-%m-%d_%H-%M-%S.%f}")
        storage.write_dir(path, lambda made: _copy(folder, made), scratch=os.path.dirname(folder))
        checkpoint.tidy(checkpoints, kept)
        if callbacks:
            _tell(callbacks, metrics, path)

    with attempt(job["run"], keep=kept), _alone(config) as place:
        worker(job, place, report)


def _tell(callbacks: Sequence[UserCallback], metrics: dict[str, Any], path: str) -> None:
    from ray.train import Checkpoint  # takes seconds, and a training without callbacks needs no Ray

    for callback in callbacks:
        callback.after_report(run_context=None, metrics=[metrics], checkpoint=Checkpoint(path))


def _copy(source: str, target: str) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


@contextlib.contextmanager
def _alone(config: Config) -> Iterator[Place]:
    """The place of this process as the only worker; inside the context its threads and environment are a worker's."""
    on_gpu = trains_on_gpus(config.train, torch.cuda.device_count())
    if not on_gpu:
        deepspeed_engine.use_cpu_accelerator()
    before, threads = {name: os.environ.get(name) for name in _ALONE}, torch.get_num_threads()
    os.environ |= _ALONE
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    try:
        _join_process_group("nccl" if on_gpu else "gloo")
        yield Place(0, 1, 0, 1, torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join_process_group(backend: str) -> None:
    """Make a process group of this process alone. It stays, as DeepSpeed keeps groups for as long as the process lives."""
    if not dist.is_initialized():
        folder = tempfile.mkdtemp(prefix="ctxrec-alone-")
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
