"""A training as a job of Ray Train: start its workers, follow them, report their faults."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import UserCallback

from ctxrec.core import ray_cluster
from ctxrec.core.config import Config
from ctxrec.core.errors import Failed, UserError
from ctxrec.core.run_paths import CHECKPOINTS
from ctxrec.training import deepspeed_engine, faults
from ctxrec.training.attempt import attempt
from ctxrec.training.driver import cpus_of_worker, trains_on_gpus
from ctxrec.training.process_group import ProcessGroupConfig
from ctxrec.training.ray_worker import Work, on_ray
from ctxrec.training.worker import train_worker


def run_on_ray(
    job: dict[str, Any],
    config: Config,
    callbacks: Sequence[UserCallback],
    worker: Work = train_worker,
) -> None:
    """Run a training to its end, from its newest checkpoint where it has one.

    Args:
        job: what every worker is given (`ctxrec.training.worker.train_worker`).
        config: all options.
        callbacks: Ray Train's callbacks.
        worker: what each worker runs.

    Raises:
        UserError: a worker found a user's mistake, or the cluster has too few CPUs.
        Stopped: SIGTERM came, and a checkpoint is saved.
        Failed: a worker did not answer in time, or the disk is full.
    """
    out = job["run"]
    ray_cluster.connect()
    with attempt(out, keep=config.train.keep_checkpoints), ray_cluster.train_knows_its_cluster():
        try:
            _trainer(job, config, callbacks, worker).fit()
        except ray.train.TrainingFailedError as failure:
            told = faults.explain(str(failure), out, config.train.timeout_s)
            if told is None:
                raise
            print(file=sys.stderr)  # the progress bar that was cut off has no end of line
            raise Failed(told) from failure


def _trainer(
    job: dict[str, Any], config: Config, callbacks: Sequence[UserCallback], worker: Work
) -> ray.train.torch.TorchTrainer:
    options = config.train
    use_gpu = trains_on_gpus(options, ray.cluster_resources().get("GPU", 0))
    available, elastic = ray.cluster_resources().get("CPU", 0), options.min_workers < options.max_workers
    cpus = cpus_of_worker(options, available)
    if cpus * options.min_workers > available:
        raise UserError(
            f"train.workers = {options.min_workers} with {cpus:g} CPUs each need {cpus * options.min_workers:g} CPUs; "
            f"the cluster has {available:g}"
        )
    resources = {"CPU": cpus} | ({"GPU": options.gpus_per_worker} if use_gpu else {})
    env = {"OMP_NUM_THREADS": str(max(int(cpus), 1)), "TOKENIZERS_PARALLELISM": "false"}
    if not use_gpu:
        deepspeed_engine.use_cpu_accelerator()
        env |= {name: os.environ[name] for name in ("DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")}
    elif "DS_ACCELERATOR" in os.environ:
        env["DS_ACCELERATOR"] = (
            "cuda"  # workers inherit the driver's choice, and the driver may run on a head without GPU
        )
    env |= {"PYTHONWARNINGS": "ignore::FutureWarning", "RAY_TQDM_PATCH_PRINT": "0"}
    # Ray Train's controller polls the workers every 2 s by default, and each checkpoint waits for the last poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(max(0.2, 0.002 * options.max_workers)))
    # One limit for everything that waits: a worker that does not answer, a report that some worker never makes.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(min(options.timeout_s, 600))
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(options.timeout_s)
    if elastic:  # Ray still counts a machine that has just died, and a request for its CPUs would take a minute
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    if not os.environ.get("RAY_ADDRESS"):  # nobody takes a machine of a local cluster away with notice
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    env["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it would print an empty line for every step of a progress bar
    return ray.train.torch.TorchTrainer(
        on_ray(worker),
        train_loop_config=job,
        torch_config=ProcessGroupConfig(timeout_s=options.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(options.min_workers, options.max_workers) if elastic else options.max_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=job["run"],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=options.keep_checkpoints),
            failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": env},
        ),
    )
