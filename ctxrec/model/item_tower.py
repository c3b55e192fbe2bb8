"""Items to vectors: the item tower reads all that is known of an item, the content head reads its text.

Each module reads its parameters in its own forward, because ZeRO-3 gathers them there.

Legend: I items, B rows, L event slots, S = L + 1 query slots, D width, H encoder width, V width of an image or audio
encoder, F numeric features, M values of a category, A actions, C width of the content head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core.config import ModelConfig
from ctxrec.data.batching import Batch
from ctxrec.data.vectors import principal_axes
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.backbones.base import LayerNorm
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.layers import CategoryEmbedding, feature_name, module_name


@dataclass(frozen=True)
class TowerStartParams:
    """Tuned numbers of the weights before training. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        id_length: length of an ID vector. It is far shorter than the text's part of an item vector, so that the noise of
            an item with few events does not hide its text. With 0.1 instead of 1 such items rank by their text.
        age_decay: the content head weighs an event by this for each step back in the history. Training changes it; no
            measurement of the start is recorded.
        oldest_step: steps back beyond this one weigh as much as this one. No measurement is recorded.
        content_scale: scale of the content head's cosines, the inverse of a temperature. Training changes it; no
            measurement of the start is recorded.
    """

    id_length: float = 0.1
    age_decay: float = 0.6
    oldest_step: int = 12
    content_scale: float = 10.0


START = TowerStartParams()


class ItemTower(nn.Module):
    """Fuses text, images, sounds, ID, categories and numbers of an item into one vector of unit length and a bias.

    Each source may be absent from the data, from `model.sources` or from an item. In training the ID and the text of an
    item are hidden at random, so that the model learns to do without either.
    """

    def __init__(self, config: ModelConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        features = shape.features
        self.text = nn.Linear(shape.text_width, config.dim) if "text" in config.sources and shape.text_width else None
        media = shape.media_widths if "media" in config.sources else {}
        self.media = nn.ModuleDict({kind: nn.Linear(width, config.dim, bias=False) for kind, width in media.items()})
        self.id = nn.Embedding(shape.id_buckets, config.dim) if "id" in config.sources else None
        self.id_bias = nn.Embedding(shape.id_buckets, 1) if "id" in config.sources else None
        use = "features" in config.sources
        self.categories = nn.ModuleDict(
            {module_name(n): CategoryEmbedding(v, config.dim) for n, v in features.item_categories.items() if use}
        )
        num_numbers = 2 * len(features.item_numbers) if use else 0
        self.numbers = nn.Linear(num_numbers, config.dim) if num_numbers else None
        self.norm = LayerNorm(config.dim)
        self.bias = nn.Linear(config.dim, 1, bias=False)  # a constant would change no ranking and no loss
        if self.id is not None and self.id_bias is not None:
            nn.init.normal_(self.id.weight, std=START.id_length * config.dim**-0.5)
            nn.init.zeros_(self.id_bias.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, items: ItemTensors, text: TextTable | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode items.

        Args:
            items: their features.
            text: their text vectors; None without text encoder.

        Returns:
            Vectors [I, D] of unit length, and biases [I].
        """
        num_items = len(items.id_rows_I)
        total = torch.zeros(num_items, self.config.dim, dtype=self.norm.weight.dtype, device=items.id_rows_I.device)
        id_kept = self._kept(num_items, self.config.id_dropout, total) * items.trained_I.to(total.dtype)
        if self.text is not None and text is not None:
            vectors = (text.vectors_IH - text.mean_H) / text.scale_H
            kept = text.present_I * self._kept(num_items, self.config.text_dropout, total)
            total = total + self.text(vectors.to(total.dtype)) * kept[:, None]
        for kind, projection in self.media.items():
            kept = self._kept(num_items, self.config.text_dropout, total)
            total = total + projection(items.media_IV[kind].to(total.dtype)) * kept[:, None]
        if self.id is not None:
            total = total + self.id(items.id_rows_I) * id_kept[:, None]
        for name, embedding in self.categories.items():
            total = total + embedding(items.cat_IM[feature_name(name)])
        if self.numbers is not None:
            total = total + self.numbers(items.num_IF.to(total.dtype))
        total = self.norm(total)
        bias = self.bias(total).squeeze(-1)
        if self.id_bias is not None:
            bias = bias + self.id_bias(items.id_rows_I).squeeze(-1) * id_kept
        return F.normalize(total, dim=-1), bias

    def _kept(self, num_items: int, dropout: float, like: torch.Tensor) -> torch.Tensor:
        """1 for items whose source is read in this step, 0 for those that hide it: [I]."""
        if not self.training or dropout == 0:
            return like.new_ones(num_items)
        return (torch.rand(num_items, device=like.device) >= dropout).to(like.dtype)


class ContentHead(nn.Module):
    """Similarity of an item's text to the texts of the latest events, in a space that is learnt from the log.

    The query is a sum of the vectors of the history, weighted by the age and the action of each event.
    """

    def __init__(self, config: ModelConfig, shape: ModelShape) -> None:
        super().__init__()
        self.project = nn.Linear(shape.text_width, min(config.content_dim, shape.text_width), bias=False)
        ages = torch.arange(config.history, dtype=torch.float32).clamp(max=START.oldest_step)
        self.log_age = nn.Parameter(ages * float(np.log(START.age_decay)))
        self.log_action = nn.Embedding(len(shape.features.actions) + 1, 1)
        self.log_scale = nn.Parameter(torch.tensor([np.log(START.content_scale)], dtype=torch.float32))
        self.id_bias = nn.Embedding(shape.id_buckets, 1) if "id" in config.sources else None
        nn.init.zeros_(self.log_action.weight)
        if self.id_bias is not None:
            nn.init.zeros_(self.id_bias.weight)

    @torch.no_grad()
    def start_from(self, text: TextTable) -> None:
        """Start with the principal components of the text vectors, which keep their similarities.

        Args:
            text: vectors of the encoder before it is tuned.
        """
        shown = text.vectors_IH[text.present_I > 0] - text.mean_H
        axes_HC = principal_axes(shown.cpu().numpy(), self.project.out_features)
        self.project.weight.copy_(torch.from_numpy(axes_HC.T))

    def forward(
        self,
        items: ItemTensors | None,
        text: TextTable | None,
        batch: Batch | None,
        vectors_IC: torch.Tensor | None,
        last_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Item vectors and queries of the content head.

        Args:
            items: features of the items; needed without `vectors_IC`.
            text: text vectors of the items; needed without `vectors_IC`.
            batch: histories and requests; without it there are no queries.
            vectors_IC: item vectors of an earlier call, which saves computing them again.
            last_B: ask at this slot of each row alone.

        Returns:
            Item vectors [I, C + 1], whose last number is the item's own score, and queries [B, S, C + 1], or
            [B, 1, C + 1] with `last_B`.
        """
        if vectors_IC is None:
            assert items is not None and text is not None
            content = F.normalize(self.project((text.vectors_IH - text.mean_H).to(self.project.weight.dtype)), dim=-1)
            vectors_IC = torch.cat([content * text.present_I[:, None].to(content.dtype), self._bias(items)[:, None]], 1)
        if batch is None:
            return vectors_IC, None
        shown = vectors_IC[:, :-1][batch.items_BL]
        num_slots = shown.shape[1]
        slots = torch.arange(num_slots, device=shown.device)
        real = slots[None] < batch.lengths_B[:, None]
        shown = shown * (self.log_action(batch.actions_BL).squeeze(-1).exp() * real)[..., None].to(shown.dtype)
        asking = slots[:, None] if last_B is None else last_B[:, None, None] - 1  # [S, 1] or [B, 1, 1]
        age = asking - slots
        weights = (self.log_age[age.clamp(min=0)].exp() * (age >= 0)).to(shown.dtype)
        if last_B is None:
            mean = torch.einsum("qj,bjc->bqc", weights, shown)
            mean = F.pad(mean, (0, 0, 1, 0)).float()  # nothing is read before the first event
        else:
            mean = (weights @ shown).float()
        query = mean / (mean.norm(dim=-1, keepdim=True) + 1e-6) * self.log_scale.exp()
        return vectors_IC, torch.cat([query, torch.ones_like(query[..., :1])], -1)

    def _bias(self, items: ItemTensors) -> torch.Tensor:
        """The own score of each item [I]; an item without training event takes the mean of those in the catalogue that have one."""
        if self.id_bias is None:
            return self.log_scale.new_zeros(len(items.id_rows_I))
        bias = self.id_bias(items.id_rows_I).squeeze(-1)
        known = items.trained_I.to(bias.dtype)
        if items.mean_rows is None:
            mean = (bias * known).sum() / known.sum().clamp(min=1)
        else:
            mean = self.id_bias(items.mean_rows).mean()
        return bias * known + mean * (1 - known)
