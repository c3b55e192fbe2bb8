"""Where the value of each option comes from, and all options as a `config.toml` whose comments say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctxrec.core.config import Config
from ctxrec.core.toml import read_toml, toml_value

DEFAULT, SET = "default", "--set"
_COMMENT_AT = 44


@dataclass(frozen=True)
class Resolved:
    """What an option that leaves something open comes to.

    Attributes:
        why: what decides, such as "size of the log: 90,570 training events".
        value: what it comes to; None: the option keeps its value, and `why` says what that means.
    """

    why: str
    value: Any = None


def option_origins(
    path: str | None = None, overrides: Sequence[str] = (), *, base: str | None = None
) -> dict[str, str]:
    """Where `load_config` with the same arguments takes each option from, by "section.key".

    Returns:
        "default", the name of a file, or "--set".
    """
    found = {name: DEFAULT for name in names_of(Config())}
    for source in (base, path):
        if source is None:
            continue
        for section, options in read_toml(source).items():
            found |= {f"{section}.{key}": source for key in options if f"{section}.{key}" in found}
    for override in overrides:
        found[override.partition("=")[0].strip()] = SET
    return found


def names_of(config: Config) -> dict[str, Any]:
    """The values of all options by "section.key"."""
    return {f"{s}.{key}": value for s, options in config.to_dict().items() for key, value in options.items()}


def annotated_config(
    config: Config, origins: Mapping[str, str], resolved: Mapping[str, Resolved], *, sections: Collection[str] = ()
) -> str:
    """All options as TOML, each with what it will be and where that comes from.

    What is written can be given to `--config`: it names the values that are used here.

    Args:
        config: the options as they were given.
        origins: where each comes from (`option_origins`).
        resolved: what those come to that leave something open, by "section.key".
        sections: those that are written; empty: all.
    """
    lines: list[str] = []
    for section, options in config.to_dict().items():
        if sections and section not in sections:
            continue
        lines += [""] * bool(lines) + [f"[{section}]"]
        for key, value in options.items():
            name = f"{section}.{key}"
            comment = origins[name]
            if (made := resolved.get(name)) is not None:
                if made.value is not None and made.value != value:
                    comment, value = f"{made.why} ({comment}: {toml_value(value)})", made.value
                else:
                    comment = f"{comment}; {made.why}"
            lines.append(f"{key} = {toml_value(value)}".ljust(_COMMENT_AT - 2) + f"  # {comment}")
    return "\n".join(lines)
