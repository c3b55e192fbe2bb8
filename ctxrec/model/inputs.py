"""What the model reads of the catalogue: its sizes, its features on the device, its text vectors.

Legend: I items, M values of a category, F numeric features, H encoder width, V width of an image or audio encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ctxrec.core.config import ModelConfig
from ctxrec.data.features import ItemFeatures, id_rows
from ctxrec.data.prepared import FeatureMeta

MAX_ID_ROWS = 1_000_000  # the automatic number of rows of the ID embedding, at most


def known_ids(trained_I: np.ndarray) -> np.ndarray:
    """Which items have an ID that says something: those with training events, or all where no item has one. bool [I]."""
    return trained_I if trained_I.any() else np.ones_like(trained_I)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of the data that the towers' weights depend on; a bundle keeps it with the weights."""

    num_items: int
    id_buckets: int
    text_width: int  # 0 = no text encoder
    features: FeatureMeta
    media_widths: dict[str, int] = field(default_factory=dict)  # widths of "image" and "audio" vectors
    user_text_width: int = 0  # 0 = the free texts of users are not read

    @staticmethod
    def of(
        config: ModelConfig,
        features: FeatureMeta,
        *,
        num_items: int,
        text_width: int,
        media_widths: dict[str, int] | None = None,
    ) -> ModelShape:
        """The sizes that follow from the options and the data; `media_widths` is by kind."""
        return ModelShape(
            num_items=num_items,
            id_buckets=config.id_buckets or min(num_items, MAX_ID_ROWS),
            text_width=text_width,
            features=features,
            media_widths=media_widths or {},
            user_text_width=text_width if features.user_texts and "user" in config.sources else 0,
        )


@dataclass
class ItemTensors:
    """The features of the catalogue on the device. Text vectors are apart (`TextTable`), as they change in training."""

    id_rows_I: torch.Tensor  # int64
    trained_I: torch.Tensor  # float32, 0 where an item has no training event, so its ID is not read
    cat_IM: dict[str, torch.Tensor]  # int64
    num_IF: torch.Tensor  # float32, values and presence side by side
    pool: torch.Tensor | None  # int64, the trained items, which alone compete in a loss; None = all
    place_I: torch.Tensor  # int64, an item's place in the pool
    media_IV: dict[str, torch.Tensor] = field(default_factory=dict)  # scaled, 0 where an item has none
    mean_rows: torch.Tensor | None = None  # int64, see `of_rows`; None = the rows of the trained items here

    @staticmethod
    def of(
        features: ItemFeatures,
        shape: ModelShape,
        device: torch.device | str = "cpu",
        *,
        trained: np.ndarray | None = None,
        media: dict[str, np.ndarray] | None = None,
    ) -> ItemTensors:
        """The features of a catalogue as tensors.

        Args:
            features: as arrays.
            shape: sizes of the data.
            device: where the tensors go.
            trained: bool [I], which items have training events; None: all of them.
            media: vectors of images and sounds [I, V] by kind.
        """
        known = np.ones(len(features), bool) if trained is None else known_ids(trained)
        rows = id_rows(features.ids, shape.id_buckets)
        tensors = ItemTensors.of_rows(features, id_rows=rows, trained=known, media=media or {}, device=device)
        if not known.all():
            tensors.pool = torch.from_numpy(np.flatnonzero(known)).to(device)
        tensors.place_I = torch.from_numpy(np.maximum(np.cumsum(known) - 1, 0)).to(device)
        return tensors

    @staticmethod
    def of_rows(
        features: ItemFeatures,
        *,
        id_rows: np.ndarray,
        trained: np.ndarray,
        media: dict[str, np.ndarray],
        device: torch.device | str = "cpu",
        mean_rows: np.ndarray | None = None,
    ) -> ItemTensors:
        """Some items, for example those posted to a service; all of them compete in a loss.

        Args:
            features: of n items.
            id_rows: int64 [n], rows of the ID embedding.
            trained: bool [n], which items have training events, so that their ID says something.
            media: vectors of images and sounds by kind, [n, V].
            device: where the tensors lie.
            mean_rows: int64, rows of the ID embedding of the catalogue's trained items, where these are only a part of the
                catalogue. An item without training event has their mean own score.
        """
        num = np.concatenate([features.num, features.num_present], 1)
        return ItemTensors(
            trained_I=torch.from_numpy(trained.astype(np.float32)).to(device),
            pool=None,
            place_I=torch.arange(len(features), device=device),
            id_rows_I=torch.from_numpy(id_rows).to(device),
            cat_IM={n: torch.from_numpy(v.astype(np.int64)).to(device) for n, v in features.cat.items()},
            num_IF=torch.from_numpy(num).to(device),
            media_IV={kind: torch.from_numpy(vectors).to(device) for kind, vectors in media.items()},
            mean_rows=None if mean_rows is None else torch.from_numpy(mean_rows).to(device),
        )

    def take(self, which_n: torch.Tensor) -> ItemTensors:
        """Some of the items, in this order. All of them compete in a loss."""
        return ItemTensors(
            id_rows_I=self.id_rows_I[which_n],
            trained_I=self.trained_I[which_n],
            cat_IM={name: codes[which_n] for name, codes in self.cat_IM.items()},
            num_IF=self.num_IF[which_n],
            pool=None,
            place_I=torch.arange(len(which_n), device=which_n.device),
            media_IV={kind: vectors[which_n] for kind, vectors in self.media_IV.items()},
            mean_rows=self.mean_rows,
        )
