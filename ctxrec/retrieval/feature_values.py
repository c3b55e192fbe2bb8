"""Single values of features as users write them: the code of a category, and a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.parsing import category_text, value_text

MAX_WHOLE = 2**64  # of a value of a category; larger ones have no place in any log's columns


def codes_of(values: Sequence[str]) -> dict[str | None, int]:
    """The code of each value of a categorical feature, by its own text and by that of its one form."""
    numbered = list(enumerate(values, schema.FIRST_CODE))
    return {**{category_text(value): code for code, value in numbered}, **{value: code for code, value in numbered}}


def category_code(place: str, name: str, value: Any, codes: Mapping[str | None, int]) -> int:
    """Code of a value, which may come as the number or truth value that `prepare` read as a string.

    Args:
        place: where the feature stands, for messages, such as "context".
        name: the feature.
        value: a single value; None gives the code for missing ones.
        codes: by value (`codes_of`); any other value has the code for unknown ones.

    Raises:
        UserError: it is no single value, or a whole number of more than 64 bits.
    """
    if value is not None and not isinstance(value, (str, bool, int, float, np.bool_, np.number)):
        raise UserError(f"{place} {name} is {value!r}; expected a single value").at(name)
    if isinstance(value, int) and abs(value) >= MAX_WHOLE:
        found = f"a whole number of {value.bit_length()} bits"
        raise UserError(f"{place} {name} is {found}; expected at most 64 bits").at(name)
    text = value_text(value)
    return schema.MISSING if text is None else codes.get(text, codes.get(category_text(text), schema.OTHER))


def number_value(place: str, name: str, value: Any) -> float:
    """A number; NaN where it is missing or infinite.

    Raises:
        UserError: it is no number, or beyond `MAX_NUMBER`.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise UserError(f"{place} {name} is {value!r}; expected a number").at(name)
    number: Any = value  # numpy's numbers are compared as Python's
    if number in (math.inf, -math.inf):
        return math.nan
    if abs(number) > MAX_NUMBER:
        expected = f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
        raise UserError(f"{place} {name} is too large; expected {expected}").at(name)
    return float(value)
