"""Named tensors in one file, under a hash of their content: what a training keeps for its later phases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ctxrec.core import storage
from ctxrec.core.errors import UserError

AGAIN = "the same command"  # in a remedy: the training that was called, called again
_HASH = "sha256"  # key of the hash in the header of the file


def write_tensors(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of the CPU as a safetensors file, a path or URI, whose header has their hash."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    storage.write_bytes(path, save(whole, metadata={_HASH: _digest(whole)}))


def read_tensors(path: str, *, remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a file of `write_tensors` by name, each of its own shape.

    A file of an earlier version has no hash, and is taken as it is.

    Args:
        path: a path or URI.
        remedy: what the user can do if the file is damaged.

    Raises:
        UserError: no file lies there, or it is empty, cut off or changed; names it and says the remedy.
    """
    content = storage.read_bytes(path)
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({len(content)} bytes: {error}); {remedy}") from error
    metadata = header.get("__metadata__")
    if metadata is not None and metadata.get(_HASH) != _digest(tensors):
        raise UserError(f"{path} is damaged (it does not match its own hash); {remedy}")
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 over the names, types, shapes and values of tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
