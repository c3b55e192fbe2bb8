"""The recommender: item vectors from content and ID, a user state from history, and their product.

Legend: I items, B rows, L event slots, S = L + 1 query slots, D width, H encoder width,
P positions with a target, F numeric features, M values of a category, n fresh items of a step, A actions,
V width of an image or audio encoder.
Vectors that meet in the product are those of two heads end to end: the sequence head's D + 1 numbers (the last
is the item's own score, 1 for a query), then the content head's C + 1, alike. Their products add up.
Parameters are read in the forward of the module that owns them, as ZeRO-3 gathers them there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec import schema
from ctxrec.backbones import make_backbone
from ctxrec.backbones.base import states_at
from ctxrec.batching import Batch
from ctxrec.config import ModelConfig
from ctxrec.features import NUM_GAP_BUCKETS, TEXT_BUCKETS, ItemFeatures, id_rows
from ctxrec.likeness import principal_axes
from ctxrec.prepared import FeatureMeta

MAX_ID_ROWS = 1_000_000  # rows of the ID embedding that an automatic size takes at most
_ID_START = 0.1  # length of an ID vector before training
# Where the content head starts: a step back weighs so much, down to the oldest step that counts; its temperature.
_AGE_DECAY, _OLDEST, _CONTENT_SCALE = 0.6, 12, 10.0


@dataclass(frozen=True)
class ModelShape:
    """What the towers' sizes follow from; saved with the weights."""

    num_items: int
    id_buckets: int
    text_width: int  # 0 = no text encoder
    features: FeatureMeta
    media_widths: dict[str, int] = field(default_factory=dict)  # of "image" and "audio" vectors, where there are any

    @staticmethod
    def of(
        config: ModelConfig,
        features: FeatureMeta,
        *,
        num_items: int,
        text_width: int,
        media_widths: dict[str, int] | None = None,
    ) -> ModelShape:
        return ModelShape(
            num_items=num_items,
            id_buckets=config.id_buckets or min(num_items, MAX_ID_ROWS),
            text_width=text_width,
            features=features,
            media_widths=media_widths or {},
        )


@dataclass
class ItemTensors:
    """The catalogue's features on the device; text vectors come apart, as they change in training."""

    id_rows_I: torch.Tensor  # int64
    trained_I: torch.Tensor  # float32, 0 where an item has no training event, so that its ID says nothing
    cat_IM: dict[str, torch.Tensor]  # int64
    num_IF: torch.Tensor  # float32, values and presence side by side
    pool: torch.Tensor | None  # int64, the trained items, which alone compete in a loss; None = all
    place_I: torch.Tensor  # int64, an item's place in the pool
    media_IV: dict[str, torch.Tensor] = field(default_factory=dict)  # scaled, 0 where an item has none

    @staticmethod
    def of(
        features: ItemFeatures,
        shape: ModelShape,
        device: torch.device | str = "cpu",
        *,
        trained: np.ndarray | None = None,
        media: dict[str, np.ndarray] | None = None,
    ) -> ItemTensors:
        """`trained`: bool [I], which items have training events; None = all. `media`: [I, V] by kind."""
        num = np.concatenate([features.num, features.num_present], 1)
        known = np.ones(len(features), bool) if trained is None or not trained.any() else trained
        pool = None if known.all() else torch.from_numpy(np.flatnonzero(known)).to(device)
        return ItemTensors(
            trained_I=torch.from_numpy(known.astype(np.float32)).to(device),
            pool=pool,
            place_I=torch.from_numpy(np.maximum(np.cumsum(known) - 1, 0)).to(device),
            id_rows_I=torch.from_numpy(id_rows(features.ids, shape.id_buckets)).to(device),
            cat_IM={n: torch.from_numpy(v.astype(np.int64)).to(device) for n, v in features.cat.items()},
            num_IF=torch.from_numpy(num).to(device),
            media_IV={kind: torch.from_numpy(vectors).to(device) for kind, vectors in (media or {}).items()},
        )


@dataclass
class TextTable:
    """Text vectors of the catalogue. `mean` and `scale` (of the un-tuned encoder's vectors) centre and
    scale them, since raw language-model vectors share one direction (arXiv 2402.10602)."""

    vectors_IH: torch.Tensor  # float32
    present_I: torch.Tensor  # float32, 0 where an item has no text
    mean_H: torch.Tensor
    scale_H: torch.Tensor


class CategoryEmbedding(nn.Module):
    """Mean of the embeddings of an item's values; codes padded with MISSING, which embeds as zero."""

    def __init__(self, vocabulary: list[str], dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(vocabulary) + schema.FIRST_CODE, dim, padding_idx=schema.MISSING)
        _small_init(self.table)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.dim() == 1:
            return self.table(codes)
        count = (codes != schema.MISSING).sum(-1, keepdim=True).clamp(min=1)
        return self.table(codes).sum(-2) / count


class ItemTower(nn.Module):
    """Fuses text, images, sounds, ID, categories and numbers of an item into one vector of unit length and a bias."""

    def __init__(self, config: ModelConfig, shape: ModelShape) -> None:
        super().__init__()
        self.config = config
        features = shape.features
        self.text = nn.Linear(shape.text_width, config.dim) if config.use_text and shape.text_width else None
        media = shape.media_widths if config.use_media else {}
        self.media = nn.ModuleDict({kind: nn.Linear(width, config.dim, bias=False) for kind, width in media.items()})
        self.id = nn.Embedding(shape.id_buckets, config.dim) if config.use_id else None
        self.id_bias = nn.Embedding(shape.id_buckets, 1) if config.use_id else None
        use = config.use_features
        self.categories = nn.ModuleDict(
            {_key(n): CategoryEmbedding(v, config.dim) for n, v in features.item_categories.items() if use}
        )
        num_numbers = 2 * len(features.item_numbers) if use else 0
        self.numbers = nn.Linear(num_numbers, config.dim) if num_numbers else None
        self.norm = nn.LayerNorm(config.dim)
        self.bias = nn.Linear(config.dim, 1, bias=False)  # a constant would change no ranking and no loss
        if self.id is not None:
            # Far shorter than the text's part, so that the noise of an item with few events does not drown its text.
            nn.init.normal_(self.id.weight, std=_ID_START * config.dim**-0.5)
            nn.init.zeros_(self.id_bias.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, items: ItemTensors, text: TextTable | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors [I, D] of unit length and biases [I]."""
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
            total = total + embedding(items.cat_IM[_name(name)])
        if self.numbers is not None:
            total = total + self.numbers(items.num_IF.to(total.dtype))
        bias = self.bias(self.norm(total)).squeeze(-1)
        if self.id_bias is not None:
            bias = bias + self.id_bias(items.id_rows_I).squeeze(-1) * id_kept
        return F.normalize(self.norm(total), dim=-1), bias

    def _kept(self, num_items: int, dropout: float, like: torch.Tensor) -> torch.Tensor:
        """1 for items whose source is seen in this step, 0 for hidden ones."""
        if not self.training or dropout == 0:
            return like.new_ones(num_items)
        return (torch.rand(num_items, device=like.device) >= dropout).to(like.dtype)


class ContextTower(nn.Module):
    """One vector of a request's context: time, gap, categorical, numeric and text features."""

    def __init__(self, config: ModelConfig, features: FeatureMeta) -> None:
        super().__init__()
        dim = config.dim
        sizes = {"hour": 24, "weekday": 7, "month": 13}
        sizes |= {name: len(values) for name, values in features.context_categories.items()}
        self.cat = nn.ModuleDict(
            {_key(name): nn.Embedding(size + schema.FIRST_CODE, dim) for name, size in sizes.items()}
        )
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, dim)
        num_numbers = 2 * len(features.context_numbers)
        self.numbers = nn.Linear(num_numbers, dim) if num_numbers else None
        self.words = nn.ModuleDict(
            {
                _key(name): nn.EmbeddingBag(TEXT_BUCKETS, dim, mode="mean", padding_idx=0)
                for name in features.context_texts
            }
        )
        for table in [*self.cat.values(), self.gap, *self.words.values()]:
            _small_init(table)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[B, S, D]."""
        total = self.gap(batch.query_gaps_BS)
        for name, table in self.cat.items():
            total = total + table(batch.cat_BS[_name(name)])
        if self.numbers is not None:
            total = total + self.numbers(torch.cat([batch.num_BSF, batch.num_present_BSF], -1).to(total.dtype))
        for name, table in self.words.items():
            words = batch.words_BSW[_name(name)]
            total = total + table(words.flatten(0, 1)).view(*words.shape[:2], -1)
        return total


class UserTower(nn.Module):
    """Reads who asks and what they did, then bends that state to the context of the request (FiLM)."""

    def __init__(self, config: ModelConfig, features: FeatureMeta) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.start = nn.Embedding(1, dim)
        self.item_in = nn.Linear(dim, dim)
        self.action = nn.Embedding(len(features.actions) + 1, dim)
        use = config.use_user
        self.user_cat = nn.ModuleDict(
            {_key(n): CategoryEmbedding(v, dim) for n, v in features.user_categories.items() if use}
        )
        num_numbers = 2 * len(features.user_numbers) if use else 0
        self.user_numbers = nn.Linear(num_numbers, dim) if num_numbers else None
        self.norm_in = nn.LayerNorm(dim)
        self.backbone = make_backbone(config)
        self.norm_out = nn.LayerNorm(dim)
        self.context = ContextTower(config, features) if config.use_context else None
        self.film = nn.Linear(dim, 2 * dim) if config.use_context else None
        self.event_context = nn.Linear(dim, dim) if config.use_context else None
        self.query = nn.Linear(dim, dim)
        for table in (self.start, self.action):
            _small_init(table)
        if self.film is not None:
            nn.init.zeros_(self.film.bias)

    def forward(self, batch: Batch, item_vectors_ID: torch.Tensor, last_B: torch.Tensor | None = None) -> torch.Tensor:
        """User states at every query slot, [B, S, D], or at the slots `last_B` alone, [B, 1, D]."""
        context = self.context(batch) if self.context is not None else None
        state = self.read(batch, item_vectors_ID, context, last_B)
        if context is not None and last_B is not None:
            context = states_at(context, last_B)[:, None]
        return self.bend(state, context)

    def read(
        self,
        batch: Batch,
        item_vectors_ID: torch.Tensor,
        context: torch.Tensor | None,
        last_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is known of users at every slot, or at `last_B` alone, before the context in which they ask."""
        prefix = self.start(torch.zeros_like(batch.lengths_B))
        for name, embedding in self.user_cat.items():
            prefix = prefix + embedding(batch.user_cat_B[_name(name)])
        if self.user_numbers is not None:
            numbers = torch.cat([batch.user_num_BF, batch.user_num_present_BF], -1)
            prefix = prefix + self.user_numbers(numbers.to(prefix.dtype))
        events = self.item_in(item_vectors_ID[batch.items_BL] * self.config.dim**0.5)
        events = events + self.action(batch.actions_BL)
        if context is not None:  # slot j asks in the context of event j + 1, so event j's own is at j - 1
            events = events + self.event_context(context[:, :-1])
        slots = F.dropout(self.norm_in(torch.cat([prefix[:, None], events], 1)), self.config.dropout, self.training)
        state = self.backbone(slots, batch.times_BS, last_B)
        return self.norm_out(state if last_B is None else state[:, None])

    def bend(self, state: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """What is known of a user, as the context in which they ask changes it (FiLM)."""
        if context is not None:
            scale, shift = self.film(context).chunk(2, -1)
            state = state * (1 + scale) + shift
        return self.query(F.dropout(state, self.config.dropout, self.training))


class ActionHeads(nn.Module):
    """A query for each action: the shared one and a projection of it of the action's own, which starts as nothing.

    What a request asks for is a mix of actions, and the same mix of their queries, so that products stay products.
    """

    def __init__(self, dim: int, num_actions: int) -> None:
        super().__init__()
        self.own_ADD = nn.Parameter(torch.zeros(num_actions, dim, dim))

    def forward(self, query_BSD: torch.Tensor, asked_BS: torch.Tensor, mix_BA: torch.Tensor) -> torch.Tensor:
        own_ADD = self.own_ADD.to(query_BSD.dtype)
        mixed_BDD = torch.einsum("ba,ade->bde", mix_BA.to(query_BSD.dtype), own_ADD)
        total_BSD = query_BSD + query_BSD @ mixed_BDD
        for code, own_DD in enumerate(own_ADD, 1):
            where = torch.nonzero(asked_BS == code, as_tuple=True)
            total_BSD = total_BSD.index_put(where, query_BSD[where] @ own_DD, accumulate=True)
        return total_BSD


class ContentHead(nn.Module):
    """Likeness of an item's text to the texts of the latest history, in a space learnt from the log.

    The query is a sum of the history's vectors whose weights depend on the age and the action of an event.
    """

    def __init__(self, config: ModelConfig, shape: ModelShape) -> None:
        super().__init__()
        self.project = nn.Linear(shape.text_width, min(config.content_dim, shape.text_width), bias=False)
        ages = torch.arange(config.history, dtype=torch.float32).clamp(max=_OLDEST)
        self.log_age = nn.Parameter(ages * float(np.log(_AGE_DECAY)))
        self.log_action = nn.Embedding(len(shape.features.actions) + 1, 1)
        self.log_scale = nn.Parameter(torch.tensor([np.log(_CONTENT_SCALE)], dtype=torch.float32))
        self.id_bias = nn.Embedding(shape.id_buckets, 1) if config.use_id else None
        nn.init.zeros_(self.log_action.weight)
        if self.id_bias is not None:
            nn.init.zeros_(self.id_bias.weight)

    @torch.no_grad()
    def start_from(self, text: TextTable) -> None:
        """Start as the principal components of the un-tuned text vectors, which keep their likeness."""
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
        """Item vectors [I, C + 1] (or those given), and queries [B, S, C + 1], or [B, 1, C + 1] with `last_B`."""
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
        """An item's own score; untrained items take the mean of the others. [I]"""
        if self.id_bias is None:
            return self.log_scale.new_zeros(len(items.id_rows_I))
        bias = self.id_bias(items.id_rows_I).squeeze(-1)
        known = items.trained_I.to(bias.dtype)
        mean = (bias * known).sum() / known.sum().clamp(min=1)
        return bias * known + mean * (1 - known)


class Towers(nn.Module):
    """Both heads with the temperature of their products; everything trained but the encoder."""

    def __init__(self, config: ModelConfig, shape: ModelShape, *, temperature: float) -> None:
        super().__init__()
        self.item = ItemTower(config, shape)
        self.user = UserTower(config, shape.features)
        self.log_scale = nn.Parameter(torch.tensor([-np.log(temperature)], dtype=torch.float32))
        num_actions = len(shape.features.actions)
        self.actions = ActionHeads(config.dim, num_actions) if config.action_heads and num_actions > 1 else None
        has_content = config.use_text and shape.text_width and config.content_dim
        self.content = ContentHead(config, shape) if has_content else None
        self.widths = (config.dim + 1,)  # of the heads, in the order in which their vectors lie
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
        """Item vectors [I, W] and queries: [B, S, W], or with `last` the query of each row's own request, [B, W].

        `item_vectors` saves computing them again; without `batch` there are no queries.
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
        """What the last queries owe to who asks and to their histories alone: [B, M], for `ask`.

        Not for a backbone that knows at what time it is asked (`reads_time`).
        """
        sequence_ID, *content = torch.split(item_vectors, self.widths, dim=1)
        context = self.user.context(batch) if self.user.context is not None else None
        parts = [self.user.read(batch, sequence_ID[:, :-1], context, batch.lengths_B)]
        if self.content is not None:
            parts.append(self.content(None, None, batch, content[0], batch.lengths_B)[1])
        return torch.cat(parts, -1)[:, 0]

    def ask(self, read_BM: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Queries [B, W] of what `read` gave, in the contexts of `batch`, whose rows have no events."""
        dim = self.user.config.dim
        context = self.user.context(batch) if self.user.context is not None else None
        state = self.user.bend(read_BM[:, None, :dim], context)
        return torch.cat([self._query(state, batch.asked_BS, batch.asked_mix_BA)[:, 0], read_BM[:, dim:]], 1)

    def likeness(self, items: ItemTensors, text: TextTable, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Item vectors [I, C] and queries [B, S, C] whose products an encoder is tuned by, without items' own scores:
        the content head's, or where there is none the sequence head's."""
        vectors, query = self(items, text, batch) if self.content is None else self.content(items, text, batch, None)
        assert query is not None
        return vectors[:, :-1], query[..., :-1]


def _small_init(table: Any) -> None:
    nn.init.normal_(table.weight, std=0.02)
    if table.padding_idx is not None:
        with torch.no_grad():
            table.weight[table.padding_idx].zero_()


def _key(name: str) -> str:
    """A feature's name as a module name, which must not hold a dot."""
    return "f_" + name.replace("%", "%25").replace(".", "%2E")


def _name(key: str) -> str:
    return key[2:].replace("%2E", ".").replace("%25", "%")
