"""How much memory of a GPU a training needs, from the sizes of the encoder, the towers and the catalogue.

Activations are the tensors that autograd keeps of a BERT-like layer without dropout and with fused attention, which keeps
no scores. tests/training/test_capacity_plan.py compares them, and the peak of whole steps, with measured sizes. The
states of the optimizer are divided as by ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054). All sizes are in bytes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from ctxrec.core import storage
from ctxrec.core.errors import UserError

TUNES = ("freeze", "ia3", "lora", "dora", "top", "full")
FP32, BF16 = 4, 2
RESERVE = 0.1  # share of a GPU's memory for the driver's context, fragments and buffers of NCCL; an assumption


@dataclass(frozen=True)
class Encoder:
    """Sizes of a BERT-like encoder."""

    layers: int
    hidden: int
    vocab: int
    heads: int
    inner: int
    positions: int = 512

    @staticmethod
    def of(text: str) -> Encoder:
        """The sizes from a folder with config.json, or from a text `layers,hidden,vocab`.

        Raises:
            UserError: `text` is neither.
        """
        parts = text.split(",")
        if len(parts) == 3 and all(part.strip().isdigit() and int(part) > 0 for part in parts):
            layers, hidden, vocab = map(int, parts)
            return Encoder(layers, hidden, vocab, heads=max(hidden // 64, 1), inner=4 * hidden)
        path = os.path.join(text, "config.json")
        if not storage.is_uri(text) and not os.path.exists(path):
            raise UserError(
                f"--encoder is {text!r}; expected a model's folder, or layers,hidden,vocab as in 12,768,30522"
            )
        raw = json.loads(storage.read_text(storage.join(text, "config.json")))

        def first(*names: str) -> int:
            found = next((raw[name] for name in names if raw.get(name)), None)
            if found is None:
                raise UserError(
                    f"{text}/config.json has none of {', '.join(names)}; give --encoder layers,hidden,vocab"
                )
            return int(found)

        hidden = first("hidden_size", "n_embd")
        return Encoder(
            layers=first("num_hidden_layers", "n_layer"),
            hidden=hidden,
            vocab=first("vocab_size"),
            heads=first("num_attention_heads", "n_head"),
            inner=int(raw.get("intermediate_size") or raw.get("n_inner") or 4 * hidden),
            positions=int(raw.get("max_position_embeddings") or raw.get("n_positions") or 512),
        )

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer: four of attention, two of the feed-forward part."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """All weights."""
        vectors = 9 * self.hidden + self.inner  # biases of six matrices, two layer norms
        embeddings = (self.vocab + self.positions + 2) * self.hidden + 2 * self.hidden
        return embeddings + self.layers * (self.layer_weights + vectors)

    def trainable(self, tune: str, *, rank: int, top_layers: int) -> int:
        """Trained weights. Adapters are on the top `top_layers` layers (0: on all layers)."""
        count = min(top_layers or self.layers, self.layers)
        adapter = rank * (8 * self.hidden + 2 * (self.hidden + self.inner))
        outputs = 5 * self.hidden + self.inner
        per_layer = {
            "freeze": 0,
            "ia3": 3 * self.hidden + self.inner,
            "lora": adapter,
            "dora": adapter + outputs,
            "top": self.layer_weights + 9 * self.hidden + self.inner,
        }
        return self.parameters if tune == "full" else count * per_layer[tune]

    def activations(
        self, tune: str, *, tokens: int, rank: int, top_layers: int, checkpointing: bool, width: int = FP32
    ) -> int:
        """Bytes that the backward pass of so many tokens needs."""
        if tune == "freeze":
            return 0
        count = self.layers if tune == "full" else min(top_layers or self.layers, self.layers)
        # Queries, keys, values, output of attention, inputs and outputs of both norms; the log-sums of attention.
        numbers = (8 * self.hidden + 2 * self.inner + self.heads) * tokens
        if tune in ("lora", "dora"):
            numbers += 6 * rank * tokens
        if tune == "dora":  # the norm of the adapted weight, and each output twice
            numbers += 2 * (5 * self.hidden + self.inner) * tokens + 2 * self.layer_weights
        if checkpointing:
            return (count * self.hidden * tokens + numbers) * width
        return count * numbers * width


@dataclass(frozen=True)
class Load:
    """The size of a worker's step."""

    items: int
    id_rows: int
    dim: int
    content: int
    fresh_tokens: int  # of this worker
    positions: int  # query positions of a micro-batch
    scores: int  # items that compete at a position at once


def tower_weights(load: Load, hidden: int) -> int:
    """Trained weights outside the encoder; nearly all of them are ID vectors."""
    ids = load.id_rows * (load.dim + 2)
    return ids + hidden * (load.dim + load.content) + 32 * load.dim**2


def catalogue_bytes(load: Load, hidden: int, *, tuned: bool) -> int:
    """Bytes of the catalogue on every worker: text vectors and features, and what a step keeps of all item vectors.

    A step keeps the centred text vectors of each head, the stages of both heads' vectors, and the gradient of the loss.
    Where the encoder is tuned, the backward pass adds the gradient of the text vectors.
    """
    steady = FP32 * hidden + 2 * 8 + 2 * FP32
    kept = 2 * hidden + 3 * load.dim + 2 * load.content + 13
    return load.items * (steady + FP32 * (kept + (hidden if tuned else 0)))


def per_gpu(
    encoder: Encoder,
    load: Load,
    *,
    tune: str,
    stage: int,
    gpus: int,
    rank: int = 8,
    top_layers: int = 0,
    checkpointing: bool = False,
    offload: bool = False,
    weight_bytes: int = BF16,
) -> dict[str, int]:
    """Bytes on one GPU by purpose."""
    towers = tower_weights(load, encoder.hidden)
    learns = encoder.trainable(tune, rank=rank, top_layers=top_layers) + towers
    every = encoder.parameters + towers + (learns - towers if tune in ("lora", "dora", "ia3") else 0)
    state = 2 * FP32 * learns + (FP32 * learns if weight_bytes == BF16 else 0)  # moments, and the master copy
    share = gpus if stage >= 1 else 1
    return {
        "weights": weight_bytes * every // (gpus if stage == 3 else 1),
        "gradients": weight_bytes * learns // (gpus if stage >= 2 else 1),
        "optimizer": 0 if offload and stage else state // share,
        "activations": encoder.activations(
            tune, tokens=load.fresh_tokens, rank=rank, top_layers=top_layers, checkpointing=checkpointing,
            width=weight_bytes,
        ) + FP32 * load.positions * (2 * load.scores + 40 * load.dim),
        "catalogue": catalogue_bytes(load, encoder.hidden, tuned=tune != "freeze"),
    }  # fmt: skip
