"""Options of a sweep: SWEEP.toml is an options file of `ctxrec.train` with two more sections, [sweep] and [space]."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ctxrec.core import storage
from ctxrec.core.config import Config, config_with
from ctxrec.core.errors import UserError, require
from ctxrec.core.toml import build_dataclass, parse_value
from tune.space import Parameter, default_space, parse_space, tunes_encoder

METRIC = "valid_ndcg@10"
METRICS = (METRIC, "seconds", "epoch")  # what a trial reports; a numeric option of the space may be a metric too


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityConfig:
    """Cheap trials first: all configurations run on less data, and the best ones run again on all of it.

    Attributes:
        users: Share of the users that the cheap trials see. 1 means all users.
        history: Events of the history that the cheap trials read, at most. 0 means `model.history`.
        promote: Share of the trials, the best ones, that run again in full. At least one trial does.
    """

    users: float = 1.0
    history: int = 0
    promote: float = 0.25

    def __post_init__(self) -> None:
        require(0 < self.users <= 1, "sweep.fidelity.users", self.users, "a share above 0, up to 1")
        require(self.history >= 0, "sweep.fidelity.history", self.history, "0 (as the options say) or more")
        require(0 < self.promote <= 1, "sweep.fidelity.promote", self.promote, "a share above 0, up to 1")

    @property
    def used(self) -> bool:
        """Whether there are cheap trials."""
        return self.users < 1 or self.history > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """The section [sweep] of SWEEP.toml.

    Attributes:
        trials: Configurations to try. With `pbt` it is the size of the population.
        max_hours, max_gpu_hours: The sweep ends after this time, summed over all its starts. 0 means no limit.
        concurrent: Trials at a time. 0 means as many as the cluster has room for.
        workers: Ray Train workers of a trial; with 0 a trial trains in its own process, which starts sooner.
        cpus, gpus: CPUs and GPUs of each worker. With gpus = 0.25 four trials share a GPU. 0 takes a whole GPU if the
            cluster has some and `train.use_gpu` allows it.
        search: `random`; `tpe`, Optuna's tree-structured Parzen estimator; `bohb`, the same inside HyperBand's brackets;
            `pbt`, population-based training: bad trials go on from the weights of good ones with changed options.
        scheduler: What stops bad trials early: `asha`, `hyperband` (asha with several grace periods), `median` or `none`.
            `auto` takes `asha`, and `hyperband` for `bohb`.
        grace: No trial is stopped in its first `grace` epochs. `pbt` compares trials every `grace` epochs.
        reduction: `asha` keeps one trial in `reduction` at each rung.
        metric, mode: What is optimised, and "max" or "min". With several of each, the sweep searches the Pareto front
            without early stopping, and the best of the first metric becomes best.toml.
        default_first: The first trial has the options as they are, so that the best is never worse than they are.
        final: Trains the best configuration to the end as `ctxrec.train` does, with encoder phase and refit.
        retries: How often a failed trial starts again from its last checkpoint.
        seed: Seed of the search.
        fidelity: Cheap trials first.
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

    @property
    def processes(self) -> int:
        """Processes that hold the CPUs and GPUs of a trial: its workers, or itself where it has none."""
        return max(self.workers, 1)

    def __post_init__(self) -> None:
        require(self.workers >= 0, "sweep.workers", self.workers, "0 or more")
        for key in ("trials", "grace"):
            require(getattr(self, key) >= 1, f"sweep.{key}", getattr(self, key), "at least 1")
        for key in ("max_hours", "max_gpu_hours", "concurrent", "gpus", "retries", "seed"):
            require(getattr(self, key) >= 0, f"sweep.{key}", getattr(self, key), "0 or more")
        require(
            self.gpus <= 1 or self.gpus == int(self.gpus), "sweep.gpus", self.gpus, "a part of 1, or a whole number"
        )
        require(self.cpus > 0, "sweep.cpus", self.cpus, "above 0")
        require(self.reduction >= 2, "sweep.reduction", self.reduction, "at least 2")
        require(len(set(self.metric)) == len(self.metric) >= 1, "sweep.metric", self.metric, "one or more, different")
        expected = f"one for each of sweep.metric ({len(self.metric)})"
        require(len(self.mode) == len(self.metric), "sweep.mode", self.mode, expected)
        several = len(self.metric) > 1
        if several and (self.search not in ("random", "tpe") or self.scheduler not in ("auto", "none")):
            raise UserError(
                f"sweep.metric has {len(self.metric)} metrics; expected search = random or tpe and no scheduler: "
                "a trial can be stopped early by one metric alone"
            )
        if self.search == "pbt":
            require(self.trials >= 2, "sweep.trials", self.trials, "at least 2, the population of pbt")
            require(
                self.scheduler == "auto", "sweep.scheduler", self.scheduler, "auto, because pbt is a scheduler itself"
            )
            require(not self.fidelity.used, "sweep.fidelity", "used", "no fidelity together with search = pbt")

    @property
    def stops_by(self) -> str:
        """The scheduler that is used: `asha`, `hyperband`, `median`, `pbt` or `none`."""
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
        """Epochs of a trial that runs to the end, with those of the encoder's phase if the space needs it."""
        names = ["tower_epochs"] + ["encoder_epochs"] * tunes_encoder(self.space)
        own = {"tower_epochs": self.base.train.tower_epochs, "encoder_epochs": self.base.train.most_encoder_epochs}
        return sum(values.get(f"train.{name}", own[name]) for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in sweep.json."""
        space = {p.key: p.to_dict() for p in self.space}
        return {"sweep": dataclasses.asdict(self.options), "space": space, **self.base.to_dict()}


def load_sweep(path: str | None, overrides: Sequence[str] = ()) -> Sweep:
    """Read a SWEEP.toml and apply `section.key=value` overrides, `sweep.key=value` included.

    Args:
        path: the file; None takes the defaults.
        overrides: as of `ctxrec.core.config.load_config`.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range, also at the borders of the space.
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
        require(metric in METRICS or metric in numeric, "sweep.metric", metric, expected)


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
