"""Search spaces over options. Each parameter is one dotted key of `ctxrec.core.config.Config`:

"train.tower_lr" = { low = 1e-3, high = 1e-2, log = true }   a number
"model.layers"   = { low = 1, high = 4, step = 1 }           a whole number
"model.backbone" = { choice = ["transformer", "gru"] }       one of these values
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna.distributions as optuna_distributions
import ray.tune

from ctxrec.core.config import Config, EncoderConfig, IndexConfig, ModelConfig, TrainConfig
from ctxrec.core.errors import UserError
from ctxrec.core.removed_options import refuse_removed

Value = Any  # int, float, str or bool

SECTIONS = {"encoder": EncoderConfig, "model": ModelConfig, "train": TrainConfig, "index": IndexConfig}
# Options that the sweep sets for its trials, or that change how a trial runs and not its result.
_FIXED = (
    "train.workers", "train.cpus_per_worker", "train.gpus_per_worker", "train.use_gpu", "train.refit",
    "train.max_failures", "train.checkpoint_every", "train.eval_every", "train.valid_users", "train.trackers",
)  # fmt: skip
# Options that pbt may change in the middle of a trial: no shape of a weight and no length of a schedule depends on them.
_CHANGEABLE = (
    "train.tower_lr", "train.encoder_lr", "train.encoder_phase_tower_lr", "train.weight_decay",
    "train.negatives", "model.dropout", "model.id_dropout",
    "model.text_dropout",
)  # fmt: skip
_ENCODER_PHASE = (
    "train.encoder_epochs", "train.encoder_lr", "train.encoder_phase_tower_lr", "train.fresh_items", "encoder.tune",
    "encoder.rank", "encoder.alpha", "encoder.top_layers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension of the space: a range from `low` to `high`, both included, or a choice."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choice: tuple[Value, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in sweep.json."""
        if self.choice:
            return {"choice": list(self.choice)}
        step = {} if self.step is None else {"step": self.step}
        return {"low": self.low, "high": self.high, "log": self.log, **step}

    @property
    def is_whole(self) -> bool:
        """Whether the option is a whole number."""
        return _type_of(self.key) is int

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        values = self.choice or (self.low, self.high)
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)

    def check(self, base: Config, *, pbt: bool = False) -> None:
        """Check that all borders or choices are valid values of the option.

        Args:
            base: the options that all trials share.
            pbt: whether the option changes in the middle of a trial.

        Raises:
            UserError: the option cannot be searched, or a value is not valid.
        """
        _check_key(self.key, pbt=pbt)
        if not self.choice:
            self._check_range()
        for value in self.choice or (self.low, self.high):
            with_values(base, {self.key: value}, source="[space]")

    def _check_range(self) -> None:
        kind = _type_of(self.key)
        if kind not in (int, float):
            raise UserError(f"[space] {self.key} is not a number; expected {{choice = [...]}}")
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            allowed = (int,) if kind is int else (int, float)
            if isinstance(value, bool) or (value is not None and not isinstance(value, allowed)):
                what = "a whole number" if kind is int else "a number"
                raise UserError(f"[space] {self.key}: {name} is {value!r}; expected {what}")
        assert self.low is not None and self.high is not None
        if not self.low < self.high:
            raise UserError(f"[space] {self.key}: low is {self.low!r}, high is {self.high!r}; expected low < high")
        if self.step is not None and (self.step <= 0 or self.log):
            raise UserError(f"[space] {self.key}: step is {self.step!r}; expected above 0, and not with log = true")
        if self.log and self.low <= 0:
            raise UserError(f"[space] {self.key}: low is {self.low!r}; expected above 0 with log = true")

    def contains(self, value: Value) -> bool:
        """Whether the value is one of this dimension."""
        if self.choice:
            return value in self.choice
        assert self.low is not None and self.high is not None
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def distribution(self) -> optuna_distributions.BaseDistribution:
        """The dimension in Optuna's terms."""
        if self.choice:
            return optuna_distributions.CategoricalDistribution(self.choice)
        assert self.low is not None and self.high is not None
        if self.is_whole:
            step = int(self.step or 1)
            return optuna_distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return optuna_distributions.FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def domain(self) -> Any:
        """The dimension in Ray Tune's terms, for pbt."""
        if self.choice:
            return ray.tune.choice(list(self.choice))
        assert self.low is not None and self.high is not None
        if self.is_whole:
            low, high = int(self.low), int(self.high)
            return ray.tune.lograndint(low, high + 1) if self.log else ray.tune.randint(low, high + 1)
        return ray.tune.loguniform(self.low, self.high) if self.log else ray.tune.uniform(self.low, self.high)


def parse_space(raw: Any, source: str) -> list[Parameter]:
    """The section [space] as parameters.

    Args:
        raw: what the section holds.
        source: name of the file, for messages.

    Raises:
        UserError: a parameter has an unknown key or a wrong form.
    """
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f'{source}: [space] is {raw!r}; expected lines such as "train.tower_lr" = {{low = .., high = ..}}'
        )
    return [_parse(key, form, source) for key, form in _flat(raw).items()]


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Keys may be quoted ("train.tower_lr" = ...) or dotted (train.tower_lr = ..., which is a table in a table)."""
    flat: dict[str, Any] = {}
    for key, form in raw.items():
        if "." not in key and isinstance(form, dict) and all(isinstance(v, dict) for v in form.values()):
            flat |= {f"{key}.{inner}": value for inner, value in form.items()}
        else:
            flat[key] = form
    return flat


def _parse(key: str, form: Any, source: str) -> Parameter:
    forms = "{low = .., high = .., log = true, step = ..} or {choice = [..]}"
    names = set(form) if isinstance(form, dict) else set()
    is_choice = names == {"choice"} and isinstance(form["choice"], list) and form["choice"]
    is_range = {"low", "high"} <= names <= {"low", "high", "log", "step"} and isinstance(form.get("log", False), bool)
    if not is_choice and not is_range:
        raise UserError(f"{source}: [space] {key} is {form!r}; expected {forms}")
    if is_choice:
        return Parameter(key=key, choice=tuple(form["choice"]))
    return Parameter(key=key, **form)


def _check_key(key: str, *, pbt: bool) -> None:
    section, _, option = key.partition(".")
    if section not in SECTIONS:
        raise UserError(
            f"[space] {key} is not an option that a training depends on; expected one of {_names(SECTIONS)}"
        )
    refuse_removed({section: {option: None}}, source="[space]")
    known = [field.name for field in dataclasses.fields(SECTIONS[section])]
    if option not in known:
        raise UserError(f"[space] unknown key {key!r}; valid keys are {', '.join(f'{section}.{n}' for n in known)}")
    if typing.get_origin(_type_of(key)) is tuple and key not in _FIXED:
        raise UserError(f"[space] {key} is a list, which a sweep cannot search; run one sweep for each list")
    if key in _FIXED:
        raise UserError(f"[space] {key} cannot be searched; set it for all trials by [sweep] or [{section}]")
    if pbt and key not in _CHANGEABLE:
        raise UserError(
            f"[space] {key} cannot change in the middle of a training, as pbt does; expected one of "
            f"{', '.join(_CHANGEABLE)}"
        )


def _names(sections: dict[str, type]) -> str:
    return ", ".join(f"{name}.*" for name in sections)


def _type_of(key: str) -> Any:
    section, _, option = key.partition(".")
    return typing.get_type_hints(SECTIONS[section])[option]


def with_values(base: Config, values: dict[str, Value], *, source: str = "trial") -> Config:
    """`base` with other values of some options.

    Args:
        base: all options.
        values: the other values, by dotted key.
        source: where they come from, for messages.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """
    raw = base.to_dict()
    for key, value in values.items():
        section, _, option = key.partition(".")
        raw[section][option] = value
    return Config.from_dict(raw, source=source)


def value_of(config: Config, key: str) -> Value:
    """The value of the option with this dotted key."""
    section, _, option = key.partition(".")
    return getattr(getattr(config, section), option)


def defaults_inside(base: Config, space: Sequence[Parameter]) -> dict[str, Value] | None:
    """The values of `base` for all dimensions of the space; None if one of them is outside of the space."""
    values = {p.key: value_of(base, p.key) for p in space}
    return values if all(p.contains(values[p.key]) for p in space) else None


def tunes_encoder(space: Sequence[Parameter]) -> bool:
    """Whether the trials need the encoder's phase, because an option of the space matters in that phase alone."""
    return any(p.key in _ENCODER_PHASE for p in space)


def default_space(base: Config, *, pbt: bool = False) -> list[Parameter]:
    """The options that matter most for the towers, in ranges around the defaults. No measurement supports the ranges."""
    rates = [
        Parameter(key="train.tower_lr", low=1e-3, high=1.5e-2, log=True),
        Parameter(key="train.weight_decay", low=1e-3, high=0.1, log=True),
        Parameter(key="model.dropout", low=0.05, high=0.5),
        Parameter(key="model.id_dropout", low=0.0, high=0.6),
        Parameter(key="model.text_dropout", low=0.0, high=0.3),
    ]
    if pbt:
        return rates
    heads = base.model.heads
    widths = tuple(sorted({w for w in (32, 64, 128, base.model.dim) if w % heads == 0}))
    sizes = [
        Parameter(key="train.temperature", low=0.03, high=0.2, log=True),
        Parameter(key="train.global_batch_size", choice=_with((32, 64, 128), base.train.global_batch_size)),
        Parameter(key="model.dim", choice=widths),
        Parameter(key="model.layers", low=1, high=max(3, base.model.layers)),
        Parameter(key="model.history", choice=_with((20, 50, 100), base.model.history)),
    ]
    return [*rates, *sizes]


def _with(values: tuple[int, ...], own: int) -> tuple[int, ...]:
    return tuple(sorted({*values, own}))
