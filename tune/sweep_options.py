"""Options of a sweep: SWEEP.toml is an options file of `ctxrec.train` with two more sections, [sweep] and [space]."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxrec.core import storage
from ctxrec.core.config import Config, config_with
from ctxrec.core.errors import UserError
from ctxrec.core.toml import build_dataclass, parse_value
from tune.space import Parameter, default_space, parse_space, tunes_encoder

METRIC = "valid_ndcg@10"
METRICS = (METRIC, "seconds", "epoch")  # what a trial reports; numeric options of the space may be metrics too


def _require(condition: bool, key: str, found: Any, expected: str) -> None:
    if not condition:
        raise UserError(f"{key} is {found!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityConfig:
    """Cheap trials first: all of them on a share of the users, the best again on all of the data.

    users: share of the users that the cheap trials see; 1 = all.
    history: events of the history that the cheap trials read, at most; 0 = as the options say.
    promote: share of the trials that is run again in full, the best ones, at least one.
    """

    users: float = 1.0
    history: int = 0
    promote: float = 0.25

    def __post_init__(self) -> None:
        _require(0 < self.users <= 1, "sweep.fidelity.users", self.users, "a share above 0, up to 1")
        _require(self.history >= 0, "sweep.fidelity.history", self.history, "0 (as the options say) or more")
        _require(0 < self.promote <= 1, "sweep.fidelity.promote", self.promote, "a share above 0, up to 1")

    @property
    def used(self) -> bool:
        return self.users < 1 or self.history > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """`tune.sweep`.

    trials: configurations to try (population of pbt).
    max_hours, max_gpu_hours: the sweep ends when it has taken so long, over all its starts; 0 = no limit.
    concurrent: trials at a time; 0 = as many as the cluster has room for.
    workers, cpus, gpus: Ray Train workers of a trial, and what each of them holds; gpus = 0.25 lets four trials share
        a GPU, 0 takes a whole one where the cluster has GPUs and train.use_gpu allows.
    search: random; tpe (Optuna's tree-structured Parzen estimator); bohb (tpe inside HyperBand's brackets); pbt
        (population-based training: bad trials go on from the weights of good ones with changed options).
    scheduler: what stops bad trials early: asha, hyperband (asha with several grace periods), median, none; auto
        takes asha, and hyperband for bohb. No trial is stopped in its first `grace` epochs; asha leaves one in
        `reduction` trials at each rung. pbt compares every `grace` epochs.
    metric, mode: what is optimised, and "max" or "min"; several of each: the Pareto front is sought, without
        early stopping, and the best of the first metric becomes best.toml.
    default_first: the first trial has the options as they are, so that the best is never worse than these.
    final: train the best configuration to the end as `ctxrec.train` would, refit and encoder phase included.
    retries: a failed trial starts again so often, from its last checkpoint.
    """

    trials: int = 16
    max_hours: float = 0.0
    max_gpu_hours: float = 0.0
    concurrent: int = 0
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    search: Literal["random", "tpe", "bohb", "pbt"] = "tpe"
    scheduler: Literal["auto", "asha", "hyperband", "median", "none"] = "auto"
    grace: int = 1
    reduction: int = 3
    metric: tuple[str, ...] = (METRIC,)
    mode: tuple[Literal["max", "min"], ...] = ("max",)
    default_first: bool = True
    final: bool = True
    retries: int = 1
    seed: int = 0
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)

    def __post_init__(self) -> None:
        for key in ("trials", "workers", "grace"):
            _require(getattr(self, key) >= 1, f"sweep.{key}", getattr(self, key), "at least 1")
        for key in ("max_hours", "max_gpu_hours", "concurrent", "gpus", "retries", "seed"):
            _require(getattr(self, key) >= 0, f"sweep.{key}", getattr(self, key), "0 or more")
        _require(
            self.gpus <= 1 or self.gpus == int(self.gpus), "sweep.gpus", self.gpus, "a part of 1, or a whole number"
        )
        _require(self.cpus > 0, "sweep.cpus", self.cpus, "above 0")
        _require(self.reduction >= 2, "sweep.reduction", self.reduction, "at least 2")
        _require(len(set(self.metric)) == len(self.metric) >= 1, "sweep.metric", self.metric, "one or more, different")
        expected = f"one for each of sweep.metric ({len(self.metric)})"
        _require(len(self.mode) == len(self.metric), "sweep.mode", self.mode, expected)
        several = len(self.metric) > 1
        if several and (self.search not in ("random", "tpe") or self.scheduler not in ("auto", "none")):
            raise UserError(
                f"sweep.metric has {len(self.metric)} metrics; expected search = random or tpe and no scheduler: "
                "a trial can be stopped early by one metric alone"
            )
        if self.search == "pbt":
            _require(self.trials >= 2, "sweep.trials", self.trials, "at least 2, the population of pbt")
            _require(self.scheduler == "auto", "sweep.scheduler", self.scheduler, "auto: pbt is a scheduler itself")
            _require(not self.fidelity.used, "sweep.fidelity", "used", "no fidelity with pbt")

    @property
    def stops_by(self) -> str:
        """The scheduler that is used."""
        if self.search == "pbt":
            return "pbt"
        if self.scheduler != "auto":
            return self.scheduler
        if len(self.metric) > 1:
            return "none"
        return "hyperband" if self.search == "bohb" else "asha"


@dataclass(frozen=True)
class Sweep:
    """A whole sweep: its options, the space, and the options that all trials share."""

    options: SweepConfig
    space: tuple[Parameter, ...]
    base: Config

    def epochs_of(self, values: dict[str, Any]) -> int:
        """Epochs of a trial that runs to the end; the encoder's are part of it where the space needs them."""
        names = ["tower_epochs"] + ["encoder_epochs"] * tunes_encoder(self.space)
        return sum(values.get(f"train.{name}", getattr(self.base.train, name)) for name in names)

    def to_dict(self) -> dict[str, Any]:
        space = {p.key: p.to_dict() for p in self.space}
        return {"sweep": dataclasses.asdict(self.options), "space": space, **self.base.to_dict()}


def load_sweep(path: str | None, overrides: Sequence[str] = ()) -> Sweep:
    """Read a SWEEP.toml (none: defaults) and apply `section.key=value` overrides; `sweep.key=value` too.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range, also at the borders of the space.
    """
    source = path or "--set"
    raw = _read(path) if path is not None else {}
    section, space = raw.pop("sweep", {}), raw.pop("space", None)
    for override in overrides:
        key, separator, text = override.partition("=")
        if key.strip().startswith("sweep.") and separator and isinstance(section, dict):
            _set(section, key.strip().split(".")[1:], parse_value(text.strip()))
    rest = [o for o in overrides if not o.strip().startswith("sweep.")]
    for key in ("metric", "mode"):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = [section[key]]
    options = build_dataclass(SweepConfig, section, source=source, prefix="sweep.")
    base = config_with(raw, rest, source=source)
    parameters = default_space(base, pbt=options.search == "pbt") if space is None else parse_space(space, source)
    for parameter in parameters:
        parameter.check(base, pbt=options.search == "pbt")
    _check_metrics(options, parameters)
    return Sweep(options=options, space=tuple(parameters), base=base)


def _check_metrics(options: SweepConfig, space: Sequence[Parameter]) -> None:
    numeric = [p.key for p in space if p.is_numeric]
    for metric in options.metric:
        expected = f"one of {', '.join((*METRICS, *numeric))} (numeric options of the space count)"
        _require(metric in METRICS or metric in numeric, "sweep.metric", metric, expected)


def _set(section: dict[str, Any], way: Sequence[str], value: Any) -> None:
    for name in way[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"sweep.{name} is {section!r}; expected a section of options")
    section[way[-1]] = value


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(storage.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
