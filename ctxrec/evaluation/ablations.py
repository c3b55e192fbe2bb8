"""Trainings that an evaluation compares the model with: the same run without one source, and SASRec."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths

logger = logging.getLogger(__name__)

SASREC = "sasrec"

# The sources that each ablation takes away from those of the run; the other options stay.
WITHOUT: dict[str, tuple[str, ...]] = {
    "text_only": ("id", "features", "media", "memory"),
    "id_only": ("text", "features", "media"),
    "no_context": ("context",),
}
FROZEN = "frozen_encoder"  # the run with `encoder.tune = freeze`

# SASRec (Kang and McAuley, 2018) with full cross-entropy, which lifts it above its published figures (Klenitskiy and
# Vasilev, 2023, https://arxiv.org/abs/2309.07602): IDs alone, two pre-norm blocks of 64 with two heads. Every option
# that its result depends on is here, so that a change of the model's defaults does not move the baseline.
SASREC_OPTIONS: dict[str, Any] = {
    "encoder.name": "",
    "model.dim": 64,
    "model.content_dim": 0,
    "model.backbone": "transformer",
    "model.backbone_rank": 8,
    "model.action_heads": False,
    "model.layers": 2,
    "model.heads": 2,
    "model.dropout": 0.3,
    "model.history": 50,
    "model.id_buckets": 0,
    "model.id_dropout": 0.0,
    "model.text_dropout": 0.0,
    "model.sources": ("id",),
    "train.preset": "full",
    "train.global_batch_size": 64,
    "train.tower_epochs": 60,
    "train.encoder_epochs": 0,
    "train.tower_lr": 2e-3,
    "train.weight_decay": 0.01,
    "train.warmup": 0.05,
    "train.loss": "auto",
    "train.temperature": 0.07,
    "train.negatives": 1024,
    "train.refit": True,
    "train.eval_every": 0,
    "train.patience": 10,
}
NAMES = (*WITHOUT, FROZEN, SASREC)


def parse_names(text: str) -> tuple[str, ...]:
    """Names from a command line: "" gives none, "all" gives all.

    >>> parse_names("id_only, sasrec"), parse_names("")
    (('id_only', 'sasrec'), ())

    Raises:
        UserError: a name is unknown; the message lists the valid ones.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("all",):
        return NAMES
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown ablation {name!r}; expected some of {', '.join(NAMES)}, or all")
    return names


def parse_runs(given: Sequence[str]) -> dict[str, str]:
    """Other runs to compare with, by the names that a command line gives them.

    >>> parse_runs(["quick=runs/a", "last week=s3://b/run"])
    {'quick': 'runs/a', 'last week': 's3://b/run'}

    Raises:
        UserError: a text is not of the form NAME=RUN, or a name comes twice.
    """
    runs: dict[str, str] = {}
    for text in given:
        name, equals, run = (part.strip() for part in text.partition("="))
        if not (name and equals and run) or name in runs:
            raise UserError(
                f"--compare is {text!r}; expected NAME=RUN, such as quick=runs/quick, with a name of its own"
            )
        runs[name] = run
    return runs


def ablated(config: Config, name: str) -> Config:
    """The options of a run's ablation.

    Raises:
        UserError: the run has no source that the ablation keeps, such as a text for `text_only`, or has no towers.
    """
    if config.train.preset == "quick" and name != SASREC:
        raise UserError(
            f"the ablation {name} takes a source away from the towers, and the run has train.preset = 'quick' and no "
            "towers; train the run with train.preset = 'full' first"
        )
    return _changed(config, _changes(config, name))


def _changes(config: Config, name: str) -> dict[str, Any]:
    if name == SASREC:
        return SASREC_OPTIONS
    if name == FROZEN:
        return {"encoder.tune": "freeze"}
    return {"model.sources": tuple(source for source in config.model.sources if source not in WITHOUT[name])}


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, option = key.partition(".")
        sections.setdefault(section, {})[option] = value
    replaced = {name: dataclasses.replace(getattr(config, name), **options) for name, options in sections.items()}
    return dataclasses.replace(config, **replaced)


def train_ablations(run: str, data: str, names: Sequence[str]) -> dict[str, str]:
    """Bundles of a run's ablations by name; missing ones are trained into RUN/ablations/NAME.

    Args:
        run: a finished run.
        data: its prepared data.
        names: some of NAMES.
    """
    from ctxrec.training.driver import train

    bundles = {}
    for name in names:
        out = RunPaths(run).ablation(name).root
        logger.info("ablation %s: %s", name, out)
        config = ablated(load_config(base=RunPaths(run).config), name)
        bundles[name] = RunPaths(train(data, out, config)).bundle
    return bundles
