"""What every history backbone has in common.

Legend: B rows, S slots, D width.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class Backbone(nn.Module):
    """Reads the slots of histories; a slot sees itself and the slots before it. Padding is at the end.

    Causality keeps padding out, so a backbone needs no mask. Each module reads its parameters in its own forward, because
    ZeRO-3 gathers them there.

    reads_time: whether the state of a history depends on the time of the request.
    """

    reads_time = False

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """States after each slot.

        Args:
            x_BSD: vectors of the slots: slot 0 is the user, the others are events.
            times_BS: int64 epoch seconds at which each slot is asked; event j took place when slot j - 1 was asked.
                Values beyond the end of a row have no meaning.
            last_B: the one slot of each row whose state is wanted.

        Returns:
            [B, S, D], or [B, D] with `last_B`.
        """
        raise NotImplementedError


class LayerNorm(nn.LayerNorm):
    """A layer norm that computes in float32, whatever the precision of its weights and input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normalised input in float32, of the shape of `x`."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class InBf16(Backbone):
    """Runs a backbone in bfloat16, with input and output in float32. It is for inference alone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner = backbone.to(torch.bfloat16)
        self.reads_time = backbone.reads_time

    def forward(self, x_BSD: torch.Tensor, times_BS: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """What the inner backbone says, computed in bfloat16: [B, S, D], or [B, D] with `last_B`."""
        with torch.autocast(x_BSD.device.type, torch.bfloat16):
            return self.inner(x_BSD, times_BS, last_B).to(x_BSD.dtype)


def states_at(states_BSD: torch.Tensor, last_B: torch.Tensor | None) -> torch.Tensor:
    """The state at slot `last_B` of each row, [B, D]; all states [B, S, D] where it is None."""
    return states_BSD if last_B is None else states_BSD[torch.arange(len(last_B), device=last_B.device), last_B]
