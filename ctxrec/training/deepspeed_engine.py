"""DeepSpeed around a `Network`: one configuration for gloo on CPUs and NCCL on GPUs, ZeRO 0 to 3."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn

from ctxrec.core import terminal
from ctxrec.core.config import TrainConfig
from ctxrec.training.checkpoint import make_optimizer_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerParams:
    """Numbers of the optimizer and its schedule that no option sets. No measurement of ours supports other values.

    Attributes:
        betas: of AdamW.
        clip: norm of the gradients, at most.
        content_lr: learning rate of the content head as a share of the towers', as it starts from principal components.
        language_lr: learning rate of a language model that reads the history as a share of the encoder's.
        final_lr: learning rate at the end of the schedule as a share of its peak.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    content_lr: float = 0.25
    language_lr: float = 1 / 6
    final_lr: float = 0.1


OPTIMIZER = OptimizerParams()


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What products are computed in; every worker must call it.

    `train.precision` says it. "auto" takes bfloat16 where every worker's GPU, or CPU with AMX, multiplies it faster.
    """
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported()
    agreed = torch.tensor(float(fast), device=device)
    if dist.is_initialized():
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return torch.bfloat16 if agreed > 0 else torch.float32


def deepspeed_config(
    config: TrainConfig, *, world: int, accumulation: int, rows_per_micro_batch: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The configuration of DeepSpeed that follows from ours.

    Args:
        config: options of the training.
        world: number of workers.
        accumulation: micro-batches of a step.
        rows_per_micro_batch: windows of a worker's micro-batch.
        dtype: what products are computed in.
    """
    # Weights in bfloat16 need a float32 copy, which stage 0 does not give access to as the other stages do.
    stage = max(config.zero_stage, 1) if dtype == torch.bfloat16 else config.zero_stage
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if config.offload and stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    if world == 1:  # with it, stage 3 replaces PyTorch's linear function for the rest of the process, for nothing
        zero["memory_efficient_linear"] = False
    return {
        "train_micro_batch_size_per_gpu": rows_per_micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": rows_per_micro_batch * accumulation * world,
        "gradient_clipping": OPTIMIZER.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }


def parameter_groups(module: nn.Module, config: TrainConfig, *, tower_lr: float, encoder_lr: float) -> list[dict]:
    """Trainable parameters in groups, each with its peak learning rate; weight decay is for matrices of the towers alone.

    Args:
        module: the network.
        config: options of the training.
        tower_lr: peak rate of the towers.
        encoder_lr: peak rate of the encoder.
    """
    kinds = ("matrices", "vectors", "content", "encoder", "language")
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in kinds}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("encoder."):
            groups["encoder"].append(parameter)
        elif ".lora_" in name:  # the adapter of a language model as backbone
            groups["language"].append(parameter)
        elif name.startswith("towers.content."):
            groups["content"].append(parameter)
        else:
            groups["vectors" if parameter.dim() < 2 else "matrices"].append(parameter)
    made = []
    for name, parameters in groups.items():
        if parameters:
            own = {"encoder": encoder_lr, "language": encoder_lr * OPTIMIZER.language_lr}
            lr = (own | {"content": tower_lr * OPTIMIZER.content_lr}).get(name, tower_lr)
            decay = config.weight_decay if name == "matrices" else 0.0
            # The rate is 0 until the first step sets it: DeepSpeed may step once while it starts.
            made.append({"params": parameters, "lr": 0.0, "peak_lr": lr, "weight_decay": decay})
    return made


def start_engine(module: nn.Module, groups: list[dict], ds_config: dict[str, Any]) -> Any:
    """A DeepSpeed engine over `module`. The process group must exist: Ray Train makes it."""
    # At import DeepSpeed wraps a function that nothing here calls for PyTorch's compiler, whose own import takes a second.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    with terminal.filtered_stderr(
        lambda _line: False
    ):  # its import tries to link libraries that only GPUs need, and the linker complains
        import deepspeed  # heavy, and reads DS_ACCELERATOR at import

    # On a CPU DeepSpeed would compile a sum over processes by shared memory, which takes a minute at the first training
    # of a machine. Gloo's is as fast (RESULTS.md, 2026-11-30).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "offload_optimizer" in ds_config["zero_optimization"]:
        build_cpu_adam()
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: Any = DeepSpeedCPUAdam(groups, betas=OPTIMIZER.betas, adamw_mode=True)
    else:
        # On a CPU the fused form passes over memory once, the default a dozen times; on a GPU the default is as good.
        fused = next(module.parameters()).device.type == "cpu" or None
        optimizer = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, fused=fused)
    with _quiet():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config, dist_init_required=False)
    make_optimizer_state(engine)
    return engine


def set_learning_rate(engine: Any, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step as a share of its peak: linear warm-up, then a cosine down to `OPTIMIZER.final_lr`.

    Args:
        step: steps done.
        steps: of the schedule.
        warmup: share of the steps in which the rate rises.
    """
    warm = min(1.0, (step + 1) / max(warmup * steps, 1))
    return warm * (OPTIMIZER.final_lr + (1 - OPTIMIZER.final_lr) * 0.5 * (1 + math.cos(math.pi * (step / steps))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's warnings and errors alone, as it logs a page at start."""
    names = [logging.getLogger(name) for name in ("DeepSpeed", "deepspeed")]
    levels = [log.level for log in names]
    for log in names:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(names, levels, strict=True):
            log.setLevel(level)


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU, and where its compiled CPU extension is kept. Call it before its import.

    Each Python environment has an extension of its own, as ninja compiles anew what another environment has compiled.
    """
    from ctxrec.core.storage import cache_dir, sha256_json

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = os.path.join(cache_dir(), "torch_extensions", sha256_json(sys.prefix)[:12])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", folder)
    scripts, path = os.path.dirname(sys.executable), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != scripts:
        os.environ["PATH"] = scripts + os.pathsep + path


def build_cpu_adam() -> None:
    """Compile DeepSpeed's optimizer for offload on a CPU, once on each machine; other processes wait for it.

    PyTorch marks a build by a file. A killed process leaves that file behind, and all later processes would wait for it
    without end. A lock of the operating system ends with its holder, so the holder of ours may remove such a file.
    """
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    if folder is None or os.environ.get("DS_ACCELERATOR") != "cpu":
        return
    from deepspeed.accelerator import get_accelerator

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "building"), "w", encoding="utf-8") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for left in glob.glob(os.path.join(folder, "*", "lock")):
            logger.info("a build of %s was cut off; it is built again", os.path.basename(os.path.dirname(left)))
            os.remove(left)
        builder = get_accelerator().create_op_builder("CPUAdamBuilder")
        if builder is not None and builder.is_compatible():
            builder.load()
