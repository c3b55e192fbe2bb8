"""Write OPTIONS.md from the options in `ctxrec.core`: `make options`, or `python tests/options_page.py`.

The text of an option is its entry under "Attributes:" in the docstring of its dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from ctxrec.core.config import Config
from ctxrec.core.toml import toml_value

PAGE = Path(__file__).resolve().parents[1] / "OPTIONS.md"
HEAD = """# Options

Every command that reads options takes `--config FILE.toml`, with a table for each section below, and `--set section.key=value`, which may be
given many times. The options of a run are saved whole in its `config.toml`. `--print-effective` of `ctxrec train`, `evaluate` and
`recommend` shows every option as it would be used, and where its value comes from. The options of a sweep are in [tune/README.md](tune/README.md), the arguments of the service in [serve/README.md](serve/README.md). `make options`
writes this page.
"""
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_ENTRY = re.compile(r"^    (\w+): ")


def sections() -> dict[str, type]:
    """The dataclass of each section, in the order of `Config`."""
    hints = typing.get_type_hints(Config)
    return {field.name: hints[field.name] for field in dataclasses.fields(Config)}


def meanings(section: type) -> tuple[str, dict[str, str]]:
    """What the docstring of a section says: of the section, and of each option by key."""
    about, _, rest = inspect.cleandoc(section.__doc__ or "").partition("\n\nAttributes:\n")
    found: dict[str, str] = {}
    key = ""
    for line in rest.splitlines():
        if match := _ENTRY.match(line):
            key = match[1]
            found[key] = line[match.end() :]
        else:
            found[key] += " " + line.strip()
    return " ".join(about.split()), found


def describe_type(hint: Any) -> str:
    """A type in words: "whole number", "one of `a`, `b`", "list of numbers"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " * (len(args) > 1) + ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        inner = describe_type(args[0])
        return f"list of {inner.removeprefix('one of ')}" if inner.startswith("one of ") else f"list of {inner}s"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(describe_type, args))
    if origin is dict:
        return f"table of {describe_type(args[1])}s"
    return _PLAIN[hint]


def page() -> str:
    """The content of OPTIONS.md."""
    parts = [HEAD]
    for name, section in sections().items():
        about, texts = meanings(section)
        parts.append(f"## [{name}]\n\n{about}\n")
        rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        hints, defaults = typing.get_type_hints(section), section()
        for field in dataclasses.fields(section):
            default = toml_value(getattr(defaults, field.name))
            rows.append(f"| `{field.name}` | {describe_type(hints[field.name])} | `{default}` | {texts[field.name]} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name}: {sum(len(dataclasses.fields(section)) for section in sections().values())} options")
