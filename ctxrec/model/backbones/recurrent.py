"""GRU and LSTM over event slots.

Legend: B rows, S slots, D width.
"""

from __future__ import annotations

import torch
import torch.nn as nn

from ctxrec.core.config import ModelConfig
from ctxrec.model.backbones.base import Backbone, states_at


class Recurrent(Backbone):
    """GRU or LSTM layers with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kind = nn.GRU if config.backbone == "gru" else nn.LSTM
        dropout = config.dropout if config.layers > 1 else 0.0
        self.cells = kind(config.dim, config.dim, config.layers, batch_first=True, dropout=dropout)

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States at every slot, [B, S, D], or at the slots `last_B` alone, [B, D]."""
        with torch.autocast(x_BSD.device.type, enabled=False):
            read = self.cells(x_BSD.to(next(self.parameters()).dtype))[0]
        return states_at(x_BSD + read, last_B)
