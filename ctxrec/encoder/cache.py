"""A cache on the machine's disk of what a pretrained encoder computes from a text before it is tuned.

The cache keeps two things: the vector of a text, and the states that the lowest trained layer reads. Both are keyed by
the encoder's fingerprint and the text's tokens, so a changed text alone is computed anew. All workers of a machine, all
trainings and all trials of a sweep share the cache.

Legend: I items, H width of the encoder.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.encoder.encode_plan import Tokens, plan_encoding
from ctxrec.encoder.layer_split import lower_states
from ctxrec.encoder.state_store import ItemStates, RowStore, digest
from ctxrec.encoder.text_encoder import load_backbone, trained_from

logger = logging.getLogger(__name__)

_FOLDER = "encoder-cache"
_STATE = np.float16  # type of a stored state; its rounding is far below what one step of tuning changes
_SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its number among all workers and among those of its machine, and its device."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device


def item_keys(tokens: Tokens) -> list[bytes]:
    """The key of each text: a hash of its tokens."""
    raw, bounds = tokens.ids.tobytes(), tokens.offsets * tokens.ids.itemsize
    return [digest(raw[start:stop]) for start, stop in zip(bounds, bounds[1:], strict=False)]


@functools.cache
def fingerprint(encoder_path: str) -> str:
    """A hash of a local encoder's configuration and weights."""
    names = sorted(n for n in os.listdir(encoder_path) if n == "config.json" or n.endswith(".safetensors"))
    digests = {name: storage.sha256_file(os.path.join(encoder_path, name)) for name in names}
    return storage.sha256_json(digests)[:16]


def vector_store(encoder_path: str, config: EncoderConfig, width: int) -> RowStore:
    """Store of the vectors that the encoder gives texts before it is tuned: one row [H] for each text."""
    return RowStore(folder_of(encoder_path, f"vectors-{config.pooling}"), width)


def folder_of(encoder_path: str, kind: str) -> str:
    """The cache folder of one encoder for one kind of content."""
    return os.path.join(storage.cache_dir(), _FOLDER, fingerprint(encoder_path), kind)


def with_states(tokens: Tokens, present: np.ndarray, encoder_path: str, config: EncoderConfig, place: Place) -> Tokens:
    """`tokens` with the states of the layers below the trained ones, where these save work and the disk has room.

    Every worker must call this; the workers of a machine divide what is not on its disk yet. The log says whether the
    states are kept, and why not.
    """
    from transformers import AutoConfig

    about = AutoConfig.from_pretrained(encoder_path, trust_remote_code=False)
    first = max(about.num_hidden_layers - config.top_layers, 0)
    if config.tune in ("freeze", "full") or not config.top_layers or first == 0:
        return tokens
    store = RowStore(folder_of(encoder_path, f"below-top-{config.top_layers}"), about.hidden_size, _STATE)
    keys = item_keys(tokens)
    missing = [item for item in np.flatnonzero(present).tolist() if keys[item] not in store]
    room = _room(store, tokens, present, missing, config)
    if room is None and missing:
        try:
            _fill(
                store,
                keys,
                tokens,
                _distinct(keys, missing)[place.local_rank :: place.local_world],
                encoder_path,
                config,
                place,
            )
        except OSError as error:
            room = f"they cannot be written: {error}"
    stop = torch.tensor(0 if room is None else 1, device=place.device)
    if dist.is_initialized():
        dist.all_reduce(stop)  # also waits for the others
    if stop:
        logger.info(
            "encoder: the states below the top %d layers are not kept: %s",
            config.top_layers,
            room or "another machine has no room for them",
        )
        return tokens
    store.refresh()
    if place.rank == 0:
        logger.info(
            "encoder: %d of %d layers are trained; the states below them are on disk (%d texts new, %d known)",
            about.num_hidden_layers - first, about.num_hidden_layers, len(missing), int(present.sum()) - len(missing),
        )  # fmt: skip
    return replace(tokens, states=ItemStates(store, keys))


def _distinct(keys: list[bytes], items: list[int]) -> np.ndarray:
    """One item for each key."""
    return np.array(list({keys[item]: item for item in items}.values()), np.int64)


def _room(
    store: RowStore, tokens: Tokens, present: np.ndarray, missing: list[int], config: EncoderConfig
) -> str | None:
    """None where the catalogue's states may be kept; else the reason why not."""
    per_token = store.width * store.dtype.itemsize
    needed = int(tokens.lengths[present].sum()) * per_token
    if needed > config.cache_gb * 1e9:
        return f"they take {needed / 1e9:.1f} GB, more than encoder.cache_gb = {config.cache_gb:g}"
    new = int(tokens.lengths[missing].sum()) * per_token if missing else 0
    os.makedirs(storage.cache_dir(), exist_ok=True)
    free = shutil.disk_usage(storage.cache_dir()).free
    return f"they take {new / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left" if 2 * new > free else None


@torch.no_grad()
def _fill(
    store: RowStore,
    keys: list[bytes],
    tokens: Tokens,
    which: np.ndarray,
    encoder_path: str,
    config: EncoderConfig,
    place: Place,
) -> None:
    """Compute and store the states of the items `which`."""
    if not len(which):
        return
    backbone = load_backbone(encoder_path).to(place.device).eval()
    first = trained_from(backbone, config)
    plan = plan_encoding(which, tokens.lengths, budget=config.token_budget, world=1)
    blocks: dict[bytes, np.ndarray] = {}
    size = 0
    for start, stop, width in zip(plan.bounds, plan.bounds[1:], plan.widths, strict=False):
        items = plan.order[start:stop]
        ids, mask = tokens.padded(items, int(width))
        states = lower_states(backbone, first, ids.to(place.device), mask.to(place.device)).float().cpu().numpy()
        for rows, item in zip(states, items.tolist(), strict=True):
            kept = rows[: tokens.lengths[item]].astype(store.dtype)
            if not np.isfinite(kept).all():
                raise OSError("a state is too large for 16 bits")
            blocks[keys[item]] = kept
            size += kept.nbytes
        if size > _SHARD_BYTES:
            store.write(blocks)
            blocks, size = {}, 0
    store.write(blocks)
