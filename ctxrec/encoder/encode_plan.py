"""Encode many texts: their tokens, how they are divided over workers and forward passes, and the passes themselves.

Legend: n texts, T tokens, H width of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ctxrec.encoder.state_store import ItemStates
from ctxrec.encoder.text_encoder import TextEncoder

# A forward pass ends where the next text is _WIDENING times as long as its first one, once the pass has _FEW_TOKENS
# tokens: padding shrinks, and each pass still keeps the processor busy.
_WIDENING, _FEW_TOKENS = 1.1, 512


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts end to end; text i owns [offsets[i], offsets[i + 1]), at most max_tokens."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64 [I + 1]
    pad_id: int
    states: ItemStates | None = None  # of the layers below the trained ones, for a cut encoder

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text: int64 [num_texts]."""
        return np.diff(self.offsets)

    def padded(self, which: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [n, width], padded at the end."""
        lengths = self.lengths[which]
        mask = np.arange(width) < lengths[:, None]
        ids = np.full((len(which), width), self.pad_id, np.int64)
        index = self.offsets[which][:, None] + np.arange(width)
        ids[mask] = self.ids[index[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def load_tokenizer(path: str) -> Any:
    """The tokenizer of the checkpoint in a local folder; for one thread at a time."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def tokenise(path: str, texts: list[str], *, max_tokens: int) -> Tokens:
    """Token ids of all texts. An empty text has the special tokens alone, and at least one token."""
    return tokenise_by(load_tokenizer(path), texts, max_tokens=max_tokens)


def tokenise_by(tokenizer: Any, texts: list[str], *, max_tokens: int) -> Tokens:
    """`tokenise` by a tokenizer of `load_tokenizer`, which takes longer to load than a few texts take to be read."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"] if texts else []
    rows = [row or [pad] for row in encoded]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    ids = np.fromiter((t for row in rows for t in row), np.int32, int(offsets[-1]))
    return Tokens(ids=ids, offsets=offsets, pad_id=int(pad))


@dataclass(frozen=True)
class EncodePlan:
    """How texts are divided over ranks and forward passes.

    Every rank has the same number of passes of the same sizes, as ZeRO-3 and collective operations demand.

    order: texts sorted by length, padded to a multiple of `world` by repeating the last one; rank r has order[r::world].
    bounds: borders of the passes in a rank's share.
    widths: tokens of a text in each pass, padding included.
    """

    num_texts: int
    order: np.ndarray
    bounds: np.ndarray
    widths: np.ndarray
    world: int
    padding: float  # share of computed tokens that are padding, over all ranks

    def share(self, rank: int) -> np.ndarray:
        """The texts that a rank encodes, in their order: int64 [texts of the rank]."""
        return self.order[rank :: self.world]


def plan_encoding(which: np.ndarray, lengths: np.ndarray, *, budget: int, world: int) -> EncodePlan:
    """Plan the encoding of some texts.

    Args:
        which: numbers of the texts.
        lengths: tokens of each text of the catalogue.
        budget: tokens of a forward pass at most, padding included; a single text may exceed it.
        world: number of workers.
    """
    order = which[np.argsort(lengths[which], kind="stable")]
    num_texts = len(order)
    order = np.concatenate([order, np.repeat(order[-1:], -num_texts % world)])
    widest = lengths[order].reshape(-1, world).max(1)  # a column holds one text of each rank
    bounds, widths = [0], []
    for column, width in enumerate(widest):
        size = column - bounds[-1]
        wasteful = width > _WIDENING * widest[bounds[-1]] and size * widest[column - 1] >= _FEW_TOKENS
        if size and ((size + 1) * width > budget or wasteful):
            widths.append(int(widest[column - 1]))
            bounds.append(column)
    bounds.append(len(widest))
    widths.append(int(widest[-1]))
    computed = sum(w * (b - a) * world for a, b, w in zip(bounds, bounds[1:], widths, strict=False))
    return EncodePlan(
        num_texts=num_texts,
        order=order,
        bounds=np.array(bounds),
        widths=np.array(widths),
        world=world,
        padding=1 - float(lengths[order].sum()) / max(computed, 1),
    )


def encode_share(
    encoder: TextEncoder, tokens: Tokens, plan: EncodePlan, rank: int, device: torch.device
) -> torch.Tensor:
    """Vectors [len(share), H] of a rank's share, in its order; call it under no_grad to fill a table.

    With gradient caching (arXiv 2101.06983) the graph of a pass is not kept: the backward pass encodes its texts again,
    with the same dropout. Memory then holds the graph of one pass, however many passes there are.
    """
    share = plan.share(rank)

    def encode(ids_nT: torch.Tensor, mask_nT: torch.Tensor, which: np.ndarray) -> torch.Tensor:
        states = None
        if encoder.is_cut:
            assert tokens.states is not None
            states = tokens.states.padded(which, ids_nT.shape[1]).to(device)
        return encoder(ids_nT, mask_nT, states)

    parts = []
    for start, stop, width in zip(plan.bounds, plan.bounds[1:], plan.widths, strict=False):
        ids, mask = (made.to(device) for made in tokens.padded(share[start:stop], int(width)))
        if encoder.config.gradient_caching and torch.is_grad_enabled():
            # ZeRO-3 frees a module's weights after its forward pass, so the repeated pass must not stop early.
            with set_checkpoint_early_stop(False):
                parts.append(checkpoint(encode, ids, mask, share[start:stop], use_reentrant=False))
        else:
            parts.append(encode(ids, mask, share[start:stop]))
    return torch.cat(parts)
