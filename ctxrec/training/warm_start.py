"""A training that starts from the weights of an earlier bundle, and reads new events with a replay of old ones.

Rows of embeddings belong to ids, values and actions, whose places differ between two data sets. Each row goes to the
place that its id, value or action has now; what is new keeps the start of a new model. The scale of a number is part of
the layer that reads it, so that layer is written anew for the new scale, and gives the same as before.

The text encoder stays as the earlier version has it, tuned or not, and so do the weights of the blend: the validation
events of the new data may be training events of the earlier version, and so can choose nothing. The item memory has a
closed form and is fitted to all events.

Legend: D width, F numbers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from ctxrec.bundle import format as bundle_format
from ctxrec.bundle.all_events import towers_until
from ctxrec.core import schema, storage
from ctxrec.core.config import BACKBONES, Config, load_config
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.features import id_rows
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.memory.blend import Blend
from ctxrec.memory.calibration import SUCCESS, Calibrations
from ctxrec.model.inputs import ModelShape
from ctxrec.model.layers import feature_name


@dataclass(frozen=True)
class WarmStartParams:
    """How an earlier model is trained on. The lab book is `tests/bench/RESULTS.md` ("Refreshes").

    Attributes:
        epochs: passes over the windows with new events and as many others.
        replay: windows without new events, as a multiple of those with new ones; another draw in each epoch.
        lr: peak learning rate, as a share of `train.tower_lr`.
    """

    epochs: int = 2
    replay: float = 1.0
    lr: float = 0.25


WARM_START = WarmStartParams()

_OF_A_MACHINE = ("name", "image", "audio", "token_budget", "cache_gb", "gradient_checkpointing", "gradient_caching")
_BY_ITEM = ("item.id.weight", "item.id_bias.weight", "content.id_bias.weight")
_BY_ACTION = ("user.action.weight", "content.log_action.weight")
_OWN_OF_ACTION = "actions.own_ADD"  # has no row for "no action"


@dataclass(frozen=True)
class Earlier:
    """What a training takes over from a bundle."""

    config: Config
    shape: ModelShape
    item_ids: list[str]
    towers: dict[str, torch.Tensor]
    text_scale: dict[str, np.ndarray]  # "mean" and "scale" of text vectors; empty without text
    encoder: TextEncoder | None  # None: it was not tuned
    blend: Blend | None
    version: str
    trained_until_us: int  # time of the last event that its towers were trained on, microseconds
    probability: Calibrations | None = None


def read_earlier(bundle: str, encoder_path: str | None, *, scratch: str) -> Earlier:
    """What a training takes over from a bundle.

    Args:
        bundle: path or URI.
        encoder_path: local folder of the pretrained encoder; None where the model reads no text.
        scratch: local folder for a copy of what lies at a URI.
    """
    folder, manifest = bundle_format.check_bundle(bundle, scratch=scratch)
    config, paths = load_config(base=BundlePaths(folder).config), BundlePaths(folder)
    arrays = load_arrays(paths.vectors)
    tuned = encoder_path is not None and os.path.isdir(paths.adapter)
    return Earlier(
        config=config,
        shape=bundle_format.read_about(folder).model_shape,
        item_ids=pq.read_table(paths.items, columns=[schema.ITEM_ID]).column(0).to_pylist(),
        towers=load_file(paths.towers),
        text_scale={name: arrays[name] for name in ("mean", "scale") if name in arrays},
        encoder=bundle_format.load_encoder(config, str(encoder_path), paths.adapter) if tuned else None,
        blend=bundle_format.load_blend(folder),
        probability=bundle_format.load_calibrations(folder, len(arrays["items"])),
        version=manifest["model_version"],
        trained_until_us=towers_until(folder, manifest),
    )


def why_not(bundle: str, data: PreparedData, config: Config) -> str:
    """Why a training cannot start from a bundle, in words; "" where it can.

    Args:
        bundle: path or URI of an earlier version.
        data: what is trained on.
        config: all options of the training.

    Raises:
        UserError: the bundle is missing or damaged.
    """
    if config.train.preset == "quick":
        return "a quick model has no towers, and is made anew in seconds"
    if config.model.backbone not in BACKBONES:
        return "a language model reads the history"
    folder, _ = bundle_format.check_bundle(bundle, scratch=storage.temporary_folder())
    before = load_config(base=BundlePaths(folder).config)
    if before.train.preset == "quick":
        return "the earlier version is a quick model without towers"
    about = bundle_format.read_about(folder)
    for section in ("encoder", "model"):
        for field in dataclasses.fields(getattr(config, section)):
            was, now = (getattr(getattr(c, section), field.name) for c in (before, config))
            if was != now and not (section == "encoder" and field.name in _OF_A_MACHINE):
                return f"{section}.{field.name} was {was!r} and is {now!r}"
    if os.path.basename(before.encoder.name.rstrip("/")) != os.path.basename(config.encoder.name.rstrip("/")):
        return f"encoder.name was {before.encoder.name!r} and is {config.encoder.name!r}"
    if about.spec.split.repeats != data.spec.split.repeats:
        return "split.repeats of the dataset spec is another one"
    return _other_features(about.features, data.features)


def _other_features(before: FeatureMeta, now: FeatureMeta) -> str:
    """The first kind of features whose names differ, in words; values may be added or change places."""
    for kind in ("item_categories", "item_numbers", "user_categories", "user_numbers", "context_categories",
                 "context_numbers", "context_texts", "user_texts"):  # fmt: skip
        was, is_now = list(getattr(before, kind)), list(getattr(now, kind))
        if was != is_now:
            return f"the {kind.replace('_', ' ')} were {', '.join(was) or 'none'} and are {', '.join(is_now) or 'none'}"
    return "" if before.clock == now.clock else "the times of the log were no clock and are one, or the other way round"


def warm_probability(earlier: Earlier, item_ids: Sequence[str], *, judged: bool) -> Calibrations | None:
    """The calibration of an earlier version for a new catalogue; None where it has none that fits.

    A warm start sees all validation events, so none are left to fit another one to.

    Args:
        earlier: what `read_earlier` gave.
        item_ids: the new catalogue.
        judged: whether the log judges items now (`EventKinds.are_judged`).
    """
    if earlier.probability is None or (earlier.probability.of == SUCCESS) != judged:
        return None
    place = {item: n for n, item in enumerate(item_ids)}
    return earlier.probability.moved(np.array([place.get(item, -1) for item in earlier.item_ids], np.int64))


def warm_weights(
    fresh: dict[str, torch.Tensor], earlier: Earlier, shape: ModelShape, item_ids: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The weights of a new model with all that an earlier one has learnt, by name.

    Args:
        fresh: the weights of the new model at its start.
        earlier: what `read_earlier` gave.
        shape: sizes of the new data.
        item_ids: the new catalogue.

    Raises:
        ValueError: a weight has another shape, though `why_not` found nothing against it.
    """
    made = {}
    rows_of_items = _item_rows(earlier, shape, item_ids)
    for name, weight in fresh.items():
        old = earlier.towers.get(name)
        if old is None:
            raise ValueError(f"the earlier version has no weight {name}")
        moved = weight.clone()
        ours, theirs = _places(name, earlier.shape, shape, rows_of_items)
        if ours is not None and theirs is not None:
            moved[ours] = old[theirs].to(weight)
        elif (scales := _scales(name, earlier.shape.features, shape.features)) is not None:
            moved = rescaled(old, *scales).to(weight)
        else:
            moved = old.to(weight)
        if moved.shape != weight.shape:
            raise ValueError(f"weight {name} was {tuple(moved.shape)} and is {tuple(weight.shape)}")
        made[name] = moved
    return made


Rows = tuple[torch.Tensor | None, torch.Tensor | None]


def _item_rows(earlier: Earlier, shape: ModelShape, item_ids: Sequence[str]) -> Rows:
    """Rows of the ID embeddings of the items of both catalogues, in the new model and in the earlier one."""
    before = dict(zip(earlier.item_ids, id_rows(earlier.item_ids, earlier.shape.id_buckets).tolist(), strict=True))
    now = id_rows(list(item_ids), shape.id_buckets).tolist()
    both = [(row, before[item]) for item, row in zip(item_ids, now, strict=True) if item in before]
    ours, theirs = torch.tensor(both, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return ours, theirs


def _places(name: str, before: ModelShape, now: ModelShape, of_items: Rows) -> Rows:
    """Rows of a table in the new model and in the earlier one; None where a weight is no such table."""
    if name in _BY_ITEM:
        return of_items
    was, is_now = before.features, now.features
    if name in _BY_ACTION:
        return _common(["", *was.actions], ["", *is_now.actions])
    if name == _OWN_OF_ACTION:
        return _common(was.actions, is_now.actions)
    for prefix, theirs, ours in (
        ("item.categories.", was.item_categories, is_now.item_categories),
        ("user.user_cat.", was.user_categories, is_now.user_categories),
        ("user.context.cat.", was.context_categories, is_now.context_categories),
    ):
        if name.startswith(prefix):
            feature = _feature(name.removeprefix(prefix))
            if feature in ours:
                special = ["\0missing", "\0other"]
                return _common([*special, *theirs[feature]], [*special, *ours[feature]])
    return None, None


def _feature(rest: str) -> str:
    return feature_name(rest.removesuffix(".weight").removesuffix(".table"))


def _common(before: Sequence[str], now: Sequence[str]) -> Rows:
    place = {value: row for row, value in enumerate(before)}
    both = [(row, place[value]) for row, value in enumerate(now) if value in place]
    ours, theirs = torch.tensor(both, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return ours, theirs


Scales = list[dict[str, float]]


def _scales(name: str, before: FeatureMeta, now: FeatureMeta) -> tuple[Scales, Scales] | None:
    kinds = {
        "item.numbers.weight": "item_numbers",
        "user.user_numbers.weight": "user_numbers",
        "user.context.numbers.weight": "context_numbers",
    }
    if name not in kinds:
        return None
    was, is_now = (getattr(features, kinds[name]) for features in (before, now))
    return [was[feature] for feature in is_now], list(is_now.values())


def rescaled(weight: torch.Tensor, before: Scales, now: Scales) -> torch.Tensor:
    """A layer over F numbers and their presence, [D, 2F], for numbers of another mean and standard deviation.

    With x = now.mean + now.std z the earlier z is (x - before.mean) / before.std, so the weight of z is multiplied by
    now.std / before.std, and the rest goes to the weight of the presence. Values beyond five deviations are cut.
    """
    values, present = weight.chunk(2, dim=1)
    ratio = torch.tensor([n["std"] / b["std"] for b, n in zip(before, now, strict=True)])
    shift = torch.tensor([(n["mean"] - b["mean"]) / b["std"] for b, n in zip(before, now, strict=True)])
    return torch.cat([values * ratio.to(values), present + values * shift.to(values)], 1)


def with_warm_options(config: Config, params: WarmStartParams = WARM_START) -> Config:
    """The options with which the towers are trained on; the bundle keeps those that were given."""
    changed: dict[str, Any] = {"tower_epochs": params.epochs, "tower_lr": config.train.tower_lr * params.lr}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changed))
