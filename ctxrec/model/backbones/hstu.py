"""Hierarchical sequential transduction units (HSTU, arXiv 2402.17152) over event slots.

Legend: B rows, S slots, D width, N heads, H head width.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core.config import ModelConfig
from ctxrec.model.backbones.base import Backbone, LayerNorm, states_at

# Buckets of passed time: 0 unknown, then one for each 0.301 of its natural logarithm (the width of the paper's
# code), up to 2^31 s.
_BUCKET_WIDTH = 0.301
NUM_TIME_BUCKETS = 73


class HstuLayer(nn.Module):
    """One unit: pointwise attention without softmax, whose result a gate multiplies (equations 1 to 3).

    Attention weights are SiLU(qk + biases) / n with n the most slots there can be, so that a weight says how
    similar two slots are and not only how similar compared with others.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout, self.most_slots = config.heads, config.dropout, config.history + 1
        self.norm = LayerNorm(config.dim)
        self.uvqk = nn.Linear(config.dim, 4 * config.dim)
        self.norm_attended = LayerNorm(config.dim, eps=1e-6)  # sums of few slots over n are small
        self.out = nn.Linear(config.dim, config.dim)
        self.distance_bias = nn.Embedding(self.most_slots, config.heads)
        self.time_bias = nn.Embedding(NUM_TIME_BUCKETS, config.heads) if "context" in config.sources else None
        for table in (self.distance_bias, self.time_bias):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, x_BSD: torch.Tensor, passed_BSS: torch.Tensor) -> torch.Tensor:
        """One layer of pointwise gated attention: [B, S, D]."""
        B, S, D = x_BSD.shape
        u_BSD, v, q, k = F.silu(self.uvqk(self.norm(x_BSD))).chunk(4, -1)
        v, q, k = (part.view(B, S, self.heads, D // self.heads).transpose(1, 2) for part in (v, q, k))
        slots = torch.arange(S, device=x_BSD.device)
        distance_SS = slots[:, None] - slots[None]
        scores_BNSS = q @ k.transpose(2, 3)
        scores_BNSS = scores_BNSS + self.distance_bias(distance_SS.clamp(min=0)).permute(2, 0, 1)
        if self.time_bias is not None:
            scores_BNSS = scores_BNSS + self.time_bias(passed_BSS).permute(0, 3, 1, 2)
        weights_BNSS = F.silu(scores_BNSS) / self.most_slots * (distance_SS >= 0)
        attended_BSD = (weights_BNSS @ v).transpose(1, 2).reshape(B, S, D)
        gated_BSD = u_BSD * self.norm_attended(attended_BSD)
        return x_BSD + self.out(F.dropout(gated_BSD, self.dropout, self.training))


class Hstu(Backbone):
    """HSTU layers with biases for the distance and for the time between slots, per head.

    The time runs from an event to the moment at which a slot is asked, so the last slot knows how long ago
    everything was. It is context: without `context` in `model.sources` there is no such bias.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HstuLayer(config) for _ in range(config.layers))
        self.reads_time = "context" in config.sources

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States at every slot, [B, S, D], or at the slots `last_B` alone, [B, D]."""
        passed_BSS = time_buckets(times_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD, passed_BSS)
        return states_at(x_BSD, last_B)


def time_buckets(times_BS: torch.Tensor) -> torch.Tensor:
    """Bucket of the time from slot k's event to the asking of slot q, at [b, q, k]: int64 [B, S, S].

    Slot 0 has no event: 0, unknown. A time of up to 1 s, and what would lie in the future, is 1.
    """
    event_BS = times_BS[:, :-1]  # event j took place when slot j - 1 was asked
    passed = (times_BS[:, :, None] - event_BS[:, None]).clamp(min=1).double().log() / _BUCKET_WIDTH
    return F.pad((1 + passed.long()).clamp(max=NUM_TIME_BUCKETS - 1), (1, 0))
