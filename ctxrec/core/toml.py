"""TOML to frozen dataclasses and back: every key and type is checked, and a mistake names what is valid."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import tomllib
import types
import typing
from typing import Any, Literal

from ctxrec.core import storage
from ctxrec.core.errors import UserError


def read_toml(path: str) -> dict[str, Any]:
    """The content of a TOML file, path or URI.

    Raises:
        UserError: no file lies there, or it is no TOML.
    """
    text = storage.read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets without end
        found = re.search(r"line (\d+)", str(error))
        line = text.splitlines()[int(found[1]) - 1].strip()[:80] if found else ""
        raise UserError(f"{path} is not valid TOML: {error}{f': {line}' if line else ''}") from error


def parse_value(text: str) -> Any:
    """The value of an override `key=value`: it is read as TOML, and as plain text where it is no TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_value(value: Any) -> str:
    """A value in TOML's spelling."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)  # JSON's escapes are TOML's too, except surrogate pairs
        return text.replace("\x7f", "\\u007f")  # which JSON allows
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


def build_dataclass(cls: type, raw: dict[str, Any], *, source: str, prefix: str = "") -> Any:
    """Make a (nested, frozen) dataclass from plain dictionaries, checking every key and type.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} is {raw!r}; expected a section of keys")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise UserError(f"{source}: unknown key {prefix + key!r}; valid keys are {', '.join(known)}")
    values = {key: _convert(hints[key], value, source, prefix + key) for key, value in raw.items()}
    missing = [
        name
        for name, f in known.items()
        if name not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{source}: missing {', '.join(prefix + name for name in missing)}; this key is required")
    return cls(**values)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    def wrong(expected: str) -> UserError:
        return UserError(f"{source}: {key} is {value!r}; expected {expected}")

    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        is_list = isinstance(value, (list, tuple))
        words = [word for a in args if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        if words and value in words:
            return value
        kinds = sorted(
            (a for a in args if a is not type(None) and typing.get_origin(a) is not Literal),
            key=lambda a: is_list != (typing.get_origin(a) is tuple),
        )
        try:
            return _convert(kinds[0], value, source, key)
        except UserError as error:
            if words:
                raise UserError(f"{error}, or {' or '.join(words)}") from None
            if is_list or len(kinds) == 1:
                raise
            raise UserError(f"{error}, or a list of them, such as [1, 2]") from None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, source=source, prefix=key + ".")
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise wrong("one of " + ", ".join(map(str, args)))
        return value
    if origin in (tuple, list):
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise wrong("a list")
        return origin(_convert(args[0], v, source, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("a section of keys")
        return {k: _convert(args[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        names[datetime.date] = "a date or a time, such as 2026-10-01T08:00:00Z"
        raise wrong(names.get(hint, str(hint)))
    return value
