"""Drive a training: check what is there, run it in this process or on Ray's workers, write the run's manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ctxrec.core import storage
from ctxrec.core.config import BACKBONES, Config, TrainConfig, load_config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.removed_options import lost_options, without_removed
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.core.toml import read_toml
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.hub import check_max_tokens, resolve_encoder
from ctxrec.index import faiss_package
from ctxrec.ingest.vocabularies import check_targets
from ctxrec.model.backbones import check_backbone
from ctxrec.training.encoder_outcome import EncoderOutcome, PairOutcome, encoder_outcome, with_pairs
from ctxrec.training.pair_phase import open_other_logs
from ctxrec.training.profiler import summarise
from ctxrec.training.trackers import check_trackers, read_train_log
from ctxrec.training.unused_options import set_in_vain

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
HOW_TO_RUN = (
    "workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "offload", "checkpoint_every", "keep_checkpoints",
    "max_failures", "timeout_s", "trackers",
)  # fmt: skip
_PACKAGES = ("ctxrec", "ray", "torch", "transformers", "peft", "deepspeed", "pyarrow")


def train(
    data_path: str,
    out: str,
    config: Config,
    *,
    callbacks: Sequence[UserCallback] = (),
    start: str = "",
    profile: bool = False,
    warm: str = "",
) -> str:
    """Train on prepared data. An unfinished training of the same config continues; a finished one is reused.

    A finished quick training at `out` is no obstacle for a full one: it is served until the full one is finished.

    Args:
        data_path: folder that `prepare` wrote.
        out: path or URI of the run.
        config: all options.
        callbacks: Ray Train's callbacks; they are given the figures and the checkpoint of each evaluation.
        start: folder of another run's checkpoint, from which a new run continues. The new run's `checkpoints` must hold
            the best weights of the phases before.
        profile: trace some steps of each phase, and print where their time goes.
        warm: bundle of an earlier version, whose towers are trained on (`ctxrec.training.warm_start`, whose `why_not` finds
            nothing against it).

    Returns:
        The run's path.

    Raises:
        UserError: there is no prepared data, another training lies at `out` or writes there now, or an option does not fit.
        Stopped: SIGTERM came, and a checkpoint is saved.
        Failed: a worker did not answer in time, or the disk is full.
    """
    data_path, out = storage.absolute(data_path), storage.absolute(out)
    data = PreparedData.open(data_path)
    if out == data_path:
        raise UserError(f"{out} holds the prepared data; expected another folder for the run; give another --out")
    in_vain = set_in_vain(config)
    config = with_absolute_paths(config).for_events(data.meta["counts"]["train"])
    if not _is_quick(config):
        check_trackers(config.train)
        check_backbone(config.model)
    others = open_other_logs(config, data)
    if data.meta["counts"]["train"] == 0:
        raise UserError(f"{data_path} has no training event; lower split.valid and split.test in the dataset spec")
    check_targets(data.spec.events, data.features.actions)
    if profile and _is_quick(config):
        raise UserError("--profile traces the steps of a training, and train.preset = 'quick' has none; leave one out")
    if _finished(out, config, data, others):
        print(f"reused: {out} holds this training, finished; nothing changed")
        return out
    if config.encoder.name and "text" in config.model.sources:
        path = resolve_encoder(config.encoder.name, storage.cache_dir())  # fail here, not in a worker
        check_max_tokens(path, config.encoder)
    here = config.train.workers == 0 or _is_quick(config)
    if here and config.train.use_gpu == "yes" and not torch.cuda.is_available():
        raise UserError(
            "train.use_gpu is 'yes', and this machine, on which the training would run, has no GPU; expected 'auto' or 'no'"
        )
    for sentence in in_vain:
        logger.warning("%s", sentence)
    with only_here(out):
        return _train(data, out, config, callbacks, {"start": start, "profile": profile, "warm": warm})


def _train(data: PreparedData, out: str, config: Config, callbacks: Sequence[UserCallback], how: dict[str, Any]) -> str:
    if _goes_on_from_quick(out, config):
        logger.info("%s holds a quick training; the full one takes its place when it is finished", out)
        storage.delete(RunPaths(out).text_vectors)  # they may be of another encoder; the machine keeps them anyway
    storage.write_text(RunPaths(out).config, to_toml(config))
    for note in data.meta.get("notes", []):
        logger.info("%s", note)
    begin = time.monotonic() - _logged_seconds(out)
    facts: dict[str, Any] = {}
    if _is_quick(config):  # Ray and DeepSpeed take longer to start than a quick training takes
        from ctxrec.training.quick import train_quick

        facts = train_quick(data, out, config)
    else:
        job = {"config": config.to_dict(), "data": data.path, "run": out, **how}
        facts = {"warm_start": how["warm"]} if how["warm"] else {}
        if config.train.workers == 0:
            from ctxrec.training.local_job import run_here

            run_here(job, config, callbacks)
        else:
            from ctxrec.training.ray_job import run_on_ray

            run_on_ray(job, config, callbacks)
    if how["profile"]:
        print(summarise(out))
    paths = RunPaths(out)
    for evaluation in (paths.metrics, paths.report, paths.requests, paths.evaluated):
        storage.delete(evaluation)  # of the quick model that lay here
    storage.write_json(paths.manifest, _manifest(out, data, config, time.monotonic() - begin) | facts)
    return out


def with_absolute_paths(config: Config) -> Config:
    """The config with absolute paths of pretrained models, because workers run in a folder of their own."""
    encoder, model = config.encoder, config.model
    if os.path.isdir(encoder.name):
        encoder = dataclasses.replace(encoder, name=os.path.abspath(encoder.name))
    if model.backbone not in BACKBONES and os.path.isdir(model.backbone):
        model = dataclasses.replace(model, backbone=os.path.abspath(model.backbone))
    train = dataclasses.replace(config.train, also=tuple(storage.absolute(path) for path in config.train.also))
    return dataclasses.replace(config, encoder=encoder, model=model, train=train)


def _finished(out: str, config: Config, data: PreparedData, others: Sequence[PreparedData]) -> bool:
    """Whether `out` holds this training and it is finished.

    Raises:
        UserError: `out` holds another training.
    """
    saved = RunPaths(out).config
    if not storage.exists(saved) or _goes_on_from_quick(out, config):
        return False
    written = read_toml(saved)
    lost = lost_options(written, ("encoder", "model", "train"))
    if lost:
        raise UserError(
            f"{out} holds a training of an earlier version with {', '.join(lost)}, which this version does not follow; "
            "train again with another --out"
        )
    trained = Config.from_dict(without_removed(written, source=saved), source=saved)
    if other := _other_options(_training_options(trained), _training_options(config)):
        raise UserError(f"{out} holds a training of another configuration: {other}; give another --out, or delete it")
    manifest = RunPaths(out).manifest
    if not storage.exists(manifest):
        return False
    made = read_run_manifest(out)
    if made.get("preset", "full") != config.train.preset:
        return False  # the manifest of a quick training that a full one went on from, and has not finished
    if made["data_fingerprint"] != data.fingerprint:
        raise UserError(f"{out} was trained on other data; give another --out, or delete it")
    if made.get("also", []) != [other.fingerprint for other in others]:
        raise UserError(
            f"the logs of train.also have changed since {out} was trained; give another --out, or delete it"
        )
    return True


def _is_quick(config: Config) -> bool:
    return config.train.preset == "quick"


def _goes_on_from_quick(out: str, config: Config) -> bool:
    """Whether `out` holds a quick training and a full one is asked for."""
    saved = RunPaths(out).config
    return (
        not _is_quick(config) and storage.exists(saved) and read_toml(saved).get("train", {}).get("preset") == "quick"
    )


def _training_options(config: Config) -> dict[str, Any]:
    """The options that the result of a training depends on. How many workers share its work is not one of them."""
    options = config.to_dict()
    for section in ("evaluate", "prepare", "rerank", "diversity"):
        del options[section]
    for key in HOW_TO_RUN:
        del options["train"][key]
    return options


def _other_options(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first options that differ between two trainings, in words; "" where none does."""
    flat = [
        {f"{section}.{key}": value for section, keys in options.items() for key, value in keys.items()}
        for options in (there, here)
    ]
    differ = [name for name in flat[1] if flat[0].get(name) != flat[1][name]]
    told = ", ".join(f"{name} is {flat[0].get(name)!r} there and {flat[1][name]!r} here" for name in differ[:5])
    return told + (f", and {len(differ) - 5} more differ" if len(differ) > 5 else "")


def trains_on_gpus(options: TrainConfig, available: float) -> bool:
    """Whether a training runs on GPUs of which a cluster has `available`."""
    return options.use_gpu == "yes" or (options.use_gpu == "auto" and available >= 1)


def cpus_of_worker(options: TrainConfig, available: float) -> float:
    """CPUs of each worker on a cluster that has `available` CPUs."""
    elastic = options.min_workers < options.max_workers
    return options.cpus_per_worker or max(available // max(options.max_workers, 1), 1.0 if elastic else 0.5)


def _logged_seconds(run: str) -> float:
    """Seconds that the phases of an interrupted training have taken so far."""
    return sum({line["phase"]: line.get("seconds", 0.0) for line in read_train_log(run)}.values())


def _manifest(out: str, data: PreparedData, config: Config, seconds: float) -> dict[str, Any]:
    inside = storage.read_json(BundlePaths(RunPaths(out).bundle).manifest)
    outcome, ndcg = run_outcome(out), _exported_ndcg(out)
    return {
        "format_version": FORMAT_VERSION,
        "preset": config.train.preset,
        "packages": {name: _version(name) for name in (*_PACKAGES, *faiss_package.installed())},
        "data_path": data.path,
        "data_fingerprint": data.fingerprint,
        "git_commit": _git_commit(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "model_version": inside["model_version"],
        "train_seconds": round(seconds, 1),
        "encoder": outcome.state,
        "encoder_reason": outcome.why,
        "also": [other.fingerprint for other in open_other_logs(config, data)],
        "files": {f"bundle/{name}": digest for name, digest in inside["files"].items()},
    } | ({} if ndcg is None else {"valid_ndcg@10": ndcg})


def _exported_ndcg(run: str) -> float | None:
    """Validation NDCG@10 of what a full training exports: the blend's, or the towers' where there is no blend."""
    path = RunPaths(run).blend_ndcg
    ndcg = storage.read_json(path)["ndcg@10"] if storage.exists(path) else None
    towers = [line["valid_ndcg@10"] for line in read_train_log(run) if "valid_ndcg@10" in line]
    return ndcg if ndcg is not None else max(towers, default=None)


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
    path = RunPaths(run).not_tuned  # a run of an earlier version has none
    why_not = storage.read_json(path)["why"] if storage.exists(path) else ""
    outcome = encoder_outcome(load_config(base=RunPaths(run).config), read_train_log(run), why_not)
    pairs = RunPaths(run).pair_outcome
    return with_pairs(outcome, PairOutcome.read(pairs)) if storage.exists(pairs) else outcome


def describe_run(run: str) -> str:
    """Two lines about a finished training: its result, and what became of the encoder."""
    manifest = read_run_manifest(run)
    ndcg, seconds = manifest.get("valid_ndcg@10"), manifest.get("train_seconds")
    took = f" in {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
    found = f"validation NDCG@10 {ndcg:.4f}" if isinstance(ndcg, (int, float)) else "no validation events"
    return (
        f"trained{took}; {found}; "
        f"model {manifest['model_version']} in {RunPaths(run).bundle}\n{run_outcome(run).sentence}"
    )
