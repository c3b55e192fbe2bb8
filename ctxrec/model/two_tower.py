"""The two towers: item vectors from content and ID, a query from history and context, and their inner product.

Legend: I items, B rows, S query slots, W width of the vectors of all heads, C width of the content head.
A vector is that of two heads end to end: first the sequence head's D + 1 numbers, of which the last is the item's own
score (1 for a query), then the content head's C + 1 numbers, of the same form. The products of the heads add up.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core.config import Config, ModelConfig
from ctxrec.data.batching import Batch
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.backbones.base import states_at
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.item_tower import ContentHead, ItemTower
from ctxrec.model.user_tower import ActionHeads, UserTower


class NoTowers(nn.Module):
    """What stands in the place of the towers of a model that has none (`train.preset = "quick"`): vectors of width 0."""

    widths: tuple[int, ...] = ()

    def forward(
        self,
        items: ItemTensors,
        text: TextTable | None,
        batch: Batch | None = None,
        *,
        item_vectors: torch.Tensor | None = None,
        last: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As of `Towers`: item vectors [I, 0], and queries [B, 0] (with `last`) or [B, S, 0]."""
        vectors = torch.zeros(len(items.id_rows_I), 0) if item_vectors is None else item_vectors
        if batch is None:
            return vectors, None
        shape = batch.asked_BS.shape[:1] if last else batch.asked_BS.shape
        return vectors, torch.zeros(*shape, 0)


def make_towers(config: Config, shape: ModelShape) -> Towers | NoTowers:
    """The towers that the options name, with the weights of their start."""
    if config.train.preset == "quick":
        return NoTowers()
    return Towers(config.model, shape, temperature=config.train.temperature)


class Towers(nn.Module):
    """Both heads with the temperature of their products: all that is trained apart from the encoder."""

    def __init__(self, config: ModelConfig, shape: ModelShape, *, temperature: float) -> None:
        super().__init__()
        self.item = ItemTower(config, shape)
        self.user = UserTower(config, shape.features, text_width=shape.user_text_width)
        self.log_scale = nn.Parameter(torch.tensor([-np.log(temperature)], dtype=torch.float32))
        num_actions = len(shape.features.actions)
        self.actions = ActionHeads(config.dim, num_actions) if config.action_heads and num_actions > 1 else None
        has_content = "text" in config.sources and shape.text_width and config.content_dim
        self.content = ContentHead(config, shape) if has_content else None
        self.widths: tuple[int, ...] = (config.dim + 1,)  # of the heads, in the order in which their vectors lie
        if self.content is not None:
            self.widths += (min(config.content_dim, shape.text_width) + 1,)

    def forward(
        self,
        items: ItemTensors,
        text: TextTable | None,
        batch: Batch | None = None,
        *,
        item_vectors: torch.Tensor | None = None,
        last: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Item vectors and queries.

        Args:
            items: features of the items.
            text: their text vectors; None without text encoder.
            batch: histories and requests; without it there are no queries.
            item_vectors: of an earlier call, which saves computing them again.
            last: ask only at the last slot of each row, which is the row's own request.

        Returns:
            Item vectors [I, W], and queries [B, S, W], or [B, W] with `last`, or None without `batch`.
        """
        given = [None, None] if item_vectors is None else torch.split(item_vectors, self.widths, dim=1)
        sequence_ID = given[0]
        if sequence_ID is None:
            vectors, bias = self.item(items, text)
            sequence_ID = torch.cat([vectors, bias[:, None]], 1)
        parts, queries = [sequence_ID], []
        last_B = batch.lengths_B if batch is not None and last else None
        if batch is not None:
            asked = batch.asked_BS if last_B is None else states_at(batch.asked_BS, last_B)[:, None]
            queries.append(self._query(self.user(batch, sequence_ID[:, :-1], last_B), asked, batch.asked_mix_BA))
        if self.content is not None:
            content_IC, content_query = self.content(items, text, batch, given[1], last_B)
            parts.append(content_IC.to(sequence_ID.dtype))
            queries += [] if content_query is None else [content_query]
        if item_vectors is None:
            item_vectors = torch.cat(parts, 1)
        if batch is None:
            return item_vectors, None
        query = torch.cat(queries, -1)
        return item_vectors, query[:, 0] if last else query

    def _query(self, state: torch.Tensor, asked: torch.Tensor, asked_mix_BA: torch.Tensor) -> torch.Tensor:
        """The sequence head's queries of user states, [B, S, D + 1]."""
        state = F.normalize(state.float(), dim=-1) * self.log_scale.exp()
        if self.actions is not None:
            state = self.actions(state, asked, asked_mix_BA)
        return torch.cat([state, torch.ones_like(state[..., :1])], -1)

    def read(self, batch: Batch, item_vectors: torch.Tensor) -> torch.Tensor:
        """The part of the last queries that depends on the user and the history alone: [B, M], for `ask`.

        A backbone that depends on the time of the request (`reads_time`) has no such part.
        """
        sequence_ID, *content = torch.split(item_vectors, self.widths, dim=1)
        context = self.user.context(batch) if self.user.context is not None else None
        parts = [self.user.read(batch, sequence_ID[:, :-1], context, batch.lengths_B)]
        if self.content is not None:
            parts.append(self.content(None, None, batch, content[0], batch.lengths_B)[1])
        return torch.cat(parts, -1)[:, 0]

    def ask(self, read_BM: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Queries [B, W] from the result of `read`, in the contexts of `batch`, whose rows have no events."""
        dim = self.user.config.dim
        context = self.user.context(batch) if self.user.context is not None else None
        state = self.user.apply_film(read_BM[:, None, :dim], context)
        return torch.cat([self._query(state, batch.asked_BS, batch.asked_mix_BA)[:, 0], read_BM[:, dim:]], 1)
