"""Random data sets as arrays, and random towers on them: for tests that need no file and no training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from shop import WORDS


@dataclasses.dataclass
class World:
    """A random data set as arrays, without files and without Ray."""

    spec: Any
    features: Any  # FeatureMeta
    histories: Any  # Histories
    catalogue: Any  # ItemFeatures
    table: pa.Table  # the item table that the catalogue comes from

    def config(self, *overrides: str):
        from ctxrec.core.config import load_config

        return load_config(None, ["model.dim=8", "model.history=6", *overrides])

    def batcher(self, config):
        from ctxrec.data.batching import Batcher
        from ctxrec.data.feedback import EventKinds

        return Batcher(
            self.features,
            history=config.model.history,
            kinds=EventKinds.of(self.spec.events, self.features.actions, self.features.graded),
        )

    def towers(self, config, *, text_width: int = 0):
        """Towers in evaluation mode, with every weight moved off its starting value, and their catalogue."""
        import torch

        from ctxrec.model.inputs import ItemTensors, ModelShape
        from ctxrec.model.two_tower import make_towers

        torch.manual_seed(0)
        shape = ModelShape.of(config.model, self.features, num_items=len(self.catalogue), text_width=text_width)
        towers = make_towers(config, shape).eval()
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return towers, ItemTensors.of(self.catalogue, shape)

    def recommender(self, config, *, blend=None, texts=None):
        """A recommender of random towers without text encoder; `blend` makes one of item vectors and their widths, and
        `texts` reads the words of requests."""
        import torch

        from ctxrec.retrieval.recommender import Recommender

        towers, items = self.towers(config)
        with torch.inference_mode():
            vectors, _ = towers(items, None)
        return Recommender(
            config=config,
            spec=self.spec,
            features=self.features,
            towers=towers,
            items=self.table,
            item_vectors=vectors.numpy(),
            histories=self.histories,
            model_version="test",
            blend=None if blend is None else blend(vectors.numpy(), towers.widths),
            texts=texts,
        )


class ReadWorld:
    """A world whose texts a real encoder has read, and what its models are made of."""

    def __init__(self, world, tiny_encoder: str, folder: str, *options: str):
        from ctxrec.encoder.text_encoder import TextEncoder
        from ctxrec.encoder.text_table import encode_catalogue
        from ctxrec.memory.text_similarity import on_axes, text_axes
        from ctxrec.retrieval.bundle_texts import BundleTexts

        self.world = world
        self.config = world.config(f"encoder.name={tiny_encoder}", *options)
        plain = TextEncoder(self.config.encoder, tiny_encoder, tune=False).eval()
        vectors, present = encode_catalogue(plain, tiny_encoder, world.catalogue.texts, self.config.encoder)
        centre, axes = text_axes(vectors, present, 6)
        self.text_IC = on_axes(vectors, present, centre, axes)
        self.texts = BundleTexts(folder, self.config, {"centre": centre, "axes": axes})

    def blend(self, item_vectors, widths):
        from blends import blend_of

        from ctxrec.memory.blend import Blend

        blend = Blend.of(blend_of(item_vectors, widths).memory, self.text_IC, item_vectors, widths)
        return dataclasses.replace(blend, weights_2K=blend.unfitted_2K)

    def recommender(self, texts=None):
        return self.world.recommender(self.config, blend=self.blend, texts=texts or self.texts)


def random_world(
    *, rich: bool = True, lengths: tuple[int, ...] = (9, 1, 5, 14, 7, 2), num_items: int = 20, seed: int = 0
):

    from ctxrec.core import schema
    from ctxrec.core.dataset_spec import DatasetSpec
    from ctxrec.data.clock import Clock
    from ctxrec.data.events import US, Context, Events, Histories, Users
    from ctxrec.data.features import item_features
    from ctxrec.data.prepared import FeatureMeta

    rng = np.random.default_rng(seed)
    scale = {"mean": 0.3, "std": 0.5}
    features = FeatureMeta({}, {}, {}, {}, {}, {}, [], [])
    raw_spec: dict[str, Any] = {"name": "world", "events": {"path": "events.parquet"}}
    if rich:
        features = FeatureMeta(
            item_categories={"kind.of": ["a", "b", "c"], "maker": ["x", "y"]},
            item_numbers={"price": scale, "size": scale},
            user_categories={"gender": ["F", "M"]},
            user_numbers={"age": scale},
            context_categories={"device": ["tv", "phone"]},
            context_numbers={"basket": scale},
            context_texts=["query"],
            actions=["view", "buy"],
        )
        raw_spec["events"]["action"] = "action"
        raw_spec["events"]["actions"] = {"view": 0.5, "buy": 1.0}
    num_events, num_users = sum(lengths), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gaps = rng.integers(1, 200_000, num_events)
    times = np.concatenate([1_600_000_000 + np.cumsum(gaps[a:b]) for a, b in zip(offsets, offsets[1:], strict=False)])
    times = times.astype(np.int64) * US
    cat, num, text = Clock().codes(times), {}, {}
    users = Users(ids=np.array([f"u{n}" for n in range(num_users)], object))
    if rich:
        cat["device"] = rng.integers(0, 4, num_events).astype(np.int32)
        num["basket"] = np.where(rng.random(num_events) < 0.3, np.nan, rng.normal(size=num_events)).astype(np.float32)
        text["query"] = np.array(
            [[None, "red shoe", "a red hat", "lamp"][n] for n in rng.integers(0, 4, num_events)], object
        )
        users.cat["gender"] = rng.integers(0, 4, num_users).astype(np.int32)
        users.num["age"] = np.where(rng.random(num_users) < 0.3, np.nan, 30).astype(np.float32)
    histories = Histories(
        users=users,
        events=Events(
            offsets=offsets,
            items=rng.integers(0, num_items, num_events).astype(np.int32),
            times=times,
            actions=rng.integers(0, len(features.actions) + 1, num_events).astype(np.int16),
            context=Context(cat=cat, num=num, text=text),
        ),
        split=np.zeros(num_events, np.int8),
    )
    columns: dict[str, Any] = {
        schema.ITEM_ID: [f"i{n}" for n in range(num_items)],
        schema.ITEM_TITLE: [f"title {n}" for n in range(num_items)],
        schema.ITEM_TEXT: [None if n % 5 == 0 else f"{WORDS[n % 7]} {WORDS[7 + n % 11]}" for n in range(num_items)],
        schema.ITEM_TRAIN_EVENTS: [1] * num_items,
    }
    if rich:
        kinds = pa.array(
            [[["a", "c"], ["b"], [], None, ["new"]][n % 5] for n in range(num_items)], pa.list_(pa.string())
        )
        columns[schema.category_column("kind.of")] = kinds
        columns[schema.category_column("maker")] = pa.array([["x"]] * num_items, pa.list_(pa.string()))
        columns[schema.numeric_column("price")] = pa.array(
            [None if n % 4 == 0 else float(n) for n in range(num_items)], pa.float64()
        )
        columns[schema.numeric_column("size")] = pa.array([1.0] * num_items, pa.float64())
    table = pa.table(columns)
    return World(DatasetSpec.from_dict(raw_spec), features, histories, item_features(table, features), table)
