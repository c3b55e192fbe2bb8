"""Layers that both towers use: embeddings of categories, and module names for features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from ctxrec.core import schema


class CategoryEmbedding(nn.Module):
    """Mean of the embeddings of an item's values. Codes are padded with MISSING, whose embedding is zero.

    An `EmbeddingBag` serves single values too: it never makes a tensor [I, M, D], and its gradient takes a third of the
    time.
    """

    def __init__(self, vocabulary: list[str], dim: int) -> None:
        super().__init__()
        rows = len(vocabulary) + schema.FIRST_CODE
        self.table = nn.EmbeddingBag(rows, dim, mode="mean", padding_idx=schema.MISSING)
        small_init(self.table)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """[..., D] of codes [...] or, with several values, [..., M]."""
        return self.table(codes[:, None] if codes.dim() == 1 else codes)


def small_init(table: Any) -> None:
    """Start an embedding with small normal values, and its padding row with zeros."""
    nn.init.normal_(table.weight, std=0.02)
    if table.padding_idx is not None:
        with torch.no_grad():
            table.weight[table.padding_idx].zero_()


def module_name(name: str) -> str:
    """A feature's name as a module name, which must not hold a dot."""
    return "f_" + name.replace("%", "%25").replace(".", "%2E")


def feature_name(key: str) -> str:
    """The inverse of `module_name`."""
    return key[2:].replace("%2E", ".").replace("%25", "%")
