"""A gated Transformer over event slots.

Legend: B rows, S slots, D width, N heads, H head width.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core.config import ModelConfig
from ctxrec.model.backbones.base import Backbone, LayerNorm, states_at


class TransformerBlock(nn.Module):
    """A pre-norm Transformer block with a learned bias for the distance between slots, per head.

    Both residual branches are gated by a sigmoid of the input (LiGR, arXiv 2502.03417), which keeps
    deep stacks trainable.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.norm_attention = LayerNorm(config.dim)
        self.norm_mlp = LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.up = nn.Linear(config.dim, 4 * config.dim)
        self.down = nn.Linear(4 * config.dim, config.dim)
        self.gate_attention = nn.Linear(config.dim, config.dim)
        self.gate_mlp = nn.Linear(config.dim, config.dim)
        self.distance_bias = nn.Embedding(config.history + 1, config.heads)
        nn.init.zeros_(self.distance_bias.weight)

    def forward(self, x_BSD: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """The block's output for all slots, or [B, 1, D] for the slots `last_B` alone."""
        B, S, D = x_BSD.shape
        q, k, v = self.qkv(self.norm_attention(x_BSD)).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        slots = torch.arange(S, device=x_BSD.device)
        distance_SS = slots[:, None] - slots[None, :]
        bias_NSS = self.distance_bias(distance_SS.clamp(0, self.distance_bias.num_embeddings - 1)).permute(2, 0, 1)
        bias_NSS = bias_NSS.masked_fill(distance_SS < 0, float("-inf")).to(q.dtype)
        bias_BNSS = bias_NSS[None]
        if last_B is not None:  # only this slot asks; keys and values come from all
            x_BSD, q = states_at(x_BSD, last_B)[:, None], states_at(q.transpose(1, 2), last_B)[:, :, None]
            bias_BNSS = bias_NSS[:, last_B].transpose(0, 1)[:, :, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BNSS)
        attended = self.out(attended.transpose(1, 2).reshape(x_BSD.shape))
        x_BSD = x_BSD + torch.sigmoid(self.gate_attention(x_BSD)) * self._drop(attended)
        hidden = self.down(F.gelu(self.up(self.norm_mlp(x_BSD))))
        return x_BSD + torch.sigmoid(self.gate_mlp(x_BSD)) * self._drop(hidden)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(Backbone):
    """Pre-norm Transformer with relative slot distances; reads any length up to `history` + 1 slots."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States at every slot, [B, S, D], or at the slots `last_B` alone, [B, D]."""
        for block in self.blocks[:-1]:
            x_BSD = block(x_BSD)
        x_BSD = self.blocks[-1](x_BSD, last_B)
        return x_BSD if last_B is None else x_BSD[:, 0]
