"""Training state that does not depend on the number of workers or the ZeRO stage, as safetensors.

    weights.safetensors    full float32 trainable weights, by name
    optimizer.safetensors  AdamW moments, by "<name>/exp_avg" and "<name>/exp_avg_sq"
    state.json             phase, step, best result and what else the loop needs to go on

DeepSpeed's own checkpoints are pickles tied to the number of workers, so they are not used.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ctxrec.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Full float32 trainable weights on the CPU; every rank must call it.

    Raises:
        RuntimeError: a weight came out empty, as an ungathered ZeRO-3 shard would.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in trainable(engine.module).items():
        value = safe_get_full_fp32_param(parameter) if engine.zero_optimization_stage() else None
        value = parameter if value is None else value
        if value.numel() == 0:
            raise RuntimeError(f"weight {name} came out empty; it was not gathered from its ZeRO shards")
        weights[name] = value.detach().float().cpu().contiguous().clone()
    return weights


def full_moments(engine: Any) -> dict[str, torch.Tensor]:
    """Full AdamW moments on the CPU; every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in trainable(engine.module).items():
        for key in _MOMENTS:
            if engine.zero_optimization_stage():
                value = safe_get_full_optimizer_state(parameter, key)
            else:
                value = _plain_optimizer(engine).state.get(parameter, {}).get(key)
            if value is not None:
                moments[f"{name}/{key}"] = value.detach().float().cpu().contiguous().clone()
    return moments


def restore(engine: Any, folder: str) -> dict[str, Any]:
    """Put weights and moments of a checkpoint into an engine of any stage; returns its state."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    weights = load_file(os.path.join(folder, WEIGHTS))
    moments = load_file(os.path.join(folder, OPTIMIZER))
    with open(os.path.join(folder, STATE), encoding="utf-8") as stream:
        state = json.load(stream)
    stage = engine.zero_optimization_stage()
    _make_optimizer_state(engine)
    for name, parameter in trainable(engine.module).items():
        if name not in weights:
            raise UserError(f"the checkpoint in {folder} has no weight {name}; it belongs to another configuration")
        if stage:
            safe_set_full_fp32_param(parameter, weights[name])
        else:
            with torch.no_grad():
                parameter.copy_(weights[name])
        for key in _MOMENTS:
            value = moments.get(f"{name}/{key}")
            if value is None:
                continue
            if stage:
                safe_set_full_optimizer_state(parameter, value, key)
            else:
                _plain_optimizer(engine).state[parameter][key].copy_(value)
    set_optimizer_step(engine, state["optimizer_step"])
    return state


def save(folder: str, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint's files into a local folder (rank 0 alone)."""
    save_file(weights, os.path.join(folder, WEIGHTS))
    save_file(moments, os.path.join(folder, OPTIMIZER))
    with open(os.path.join(folder, STATE), "w", encoding="utf-8") as stream:
        json.dump(state, stream)


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put weights by name into a plain module; names that it lacks are an error."""
    missing = module.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys


def _plain_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrappers."""
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def optimizer_step(engine: Any) -> int:
    """Updates that AdamW counts, for its bias correction."""
    steps = [state["step"] for state in _plain_optimizer(engine).state.values() if "step" in state]
    return int(steps[0]) if steps else 0


def set_optimizer_step(engine: Any, step: int) -> None:
    for state in _plain_optimizer(engine).state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].fill_(step)
        elif "step" in state:
            state["step"] = step


def _make_optimizer_state(engine: Any) -> None:
    """Stage 0 makes AdamW's state at its first step only; make it now."""
    if engine.zero_optimization_stage():
        return
    optimizer = _plain_optimizer(engine)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
