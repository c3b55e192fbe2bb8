"""What the options come to that leave something to the log, the catalogue or the hardware (`--print-effective`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import ray
import torch

from ctxrec.core import ray_cluster, ray_private, storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.option_origins import Resolved, annotated_config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.index.builder import choose_kind
from ctxrec.index.faiss_index import num_gpus
from ctxrec.model.inputs import MAX_ID_ROWS
from ctxrec.model.network import choose_loss
from ctxrec.training.deepspeed_engine import choose_precision
from ctxrec.training.driver import cpus_of_worker, trains_on_gpus
from ctxrec.training.unused_options import unused_options


@dataclass(frozen=True)
class AvailableHardware:
    """What a command has to run on."""

    cpus: float
    gpus: float
    where: str  # in words, such as "this machine"


def effective_config(
    config: Config, origins: Mapping[str, str], *, data: str | None = None, run: str | None = None
) -> str:
    """All options as they would be used, as TOML with where each value comes from.

    Args:
        config: the options as they were given.
        origins: where each comes from (`ctxrec.core.option_origins`).
        data: folder that `prepare` wrote, where the command knows it.
        run: a finished run, whose data counts where `data` is not given and it is still there.

    Raises:
        UserError: there is no prepared data at `data`.
    """
    prepared = PreparedData.open(data) if data is not None else None
    if data is None and run is not None and storage.exists(RunPaths(run).manifest):
        with contextlib.suppress(UserError):  # it was moved, or lies on another machine
            prepared = PreparedData.open(read_run_manifest(run)["data_path"])
    return annotated_config(config, origins, resolve(config, hardware(), prepared))


def hardware() -> AvailableHardware:
    """The cluster that RAY_ADDRESS names, which is joined for it; else this machine, and no cluster is started."""
    if os.environ.get("RAY_ADDRESS"):
        ray_cluster.connect()
        found = ray.cluster_resources()
        return AvailableHardware(
            found.get("CPU", 0), found.get("GPU", 0), f"the cluster at {os.environ['RAY_ADDRESS']}"
        )
    return AvailableHardware(ray_private.num_cpus(), torch.cuda.device_count(), "this machine")


def resolve(config: Config, machine: AvailableHardware, data: PreparedData | None = None) -> dict[str, Resolved]:
    """What each option comes to that leaves something open, by "section.key"; the others are not in it.

    Args:
        config: the options as they were given.
        machine: what the command runs on.
        data: the prepared data, where the command knows it.
    """
    found = {**_of_hardware(config, machine), **_of_meaning(config)}
    found |= {} if data is None else _of_log(config, data)
    return found | {name: Resolved(f"not used: {why}") for name, why in unused_options(config).items()}


def _of_hardware(config: Config, machine: AvailableHardware) -> dict[str, Resolved]:
    train, found = config.train, {}
    has = f"{machine.where} has {machine.cpus:g} CPU{'s' * (machine.cpus != 1)} and {machine.gpus:g} GPUs"
    on_gpus = trains_on_gpus(train, machine.gpus)
    if train.use_gpu == "auto":
        found["train.use_gpu"] = Resolved(f"hardware: {has}", "yes" if on_gpus else "no")
    if train.cpus_per_worker == 0:
        found["train.cpus_per_worker"] = Resolved(f"hardware: {has}", float(cpus_of_worker(train, machine.cpus)))
    dtype = choose_precision(train, torch.device("cuda" if on_gpus and torch.cuda.is_available() else "cpu"))
    bf16 = dtype == torch.bfloat16
    if train.precision == "auto":
        why = "it multiplies bf16 faster" if bf16 else "it does not multiply bf16 faster"
        found["train.precision"] = Resolved(f"hardware of this machine: {why}", "bf16" if bf16 else "fp32")
    if train.zero_stage == 0 and bf16:
        found["train.zero_stage"] = Resolved("stage 0 with bf16 runs as stage 1", 1)
    elif train.zero_stage == 0:
        found["train.offload"] = Resolved("not used: train.zero_stage is 0")
    if train.micro_batch_size == 0:
        windows = -(-train.global_batch_size // max(train.max_workers, 1))
        found["train.micro_batch_size"] = Resolved("all windows of a worker's step", windows)
    if config.index.use_gpu == "auto":
        found["index.use_gpu"] = Resolved(f"hardware: {has}", "yes" if num_gpus(config.index) else "no")
    if config.evaluate.actors == 0:
        found["evaluate.actors"] = Resolved(
            f"0: as many as there are CPUs and parts of the work, here at most {machine.cpus:g}; none for little work"
        )
    return found


def _of_meaning(config: Config) -> dict[str, Resolved]:
    """Values that stand for a rule, which is applied later."""
    found = {}
    for name, value, why in (
        ("train.eval_every", config.train.eval_every, "0: once an epoch"),
        ("train.checkpoint_every", config.train.checkpoint_every, "0: after each evaluation"),
        ("encoder.top_layers", config.encoder.top_layers, "0: all layers"),
        ("index.nprobe", config.index.nprobe, "0: as many as index.recall needs, measured when the index is built"),
        (
            "index.ef_search",
            config.index.ef_search,
            "0: as many as index.recall needs, measured when the index is built",
        ),
    ):
        if value == 0:
            found[name] = Resolved(why)
    if config.train.encoder_epochs == "auto":
        epochs = config.train.most_encoder_epochs
        found["train.encoder_epochs"] = Resolved(f"the log and its texts decide: {epochs}, or no such phase")
    if not config.rerank.encoder:
        found["rerank.encoder"] = Resolved("encoder.name", config.encoder.name or None)
    if config.encoder.pooling == "auto":
        found["encoder.pooling"] = Resolved("the checkpoint of encoder.name decides")
    if not config.diversity.is_on:
        found["diversity.pool"] = Resolved(
            "used where a request asks for diversity; else a list has the order of the scores"
        )
    return found


def _of_log(config: Config, data: PreparedData) -> dict[str, Resolved]:
    events, items = data.meta["counts"]["train"], data.num_items
    of_catalogue, found = f"size of the catalogue: {items:,} items", {}
    if config.train.tower_epochs == 0:
        epochs = config.for_events(events).train.tower_epochs
        found["train.tower_epochs"] = Resolved(f"size of the log: {events:,} training events", epochs)
    if config.train.loss == "auto":
        found["train.loss"] = Resolved(of_catalogue, choose_loss(config.train, items))
    if config.model.id_buckets == 0:
        found["model.id_buckets"] = Resolved(of_catalogue, min(items, MAX_ID_ROWS))
    if config.prepare.buckets == 0:
        found["prepare.buckets"] = Resolved("as the data was prepared", data.meta["counts"]["buckets"])
    if config.index.kind == "auto" and config.index.latency_ms > 0:
        found["index.kind"] = Resolved("a timing decides when the index is built")
    elif config.index.kind == "auto":
        found["index.kind"] = Resolved(of_catalogue, choose_kind(items, config.index))
    return found
