"""Checkpoints that do not depend on the number of workers or the ZeRO stage, as safetensors.

    weights.safetensors    full float32 trainable weights, by name
    optimizer.safetensors  AdamW moments, by "<name>/exp_avg" and "<name>/exp_avg_sq"
    state.json             phase, step, best result and what else the loop needs to continue

DeepSpeed's own checkpoints are pickles tied to the number of workers, so they are not used.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ctxrec.core import storage
from ctxrec.core.errors import UserError

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_OWN_HASH = "sha256"  # key of the state's hash over its other keys
_RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's own record of the reported checkpoints


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Full float32 trainable weights on the CPU, each of its own shape; every rank must call it.

    Raises:
        RuntimeError: a weight is empty, as a ZeRO-3 shard is that was not gathered.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in trainable(engine.module).items():
        value = safe_get_full_fp32_param(parameter)
        value = parameter if value is None else value  # stage 0 keeps plain parameters
        if value.numel() == 0:
            raise RuntimeError(f"weight {name} came out empty; it was not gathered from its ZeRO shards")
        weights[name] = value.detach().float().cpu().contiguous().clone()
    return weights


def full_moments(engine: Any) -> dict[str, torch.Tensor]:
    """Full AdamW moments on the CPU, each of the shape of its weight; every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in trainable(engine.module).items():
        for key in _MOMENTS:
            value = safe_get_full_optimizer_state(parameter, key)
            if value is None:
                value = plain_optimizer(engine).state[parameter][key]
            moments[f"{name}/{key}"] = value.detach().float().cpu().contiguous().clone()
    return moments


def restore(engine: Any, folder: str, optimizer_step: int) -> None:
    """Put the weights and moments of a checkpoint into an engine of any ZeRO stage.

    Args:
        engine: of DeepSpeed.
        folder: local folder of the checkpoint.
        optimizer_step: updates that AdamW had made, for its bias correction.

    Raises:
        UserError: the checkpoint lacks a weight of the engine's module.
    """
    import deepspeed  # heavy, and reads DS_ACCELERATOR at import

    weights = load_file(os.path.join(folder, WEIGHTS))
    moments = load_file(os.path.join(folder, OPTIMIZER))
    sharded = engine.zero_optimization_stage() or engine.bfloat16_enabled()
    for name, parameter in trainable(engine.module).items():
        if name not in weights:
            raise UserError(f"the checkpoint in {folder} has no weight {name}; it belongs to another configuration")
        if sharded:
            _set_sharded(parameter, weights[name])
            # This sets the optimizer's copy alone; the next forward pass reads another one.
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0), torch.no_grad():
                parameter.data.copy_(weights[name])
        else:
            with torch.no_grad():
                parameter.copy_(weights[name])
        for key in _MOMENTS:
            value = moments[f"{name}/{key}"]
            if sharded:
                _set_sharded(parameter, value, key)
            else:
                plain_optimizer(engine).state[parameter][key].copy_(value)
    set_optimizer_step(engine, optimizer_step)


def _set_sharded(parameter: torch.nn.Parameter, value: torch.Tensor, moment: str | None = None) -> None:
    """Set this rank's part of the optimizer's copy of a parameter, or of one of its moments, from the whole."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):  # stages 1 and 2
        if moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)
        return
    # Stage 3: the function for whole values fails where their size is no multiple of the number of workers.
    size = parameter.ds_tensor.numel()
    part = value.flatten()[dist.get_rank() * size :][:size]
    part = F.pad(part, (0, size - len(part)))
    if moment is None:
        utils.safe_set_local_fp32_param(parameter, part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, moment)


def save(
    folder: str, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    """Write the files of a checkpoint into a local folder, on rank 0 alone; the state holds the hashes of the others."""
    save_file(weights, os.path.join(folder, WEIGHTS))
    save_file(moments, os.path.join(folder, OPTIMIZER))
    files = {name: storage.sha256_file(os.path.join(folder, name)) for name in (WEIGHTS, OPTIMIZER)}
    with open(os.path.join(folder, STATE), "w", encoding="utf-8") as stream:
        content = json.loads(json.dumps(state | {"files": files}))  # as a reader sees it
        json.dump(content | {_OWN_HASH: storage.sha256_json(content)}, stream)


def damage(folder: str) -> str | None:
    """What is wrong with a checkpoint in a local folder; None where it is undamaged."""
    try:
        with open(os.path.join(folder, STATE), encoding="utf-8") as stream:
            state = json.load(stream)
        own = state.pop(_OWN_HASH, None)  # an earlier version wrote none
        files = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{STATE} is missing or cut off"
    if own is not None and own != storage.sha256_json(state):
        return f"{STATE} does not match its own hash"
    if set(files) != {WEIGHTS, OPTIMIZER}:
        return f"{STATE} lists other files than {WEIGHTS} and {OPTIMIZER}"
    for name, digest in files.items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            return f"{name} is missing"
        if storage.sha256_file(path) != digest:
            return f"{name} does not match its hash"
    return None


def folders(checkpoints: str) -> list[str]:
    """The checkpoints of a run, newest first, damaged ones too; Ray Train names them by their time."""
    try:
        files = storage.list_files(checkpoints)
    except UserError:  # there is no checkpoint yet
        return []
    names = {os.path.basename(storage.parent(path)) for path in files}
    return [storage.join(checkpoints, name) for name in sorted(names, reverse=True) if name.startswith("checkpoint_")]


def newest_whole(checkpoints: str, scratch: str) -> str | None:
    """The newest checkpoint of a run that is not damaged, path or URI; None where there is none.

    Args:
        checkpoints: folder of the run's checkpoints.
        scratch: local folder for a copy of what lies at a URI.
    """
    found = folders(checkpoints)
    for path in found:
        wrong = damage(storage.fetch_dir(path, scratch=scratch))
        if wrong is None:
            return path
        logger.warning("%s is damaged (%s); trying the checkpoint before it", os.path.basename(path), wrong)
    if found:
        logger.warning("every checkpoint is damaged; the training starts again from the beginning")
    return None


def tidy(checkpoints: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and Ray Train's record of them; call it before an attempt.

    A kill can cut the record off, which Ray Train then refuses to read, or leave a checkpoint that the record lacks.
    """
    storage.delete(storage.join(checkpoints, _RECORD))
    for path in folders(checkpoints)[keep:]:
        storage.delete(path)


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put weights by name into a plain module, which must have all of these names."""
    missing = module.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys


def plain_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer inside DeepSpeed's wrappers."""
    optimizer = engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def optimizer_step(engine: Any) -> int:
    """Updates that AdamW has counted, for its bias correction."""
    return next((int(state["step"]) for state in plain_optimizer(engine).state.values()), 0)


def set_optimizer_step(engine: Any, step: int) -> None:
    """Set the number of updates that AdamW has counted."""
    for state in plain_optimizer(engine).state.values():
        if isinstance(state["step"], torch.Tensor):
            state["step"].fill_(step)
        else:
            state["step"] = step


def make_optimizer_state(engine: Any) -> None:
    """Give AdamW its zero moments before the first step, whatever the ZeRO stage.

    DeepSpeed 0.19.8 links moments to parameters after the first step of the first parameter group. The moments of the other
    groups do not exist then, so it cannot find them later. Stage 3 hands the optimizer its flat parameters only during a
    step, so nothing could be restored before the first step.
    """
    optimizer = plain_optimizer(engine)
    counts_in_tensor = isinstance(optimizer, torch.optim.AdamW)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if engine.zero_optimization_stage() == 3:
        parameters = engine.optimizer.fp32_partitioned_groups_flat
    for parameter in parameters:
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {"step": torch.tensor(0.0) if counts_in_tensor else 0}
            optimizer.state[parameter] |= {key: torch.zeros_like(parameter) for key in _MOMENTS}
    set_optimizer_step(engine, 0)
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()
