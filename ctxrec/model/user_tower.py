"""Requests to queries: who asks, what they did, and the context in which they ask.

Each module reads its parameters in its own forward, because ZeRO-3 gathers them there.

Legend: I items, B rows, L event slots, S = L + 1 query slots, D width, H encoder width, V width of an image or audio
encoder, F numeric features, M values of a category, A actions, C width of the content head.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core import schema
from ctxrec.core.config import ModelConfig
from ctxrec.data.batching import Batch
from ctxrec.data.features import NUM_GAP_BUCKETS, TEXT_BUCKETS
from ctxrec.data.prepared import FeatureMeta
from ctxrec.model.backbones import make_backbone
from ctxrec.model.backbones.base import LayerNorm, states_at
from ctxrec.model.layers import CategoryEmbedding, feature_name, module_name, small_init


class ContextTower(nn.Module):
    """One vector for the context of a request: time, gap, categorical, numeric and text features."""

    def __init__(self, config: ModelConfig, features: FeatureMeta) -> None:
        super().__init__()
        dim = config.dim
        sizes = {"hour": 24, "weekday": 7, "month": 13}
        sizes |= {name: len(values) for name, values in features.context_categories.items()}
        self.cat = nn.ModuleDict(
            {module_name(name): nn.Embedding(size + schema.FIRST_CODE, dim) for name, size in sizes.items()}
        )
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, dim)
        num_numbers = 2 * len(features.context_numbers)
        self.numbers = nn.Linear(num_numbers, dim) if num_numbers else None
        self.words = nn.ModuleDict(
            {
                module_name(name): nn.EmbeddingBag(TEXT_BUCKETS, dim, mode="mean", padding_idx=0)
                for name in features.context_texts
            }
        )
        for table in [*self.cat.values(), self.gap, *self.words.values()]:
            small_init(table)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The context vector of every query slot: [B, S, D]."""
        total = self.gap(batch.query_gaps_BS)
        for name, table in self.cat.items():
            total = total + table(batch.cat_BS[feature_name(name)])
        if self.numbers is not None:
            total = total + self.numbers(torch.cat([batch.num_BSF, batch.num_present_BSF], -1).to(total.dtype))
        for name, table in self.words.items():
            words = batch.words_BSW[feature_name(name)]
            total = total + table(words.flatten(0, 1)).view(*words.shape[:2], -1)
        return total


class UserTower(nn.Module):
    """Reads who asks and what they did, then lets the context of the request change that state (FiLM, arXiv 1709.07871)."""

    def __init__(self, config: ModelConfig, features: FeatureMeta, *, text_width: int = 0) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.start = nn.Embedding(1, dim)
        self.item_in = nn.Linear(dim, dim)
        self.action = nn.Embedding(len(features.actions) + 1, dim)
        use = "user" in config.sources
        self.user_cat = nn.ModuleDict(
            {module_name(n): CategoryEmbedding(v, dim) for n, v in features.user_categories.items() if use}
        )
        num_numbers = 2 * len(features.user_numbers) if use else 0
        self.user_numbers = nn.Linear(num_numbers, dim) if num_numbers else None
        self.user_text = nn.Linear(text_width, dim, bias=False) if use and text_width else None
        self.norm_in = LayerNorm(dim)
        self.backbone = make_backbone(config)
        self.norm_out = LayerNorm(dim)
        self.context = ContextTower(config, features) if "context" in config.sources else None
        self.film = nn.Linear(dim, 2 * dim) if "context" in config.sources else None
        self.event_context = nn.Linear(dim, dim) if "context" in config.sources else None
        self.query = nn.Linear(dim, dim)
        for table in (self.start, self.action):
            small_init(table)
        if self.film is not None:
            nn.init.zeros_(self.film.bias)

    def forward(self, batch: Batch, item_vectors_ID: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """User states.

        Args:
            batch: histories and requests.
            item_vectors_ID: vectors of all items.
            last_B: ask at this slot of each row alone.

        Returns:
            The state at every query slot, [B, S, D], or [B, 1, D] with `last_B`.
        """
        context = self.context(batch) if self.context is not None else None
        state = self.read(batch, item_vectors_ID, context, last_B)
        if context is not None and last_B is not None:
            context = states_at(context, last_B)[:, None]
        return self.apply_film(state, context)

    def read(
        self,
        batch: Batch,
        item_vectors_ID: torch.Tensor,
        context: torch.Tensor | None,
        last_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """User states before the context of the request changes them: [B, S, D], or [B, 1, D] with `last_B`.

        `context` [B, S, D] is that of all slots; an event is read with the context in which it took place.
        """
        prefix = self.start(torch.zeros_like(batch.lengths_B))
        for name, embedding in self.user_cat.items():
            prefix = prefix + embedding(batch.user_cat_B[feature_name(name)])
        if self.user_numbers is not None:
            numbers = torch.cat([batch.user_num_BF, batch.user_num_present_BF], -1)
            prefix = prefix + self.user_numbers(numbers.to(prefix.dtype))
        if self.user_text is not None:
            prefix = prefix + self.user_text(batch.user_text_BH.to(prefix.dtype))
        events = self.item_in(item_vectors_ID[batch.items_BL] * self.config.dim**0.5)
        events = events + self.action(batch.actions_BL)
        if context is not None and self.event_context is not None:
            # Slot j asks in the context of event j + 1, so the context of event j is at slot j - 1.
            events = events + self.event_context(context[:, :-1])
        slots = F.dropout(self.norm_in(torch.cat([prefix[:, None], events], 1)), self.config.dropout, self.training)
        state = self.backbone(slots, batch.times_BS, last_B)
        return self.norm_out(state if last_B is None else state[:, None])

    def apply_film(self, state: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Scale and shift a state [B, S, D] by the context [B, S, D] of the request (FiLM, arXiv 1709.07871)."""
        if context is not None and self.film is not None:
            scale, shift = self.film(context).chunk(2, -1)
            state = state * (1 + scale) + shift
        return self.query(F.dropout(state, self.config.dropout, self.training))


class ActionHeads(nn.Module):
    """A query for each action: the shared query, plus a projection of it that belongs to the action and starts at zero.

    A request asks for a mix of actions. Its query is the same mix of the actions' queries, so it is still one vector and
    an index can search with it.
    """

    def __init__(self, dim: int, num_actions: int) -> None:
        super().__init__()
        self.own_ADD = nn.Parameter(torch.zeros(num_actions, dim, dim))

    def forward(self, query_BSD: torch.Tensor, asked_BS: torch.Tensor, mix_BA: torch.Tensor) -> torch.Tensor:
        """The query plus what the asked action and the mixture `mix_BA` of all actions add to it: [B, S, D]."""
        own_ADD = self.own_ADD.to(query_BSD.dtype)
        mixed_BDD = torch.einsum("ba,ade->bde", mix_BA.to(query_BSD.dtype), own_ADD)
        total_BSD = query_BSD + query_BSD @ mixed_BDD
        for code, own_DD in enumerate(own_ADD, 1):
            where = torch.nonzero(asked_BS == code, as_tuple=True)
            own = (query_BSD[where] @ own_DD).to(total_BSD.dtype)
            total_BSD = total_BSD.index_put(where, own, accumulate=True)
        return total_BSD
