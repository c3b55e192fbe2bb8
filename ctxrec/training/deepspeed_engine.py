"""DeepSpeed around a `Network`: one configuration for gloo on CPUs and NCCL on GPUs, ZeRO 0 to 3."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn

from ctxrec.core.config import TrainConfig
from ctxrec.training.checkpoint import make_optimizer_state

logger = logging.getLogger(__name__)

_BETAS = (0.9, 0.98)
_CLIP = 1.0  # norm of the gradients, at most; no measurement supports another value
CONTENT_LR = 0.25  # of the towers' rate: the content head starts from a good place


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """bf16 where asked, and where every worker's GPU or CPU (AMX) multiplies it faster; every worker takes part."""
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
    """The DeepSpeed configuration that follows from ours."""
    # Weights of bf16 need their float32 beside them, which stage 0 does not show as the others do.
    stage = max(config.zero_stage, 1) if dtype == torch.bfloat16 else config.zero_stage
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if config.offload and stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": rows_per_micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": rows_per_micro_batch * accumulation * world,
        "gradient_clipping": _CLIP,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }


def parameter_groups(module: nn.Module, config: TrainConfig, *, tower_lr: float, encoder_lr: float) -> list[dict]:
    """Trainable parameters in groups with a peak learning rate each; vectors and adapters do not decay."""
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "content": [], "encoder": []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("encoder.") or ".lora_" in name:  # a language model as backbone has an adapter too
            groups["encoder"].append(parameter)
        elif name.startswith("towers.content."):
            groups["content"].append(parameter)
        else:
            groups["vectors" if parameter.dim() < 2 else "matrices"].append(parameter)
    made = []
    for name, parameters in groups.items():
        if parameters:
            lr = {"encoder": encoder_lr, "content": tower_lr * CONTENT_LR}.get(name, tower_lr)
            decay = config.weight_decay if name == "matrices" else 0.0
            # The rate is 0 until the first step sets it: DeepSpeed may step once while it starts.
            made.append({"params": parameters, "lr": 0.0, "peak_lr": lr, "weight_decay": decay})
    return made


def start_engine(module: nn.Module, groups: list[dict], ds_config: dict[str, Any]) -> Any:
    """A DeepSpeed engine over `module`; the process group must be up (Ray Train has made it)."""
    import deepspeed  # heavy, and reads DS_ACCELERATOR at import

    offload = "offload_optimizer" in ds_config["zero_optimization"]
    load_extensions(offload=offload)
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: Any = DeepSpeedCPUAdam(groups, betas=_BETAS, adamw_mode=True)
    else:
        # In one pass over memory on a CPU, where the default takes a dozen; on a GPU the default is as good.
        fused = next(module.parameters()).device.type == "cpu" or None
        optimizer = torch.optim.AdamW(groups, betas=_BETAS, fused=fused)
    with _quiet():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config, dist_init_required=False)
    make_optimizer_state(engine)
    return engine


def set_learning_rate(engine: Any, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed logs a page at start; keep warnings and errors."""
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
    """Tell DeepSpeed that there is no GPU, and where its compiled CPU extension is kept; before its import.

    Each Python environment has its own, compiled by its own ninja: another one's would have it compiled anew.
    """
    from ctxrec.core.storage import cache_dir, sha256_json

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = os.path.join(cache_dir(), "torch_extensions", sha256_json(sys.prefix)[:12])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", folder)
    scripts, path = os.path.dirname(sys.executable), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != scripts:
        os.environ["PATH"] = scripts + os.pathsep + path


def load_extensions(*, offload: bool) -> None:
    """Compile what DeepSpeed needs on a CPU, once a machine; others wait for it.

    PyTorch marks a build by a file that a killed process leaves behind, and all that come later wait for it for ever. A
    lock of the operating system ends with its holder, so whoever has ours may remove such a file.
    """
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    if folder is None or os.environ.get("DS_ACCELERATOR") != "cpu":
        return
    from deepspeed.accelerator import get_accelerator

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "building"), "w", encoding="utf-8") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for left in glob.glob(os.path.join(folder, "*", "lock")):
            logger.info("a build of %s was cut off; it is made anew", os.path.basename(os.path.dirname(left)))
            os.remove(left)
        for name in ["ShareMemCommBuilder"] + ["CPUAdamBuilder"] * offload:
            builder = get_accelerator().create_op_builder(name)
            if builder is not None and builder.is_compatible():
                builder.load()
