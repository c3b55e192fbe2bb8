"""All options of ctxrec in one `Config`, and how it is read: a TOML file, then `--set section.key=value` on top.

The options themselves are in `ctxrec.core.training_options` and `ctxrec.core.stage_options`; OPTIONS.md at the root of the
repository lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.core.removed_options import refuse_removed, without_defaults, without_removed
from ctxrec.core.stage_options import DiversityConfig, EvaluateConfig, IndexConfig, PrepareConfig, RerankConfig
from ctxrec.core.toml import build_dataclass, parse_value, read_toml, toml_value
from ctxrec.core.training_options import BACKBONES, SOURCES, EncoderConfig, ModelConfig, TrainConfig

__all__ = [
    "BACKBONES",
    "SOURCES",
    "Config",
    "DiversityConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "IndexConfig",
    "ModelConfig",
    "PrepareConfig",
    "RerankConfig",
    "TrainConfig",
    "config_with",
    "load_config",
    "to_toml",
]

# What `train.tower_epochs = 0` means: as many epochs as read so many events, within these bounds. On large logs more epochs
# did not help (Online Retail: validation NDCG@10 is .069 after two epochs of six, and .071 at the end).
_EVENTS_READ, _FEWEST_EPOCHS, _MOST_EPOCHS = 1_500_000, 4, 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All options. A run saves them whole in its `config.toml`."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    diversity: DiversityConfig = field(default_factory=DiversityConfig)

    def for_events(self, num_events: int) -> Config:
        """The options for a log with so many training events: `train.tower_epochs = 0` becomes a number."""
        if self.train.tower_epochs:
            return self
        epochs = min(max(round(_EVENTS_READ / max(num_events, 1)), _FEWEST_EPOCHS), _MOST_EPOCHS)
        return dataclasses.replace(self, train=dataclasses.replace(self.train, tower_epochs=epochs))

    def to_dict(self) -> dict[str, Any]:
        """Plain values by section and key."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any], *, source: str = "config") -> Config:
        """Options from plain values by section and key; those that are left out have their defaults.

        Args:
            raw: values by section and key.
            source: where they come from, for messages.

        Raises:
            UserError: an option is unknown, was removed, or has a value of the wrong type or out of range.
        """
        refuse_removed(raw, source=source)
        return build_dataclass(Config, raw, source=source)


def load_config(path: str | None = None, overrides: Sequence[str] = (), *, base: str | None = None) -> Config:
    """Read a config file (none: defaults) and apply `section.key=value` overrides in order.

    Args:
        path: a file that a user wrote.
        overrides: their values are TOML (`0.1`, `true`, `["tensorboard"]`); a value that is not TOML is a string.
        base: a `config.toml` that ctxrec wrote (of a run or a bundle), where options that `path` leaves out come from.
            Options that were removed since are dropped; a warning names those that were not at their default.

    Raises:
        UserError: an option is unknown, was removed, or has a value of the wrong type or out of range.
    """
    raw = without_removed(read_toml(base), source=base) if base is not None else {}
    given = without_defaults(read_toml(path)) if path is not None else {}
    for section, options in given.items():
        both = isinstance(options, dict) and isinstance(raw.get(section), dict)
        raw[section] = raw[section] | options if both else options
    return config_with(raw, overrides, source=path or "--set")


def config_with(raw: dict[str, Any], overrides: Sequence[str], *, source: str) -> Config:
    """The options of a file's content with `section.key=value` overrides on top.

    Args:
        raw: values by section and key; it is changed.
        overrides: as of `load_config`.
        source: where `raw` comes from, for messages.

    Raises:
        UserError: an override has another form, or `Config.from_dict` raises it.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.strip().split(".")
        if not separator or len(parts) != 2 or not all(parts):
            raise UserError(f"--set {override!r} has the wrong form; expected section.key=value")
        section = raw.setdefault(parts[0], {})
        if not isinstance(section, dict):
            raise UserError(f"{parts[0]} is {section!r}; expected a section of options")
        section[parts[1]] = parse_value(text.strip())
    return Config.from_dict(raw, source=source)


def to_toml(config: Config) -> str:
    """`config` as TOML, complete, section by section."""
    lines = []
    for section, options in config.to_dict().items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in options.items()]
        lines.append("")
    return "\n".join(lines)
