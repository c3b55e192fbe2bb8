"""What every history backbone is.

Legend: B rows, S slots, D width.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class Backbone(nn.Module):
    """Reads the slots of histories, each from itself and those before it; padding is at the end.

    Causality alone keeps padding out, so a backbone needs no mask. It reads its parameters in the forward of
    the modules that own them, where ZeRO-3 gathers them.

    reads_time: whether what it says of a history depends on when it is asked.
    """

    reads_time = False

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States after each slot: [B, S, D]; with `last_B` only the one after that slot of each row, [B, D].

        Args:
            x_BSD: what the slots hold: who asks (slot 0), then the events.
            times_BS: int64, when each slot is asked, in epoch seconds: event j took place when slot j - 1 was
                asked. What lies behind a row's end says nothing.
        """
        raise NotImplementedError


class LayerNorm(nn.LayerNorm):
    """A norm in float32, whatever precision its weights and its input have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class InBf16(Backbone):
    """A backbone that computes in bfloat16 what comes and goes in float32; not for training."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner = backbone.to(torch.bfloat16)
        self.reads_time = backbone.reads_time

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(x_BSD.device.type, torch.bfloat16):
            return self.inner(x_BSD, times_BS, last_B).to(x_BSD.dtype)


def states_at(states_BSD: torch.Tensor, last_B: torch.Tensor | None) -> torch.Tensor:
    """The state of each row's slot, [B, D]; all of them where no slots are named."""
    return states_BSD if last_B is None else states_BSD[torch.arange(len(last_B), device=last_B.device), last_B]
