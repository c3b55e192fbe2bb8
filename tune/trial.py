"""One trial: a training by `ctxrec.training.driver.train`, as Ray Tune's function in an actor that holds no CPU.

    trial's actor (no CPU) --train()--> Ray Train's controller (no CPU) --> Ray Train's workers (the trial's CPUs and GPUs)
           ^-------- queue <-------- Reporter: figures of each evaluation ----'

Only the workers hold CPUs and GPUs, so a trial that waits for room holds nothing that another trial waits for. The sweep
starts only as many trials as there is room for. With `sweep.workers = 0` the trial's actor trains itself, and holds the CPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
from ray.train import UserCallback
from ray.util.queue import Queue

from ctxrec.core import storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.run_paths import RunPaths
from ctxrec.training.checkpoint import STATE
from ctxrec.training.driver import train
from tune.space import value_of, with_values

KEPT = "kept.json"  # the checkpoint of a trial that Ray Tune sees in pbt; it says where the weights are


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What all trials of a stage share. It is sent to their actors.

    Attributes:
        data: folder with prepared data.
        folder: folder that the runs of the trials are in.
        base: options of all trials; those of the space replace some of them.
        metrics: what is optimised.
        history: events of the history that a trial reads, at most; 0 means no limit.
        keeps: whether the weights of each evaluation are kept, for pbt.
    """

    data: str
    folder: str
    base: dict[str, Any]
    metrics: tuple[str, ...]
    history: int = 0
    keeps: bool = False


def make_trainable(job: TrialJob) -> Any:
    """The function that Ray Tune calls with a trial's values."""

    def trial(config: dict[str, Any]) -> None:
        run_trial(config, job)

    return trial


def run_of(folder: str, trial_id: str) -> str:
    """The run folder of a trial."""
    return storage.join(folder, trial_id)


def config_of(job: TrialJob, values: dict[str, Any]) -> Config:
    """All options of a trial with these values of the space."""
    config = with_values(Config.from_dict(job.base), values)
    if job.history and config.model.history > job.history:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, history=job.history))
    return config


def run_trial(values: dict[str, Any], job: TrialJob) -> None:
    """Train, and report each evaluation to Ray Tune, until Ray Tune stops the trial or the training ends."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    config = config_of(job, values)
    run, start = _place(job, config)
    queue = Queue(1, actor_options={"num_cpus": 0})  # the training waits here for Ray Tune's decision
    errors: list[Exception] = []
    forward = threading.Thread(target=_forward_or_drain, args=(queue, config, job, errors), daemon=True)
    forward.start()
    keep = storage.join(run, "kept") if job.keeps else ""
    try:
        train(job.data, run, config, callbacks=[Reporter(queue, run, keep)], start=start)
    finally:
        queue.put(None)
        forward.join()
    if errors:
        raise errors[0]


def _place(job: TrialJob, config: Config) -> tuple[str, str]:
    """The trial's run, and the checkpoint that it begins from: empty, unless pbt gave it the weights of another trial."""
    trial_id = ray.tune.get_context().get_trial_id()
    found = ray.tune.get_checkpoint()
    run = run_of(job.folder, trial_id)
    if found is None:
        return run, ""
    with found.as_directory() as folder:
        start = storage.read_json(os.path.join(folder, KEPT))["folder"]
    generation = 0
    while storage.exists(RunPaths(run).config) and load_config(base=RunPaths(run).config) != config:
        generation += 1
        run = f"{run_of(job.folder, trial_id)}.{generation}"
    begin_from(start, run)
    return run, start


def begin_from(kept: str, run: str) -> None:
    """Put the best weights and the log of a kept checkpoint into a new run. A run that is there already stays as it is."""
    if storage.exists(RunPaths(run).config):
        return
    for path in storage.list_files(kept):
        name = os.path.basename(path)
        if name.startswith("best-"):
            storage.write_bytes(storage.join(RunPaths(run).checkpoints, name), storage.read_bytes(path))
        elif name == os.path.basename(RunPaths(run).train_log):
            storage.write_bytes(RunPaths(run).train_log, storage.read_bytes(path))


def keep_checkpoint(run: str, checkpoint: str, kept: str) -> str:
    """Copy a checkpoint of a run, with the best weights and the log that belong to it, to `kept`; returns `kept`."""
    for path in storage.list_files(checkpoint):
        storage.write_bytes(storage.join(kept, os.path.basename(path)), storage.read_bytes(path))
    for phase in ("towers", "encoder"):
        best = RunPaths(run).best(phase)
        if storage.exists(best):
            storage.write_bytes(storage.join(kept, os.path.basename(best)), storage.read_bytes(best))
    log = RunPaths(run).train_log
    if storage.exists(log):
        storage.write_bytes(storage.join(kept, os.path.basename(log)), storage.read_bytes(log))
    return kept


class Reporter(UserCallback):
    """Sends the figures of each evaluation to the trial's actor. Ray Train calls it in its controller."""

    def __init__(self, queue: Queue, run: str, keep: str) -> None:
        """Make the callback.

        Args:
            queue: what the trial's actor reads.
            run: the trial's run.
            keep: folder that the weights of each evaluation are kept in; empty keeps none.
        """
        self._queue, self._run, self._keep = queue, run, keep

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Send the figures of rank 0 and the place of the checkpoint."""
        message = dict(metrics[0])
        if checkpoint is not None:
            message["checkpoint"] = storage.join(RunPaths(self._run).checkpoints, os.path.basename(checkpoint.path))
            if self._keep:
                kept = storage.join(self._keep, os.path.basename(checkpoint.path))
                message["kept"] = keep_checkpoint(self._run, message["checkpoint"], kept)
        self._queue.put(message)


def _forward_or_drain(queue: Queue, config: Config, job: TrialJob, errors: list[Exception]) -> None:
    """Forward until the training ends. After an error, empty the queue, so that the training does not wait for ever."""
    try:
        _forward(queue, config, job)
    except Exception as error:  # the trial raises it when its training has ended
        errors.append(error)
        while queue.get() is not None:
            pass


def _forward(queue: Queue, config: Config, job: TrialJob) -> None:
    """Report each message of the queue to Ray Tune, until a None comes."""
    clock = _Clock(config)
    with contextlib.suppress(ray.exceptions.RayActorError):  # the queue ends with a trial that is stopped
        while (message := queue.get()) is not None:
            figures = clock.over_phases(message)
            figures |= {key: value_of(config, key) for key in job.metrics if "." in key}
            if "kept" not in message:
                ray.tune.report(figures)
                continue
            with tempfile.TemporaryDirectory() as folder:
                storage.write_json(os.path.join(folder, KEPT), {"folder": message["kept"]})
                ray.tune.report(figures, checkpoint=ray.tune.Checkpoint.from_directory(folder))


class _Clock:
    """Epochs and seconds summed over the phases, and the best value so far."""

    def __init__(self, config: Config) -> None:
        self._towers = float(config.train.tower_epochs)
        self._best = float("-inf")
        self._phase, self._before, self._last = "towers", 0.0, 0.0

    def over_phases(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["phase"] != self._phase:
            self._phase, self._before = message["phase"], self._before + self._last
        self._last = message["seconds"]
        self._best = max(self._best, message["valid_ndcg@10"])
        later = self._towers if self._phase == "encoder" else 0.0
        return {
            "valid_ndcg@10": self._best,
            "epoch": later + message["epoch"],
            "seconds": self._before + self._last,
            "phase": self._phase,
            "checkpoint": message.get("checkpoint", ""),
        }


def is_checkpoint(folder: str) -> bool:
    """Whether the folder holds a checkpoint."""
    return bool(folder) and storage.exists(storage.join(folder, STATE))
