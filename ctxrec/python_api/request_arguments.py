"""The arguments of a request in Python, checked as the HTTP call checks its body: what has no meaning is refused."""

from __future__ import annotations

import decimal
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.parsing import value_text
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.raw_request import RawEvent

Id = str | int
_EVENT_KEYS = ("item_id", "action", "timestamp", "context", "value")
_RULE_KEYS = ("any", "none", "min", "max")


def id_text(value: Any, what: str = "an id") -> str:
    """An id as the log's ids are read: a whole number as text.

    Raises:
        UserError: it is missing, or no single value.
    """
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    single = isinstance(value, str) or not isinstance(value, (bytes, Iterable))
    text = None if not single or pd.isna(value) else value_text(value)
    if text is None:
        kind = "a text that is not blank" if isinstance(value, str) else "a text"
        raise UserError(f"{what} is {value!r}; expected {kind} or a whole number")
    return text


def id_texts(values: Any, what: str) -> list[str]:
    """Several ids, as a list or a column has them.

    Raises:
        UserError: it is one id or a table, or one of its values is no id.
    """
    return [id_text(value) for value in _listed(values, what, "a list of ids")]


def users_of(user: Any, *, has_history: bool) -> tuple[list[str | None], bool]:
    """Whom lists are for, and whether several are asked for, which one user in a list is too.

    Raises:
        UserError: nobody asks, or a value is no id.
    """
    several = isinstance(user, Iterable) and not isinstance(user, str)
    users = _listed(user, "user", "an id or a list of ids") if several else [user]
    made = [None if name is None else id_text(name) for name in users]
    if None in made and not has_history:
        raise UserError("neither a user nor a history is given; expected one of them")
    return made, several


def whole_number(value: Any, what: str) -> int:
    """A number of items.

    Raises:
        UserError: it is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UserError(f"{what} is {value!r}; expected a whole number of at least 1")
    if value < 1:
        raise UserError(f"{what} is {value}; expected at least 1")
    return int(value)


def strength_of(diversity: Any) -> float | None:
    """The strength of MMR; None is that of the options.

    Raises:
        UserError: it is no number from 0 to 1.
    """
    if diversity is None:
        return None
    number = _number(diversity, "diversity", "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise UserError(f"diversity is {diversity!r}; expected a number from 0 to 1")
    return number


def truth_of(value: Any, what: str) -> bool | None:
    """True, False or None, where it is not said.

    Raises:
        UserError: it is something else.
    """
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{what} is {value!r}; expected True or False")
    return None if value is None else bool(value)


def context_of(context: Any) -> dict[str, Any]:
    """A context as a dictionary; which keys and values it may have, the model knows.

    Raises:
        UserError: it is no mapping.
    """
    if context is not None and not isinstance(context, Mapping):
        raise UserError(f"context is {context!r}; expected a mapping from names of features to values")
    return dict(context or {})


def attributes_of(user_attributes: Any) -> dict[str, Any]:
    """Attributes of a user as a dictionary; which names and values they may have, the model knows.

    Raises:
        UserError: it is no mapping.
    """
    if user_attributes is not None and not isinstance(user_attributes, Mapping):
        raise UserError(
            f"user_attributes is {user_attributes!r}; expected a mapping from columns of the users to values"
        )
    return dict(user_attributes or {})


def events_of(history: Any) -> list[RawEvent] | None:
    """The events of a history, oldest first; None where none is given.

    Raises:
        UserError: it is no list, or an entry is neither an id nor an event.
    """
    if history is None:
        return None
    return [_event(entry) for entry in _listed(history, "history", "a list of item ids or events, oldest first")]


def filter_rules(filter: Any) -> dict[str, ColumnRule]:
    """Rules by item column.

    Raises:
        UserError: it is no mapping, or a rule has no meaning; names the column.
    """
    if filter is not None and not isinstance(filter, Mapping):
        raise UserError(f"filter is {filter!r}; expected a mapping from columns of the items to rules")
    return {column: _rule(column, rule) for column, rule in (filter or {}).items()}


def _listed(values: Any, what: str, expected: str) -> list[Any]:
    """The values of a list or a column. A text would be a list of its letters, and a table one of its columns."""
    is_table = hasattr(values, "columns")
    if isinstance(values, (str, bytes, Mapping)) or is_table or not isinstance(values, Iterable):
        found = f"a {type(values).__name__}" if is_table else repr(values)
        raise UserError(f"{what} is {found}; expected {expected}")
    return [value.as_py() if isinstance(value, pa.Scalar) else value for value in values]


def _event(entry: Any) -> RawEvent:
    if not isinstance(entry, Mapping):
        return RawEvent(id_text(entry))
    unknown = set(entry) - set(_EVENT_KEYS)
    if unknown or "item_id" not in entry:
        raise UserError(
            f"an event of the history has the keys {', '.join(map(str, entry))}; expected item_id and, where they are "
            "known, action, timestamp, context and value"
        )
    action = entry.get("action")
    is_blank = isinstance(action, str) and not action.strip()  # it says nothing, and a warning says so, as over HTTP
    return RawEvent(
        id_text(entry["item_id"], "item_id of an event of the history"),
        action if action is None or is_blank else id_text(action, "action of an event of the history"),
        entry.get("timestamp"),
        context_of(entry.get("context")),
        _event_value(entry.get("value")),
    )


def _event_value(value: Any) -> float | None:
    """The value of an event; NaN, as a column with gaps has it, is none."""
    if value is None:
        return None
    if isinstance(value, (bool, str)) or not isinstance(value, numbers.Real):
        raise UserError(f"value of an event of the history is {value!r}; expected a number, as in the log")
    try:
        number = float(value)
    except OverflowError:  # a whole number of very many digits
        number = math.inf
    if abs(number) > MAX_NUMBER:
        raise UserError(f"value of an event of the history is {value!r}; expected a number within {MAX_NUMBER:g}")
    return None if math.isnan(number) else number


def _rule(column: str, rule: Any) -> ColumnRule:
    expected = f"a list of values, or a mapping with {', '.join(_RULE_KEYS)}"
    if not isinstance(rule, Mapping):
        return ColumnRule(any=_values(rule, f"the filter of {column}", expected))
    if unknown := set(rule) - set(_RULE_KEYS):
        raise UserError(
            f"the filter of {column} has {sorted(unknown, key=str)[0]!r}; expected some of {', '.join(_RULE_KEYS)}"
        )
    parts: dict[str, Any] = {key: value for key, value in rule.items() if value is not None}
    if not parts:
        raise UserError(f"the filter of {column} is {rule!r}, which lets everything pass; expected {expected}")
    for key, value in parts.items():
        what = f"{key} of the filter of {column}"
        parts[key] = _values(value, what, "a list of values") if key in ("any", "none") else _number(value, what)
    return ColumnRule(**parts)


def _values(values: Sequence[Any], what: str, expected: str) -> list[str]:
    return [id_text(value, f"a value of {what}") for value in _listed(values, what, expected)]


def _number(value: Any, what: str, expected: str = f"a number within {MAX_NUMBER:g}") -> float:
    is_number = isinstance(value, (int, float, np.integer, np.floating, decimal.Decimal)) and not isinstance(
        value, bool
    )
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # a whole number of very many digits
        number = math.inf
    if not abs(number) <= MAX_NUMBER:
        raise UserError(f"{what} is {value!r}; expected {expected}")
    return number
