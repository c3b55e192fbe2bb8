"""Split an encoder at its lowest trained layer: nothing below changes in training, so its states are computed once.

Legend: n texts, T tokens, H width of the encoder.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn as nn


def layer_list(backbone: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of a model's layers: the longest of its lists of modules."""
    lists = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda found: len(found[1]))


def first_trained(backbone: Any, top_layers: int) -> int:
    """Number of the lowest of the top `top_layers` layers; 0 where `top_layers` is 0, which means all of them."""
    return max(len(layer_list(backbone)[1]) - top_layers, 0) if top_layers else 0


def outside_top(backbone: Any, top_layers: int) -> str | None:
    """A regular expression for the names of all modules outside of the top layers; None where all are trained."""
    first = first_trained(backbone, top_layers)
    if first == 0:
        return None
    name, layers = layer_list(backbone)
    numbers = "|".join(str(number) for number in range(first, len(layers)))
    return rf"(?!{re.escape(name)}\.({numbers})\.).*"


class _Bypass(nn.Module):
    """Stands in the place of a layer that was cut: it returns the states it was handed, else its input."""

    def __init__(self, layer: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # some models read a layer's attributes to choose its mask
            if not name.startswith("_"):
                self.__dict__[name] = value
        self.as_tuple = as_tuple
        self.states_nTH: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        states = hidden_states if self.states_nTH is None else self.states_nTH
        return (states,) if self.as_tuple else states


class _Reached(Exception):
    """Ends a forward pass once the input of a layer is known, as nothing above it is needed."""


@torch.no_grad()
def lower_states(backbone: Any, first: int, ids_nT: torch.Tensor, mask_nT: torch.Tensor) -> torch.Tensor:
    """What layer number `first` reads: [n, T, H]. Only the layers below it are computed."""
    seen: list[torch.Tensor] = []

    def look(_layer: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    hook = layer_list(backbone)[1][first].register_forward_pre_hook(look, with_kwargs=True)
    try:
        backbone(input_ids=ids_nT, attention_mask=mask_nT)
    except _Reached:
        pass
    finally:
        hook.remove()
    return seen[0]


@torch.no_grad()
def cut_below(backbone: Any, first: int) -> _Bypass:
    """Take the layers below number `first` out of a model.

    The other layers keep their numbers, so their weights keep their names.

    Returns:
        The module that is handed the states of the layers that were taken out.
    """
    layers = layer_list(backbone)[1]
    returned: list[Any] = []
    hook = layers[0].register_forward_hook(lambda _layer, _args, out: returned.append(out))
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(backbone.parameters()).device)
    try:
        backbone(input_ids=token, attention_mask=torch.ones_like(token))
    finally:
        hook.remove()
    for number in range(first):
        layers[number] = _Bypass(layers[number], isinstance(returned[0], tuple))
    return layers[first - 1]
