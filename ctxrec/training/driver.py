"""Drive a training: check what is there, run Ray Train's workers, write the run's manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import UserCallback

from ctxrec.core import ray_cluster, storage
from ctxrec.core.config import BACKBONES, Config, TrainConfig, load_config, to_toml
from ctxrec.core.errors import Failed, Stopped, UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.removed_options import lost_options, without_removed
from ctxrec.core.run_paths import CHECKPOINTS, BundlePaths, RunPaths
from ctxrec.core.toml import read_toml
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.hub import check_max_tokens, resolve_encoder
from ctxrec.ingest.vocabularies import check_targets
from ctxrec.model.backbones import check_backbone
from ctxrec.training import checkpoint, deepspeed_engine, faults
from ctxrec.training.encoder_outcome import EncoderOutcome, encoder_outcome
from ctxrec.training.process_group import ProcessGroupConfig
from ctxrec.training.profiler import summarise
from ctxrec.training.trackers import check_trackers, read_train_log
from ctxrec.training.worker import train_worker

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_HOW_TO_RUN = (
    "workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "offload", "checkpoint_every", "keep_checkpoints",
    "max_failures", "timeout_s", "trackers",
)  # fmt: skip
_PACKAGES = ("ctxrec", "ray", "torch", "transformers", "peft", "deepspeed", "faiss-cpu", "pyarrow")


def train(
    data_path: str,
    out: str,
    config: Config,
    *,
    callbacks: Sequence[UserCallback] = (),
    start: str = "",
    profile: bool = False,
) -> str:
    """Train on prepared data. An unfinished training of the same config continues; a finished one is reused.

    Args:
        data_path: folder that `prepare` wrote.
        out: path or URI of the run.
        config: all options.
        callbacks: Ray Train's callbacks; they are given the figures and the checkpoint of each evaluation.
        start: folder of another run's checkpoint, from which a new run continues. The new run's `checkpoints` must hold
            the best weights of the phases before.
        profile: trace some steps of each phase, and print where their time goes.

    Returns:
        The run's path.

    Raises:
        UserError: there is no prepared data, another training lies at `out`, or an option does not fit.
        Stopped: SIGTERM came, and a checkpoint is saved.
        Failed: a worker did not answer in time, or the disk is full.
    """
    data_path, out = _absolute(data_path), _absolute(out)
    data = PreparedData.open(data_path)
    config = with_absolute_paths(config).for_events(data.meta["counts"]["train"])
    check_trackers(config.train)
    if data.meta["counts"]["train"] == 0:
        raise UserError(f"{data_path} has no training event; lower split.valid and split.test in the dataset spec")
    check_targets(data.spec.events, data.features.actions)
    if _finished(out, config, data):
        print(f"reused: {out} holds this training, finished; nothing changed")
        return out
    if config.encoder.name and "text" in config.model.sources:
        path = resolve_encoder(config.encoder.name, storage.cache_dir())  # fail here, not in a worker
        check_max_tokens(path, config.encoder)
    check_backbone(config.model)
    storage.write_text(RunPaths(out).config, to_toml(config))
    for note in data.meta.get("notes", []):
        logger.info("%s", note)
    ray_cluster.connect()
    begin = time.monotonic() - _logged_seconds(out)
    checkpoints = RunPaths(out).checkpoints
    faults.clear(checkpoints)
    checkpoint.tidy(checkpoints, config.train.keep_checkpoints)
    with faults.stop_on_sigterm(checkpoints), ray_cluster.train_knows_its_cluster():
        try:
            job = {"config": config.to_dict(), "data": data_path, "run": out, "start": start, "profile": profile}
            _trainer(job, config, callbacks).fit()
        except ray.train.TrainingFailedError as failure:
            told = faults.explain(str(failure), out, config.train.timeout_s)
            if told is None:
                raise
            print(file=sys.stderr)  # the progress bar that was cut off has no end of line
            raise Failed(told) from failure
        finally:
            if (mistake := faults.mistake(checkpoints)) is not None:
                raise mistake
    checkpoint.tidy(checkpoints, config.train.keep_checkpoints)
    if faults.stop_asked(checkpoints):
        raise Stopped(f"stopped as asked, and saved; the same command goes on with {out}")
    if profile:
        print(summarise(out))
    storage.write_json(RunPaths(out).manifest, _manifest(out, data, time.monotonic() - begin))
    return out


def with_absolute_paths(config: Config) -> Config:
    """The config with absolute paths of pretrained models, because workers run in a folder of their own."""
    encoder, model = config.encoder, config.model
    if os.path.isdir(encoder.name):
        encoder = dataclasses.replace(encoder, name=os.path.abspath(encoder.name))
    if model.backbone not in BACKBONES and os.path.isdir(model.backbone):
        model = dataclasses.replace(model, backbone=os.path.abspath(model.backbone))
    return dataclasses.replace(config, encoder=encoder, model=model)


def _absolute(path: str) -> str:
    return path if storage.is_uri(path) else os.path.abspath(path)


def _finished(out: str, config: Config, data: PreparedData) -> bool:
    """Whether `out` holds this training and it is finished.

    Raises:
        UserError: `out` holds another training.
    """
    saved = RunPaths(out).config
    if not storage.exists(saved):
        return False
    written = read_toml(saved)
    lost = lost_options(written, ("encoder", "model", "train"))
    if lost:
        raise UserError(
            f"{out} holds a training of an earlier version with {', '.join(lost)}, which this version does not follow; "
            "train again with another --out"
        )
    trained = Config.from_dict(without_removed(written, source=saved), source=saved)
    if _training_options(trained) != _training_options(config):
        raise UserError(f"{out} holds a training of another configuration; give another --out, or delete it")
    manifest = RunPaths(out).manifest
    if not storage.exists(manifest):
        return False
    if read_run_manifest(out)["data_fingerprint"] != data.fingerprint:
        raise UserError(f"{out} was trained on other data; give another --out, or delete it")
    return True


def _training_options(config: Config) -> dict[str, Any]:
    """The options that the result of a training depends on. How many workers share its work is not one of them."""
    options = config.to_dict()
    for section in ("evaluate", "prepare", "rerank", "diversity"):
        del options[section]
    for key in _HOW_TO_RUN:
        del options["train"][key]
    return options


def trains_on_gpus(options: TrainConfig, available: float) -> bool:
    """Whether a training runs on GPUs of which a cluster has `available`."""
    return options.use_gpu == "yes" or (options.use_gpu == "auto" and available >= 1)


def cpus_of_worker(options: TrainConfig, available: float) -> float:
    """CPUs of each worker on a cluster that has `available` CPUs."""
    elastic = options.min_workers < options.max_workers
    return options.cpus_per_worker or max(available // options.max_workers, 1.0 if elastic else 0.5)


def _trainer(job: dict[str, Any], config: Config, callbacks: Sequence[UserCallback]) -> ray.train.torch.TorchTrainer:
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
    env["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it would print an empty line for every step of a progress bar
    return ray.train.torch.TorchTrainer(
        train_worker,
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


def _logged_seconds(run: str) -> float:
    """Seconds that the phases of an interrupted training have taken so far."""
    return sum({line["phase"]: line.get("seconds", 0.0) for line in read_train_log(run)}.values())


def _manifest(out: str, data: PreparedData, seconds: float) -> dict[str, Any]:
    inside = storage.read_json(BundlePaths(RunPaths(out).bundle).manifest)
    outcome = run_outcome(out)
    return {
        "format_version": FORMAT_VERSION,
        "packages": {name: _version(name) for name in _PACKAGES},
        "data_path": data.path,
        "data_fingerprint": data.fingerprint,
        "git_commit": _git_commit(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "model_version": inside["model_version"],
        "train_seconds": round(seconds, 1),
        "encoder": outcome.state,
        "encoder_reason": outcome.why,
        "files": {f"bundle/{name}": digest for name, digest in inside["files"].items()},
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git_commit() -> str | None:
    """The commit of the working folder; None where it is no git checkout."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def run_outcome(run: str) -> EncoderOutcome:
    """What became of the encoder in a training, also of a run whose manifest does not say so."""
    return encoder_outcome(load_config(base=RunPaths(run).config), read_train_log(run))


def describe_run(run: str) -> str:
    """Two lines about a finished training: its result, and what became of the encoder."""
    manifest = read_run_manifest(run)
    best = max((line["valid_ndcg@10"] for line in read_train_log(run) if "valid_ndcg@10" in line), default=float("nan"))
    seconds = manifest.get("train_seconds")
    took = f" in {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
    return (
        f"trained{took}; best validation NDCG@10 {best:.4f}; "
        f"model {manifest['model_version']} in {RunPaths(run).bundle}\n{run_outcome(run).sentence}"
    )
