"""The attributes of a user that a request brings along, in the place of those that the model stores for the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.events import Users, widened
from ctxrec.data.item_rows import joined_text
from ctxrec.data.list_texts import value_line
from ctxrec.data.prepared import MAX_VALUES, FeatureMeta
from ctxrec.retrieval.feature_values import category_code, codes_of, number_value

USER = "user"  # how messages name where an attribute stands


class UserReader:
    """Reads attributes of users by the features of a data set."""

    def __init__(self, features: FeatureMeta) -> None:
        self._categories, self._lists = features.user_categories, list(features.user_lists)
        self._codes = {name: codes_of(values) for name, values in features.user_categories.items()}
        self._numbers, self._texts = list(features.user_numbers), list(features.user_texts)

    @property
    def names(self) -> list[str]:
        """Names of the attributes that a request may have."""
        return [*self._codes, *self._numbers, *self._texts]

    def replaced(self, users: Users, given: Sequence[Mapping[str, Any] | None]) -> Users:
        """The users with what the requests say of them; an attribute that a request leaves out stays as it is stored.

        Args:
            users: of N requests, as the model stores them.
            given: N mappings from attributes to values, or None. A value of None says that it is not known. An attribute with
                several values takes a list or one value.

        Raises:
            UserError: an attribute is unknown, or a value has the wrong type; names the attribute.
        """
        asked = [n for n, attributes in enumerate(given) if attributes]
        if not asked:
            return users
        made = users.take(np.arange(len(users.ids)))
        for n in asked:
            for name, value in (given[n] or {}).items():
                if name in self._lists:
                    codes = self._code_list(name, value)
                    made.lists[name] = widened(made.lists[name], len(codes))
                    made.lists[name][n] = schema.MISSING
                    made.lists[name][n, : len(codes)] = codes
                elif name in self._codes:
                    made.cat[name][n] = category_code(USER, name, value, self._codes[name])
                elif name in made.num:
                    made.num[name][n] = number_value(USER, name, value)
                elif name in self._texts:
                    made.text[name][n] = text_value(USER, name, value)
                else:
                    raise UserError(f"unknown user attribute {name!r}; {self._valid()}").at(name)
        return made

    def _code_list(self, name: str, value: Any) -> list[int]:
        """Codes of the known values of a list, or of one value."""
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        if len(values) > MAX_VALUES:
            raise UserError(f"{USER} {name} has {len(values)} values; expected at most {MAX_VALUES}").at(name)
        codes = [category_code(USER, name, one, self._codes[name]) for one in values]
        return [code for code in codes if code != schema.MISSING]

    def check(self, attributes: Mapping[str, Any]) -> None:
        """Raise the `UserError` of `replaced`, if there is one."""
        self.replaced(self.unknown(np.array([None], object)), [attributes])

    def unknown(self, ids: np.ndarray) -> Users:
        """Users of whom no attribute is known; `ids` is object [N]."""
        num = len(ids)
        return Users(
            ids=ids,
            cat={name: np.full(num, schema.MISSING, np.int32) for name in self._codes if name not in self._lists},
            num={name: np.full(num, np.nan, np.float32) for name in self._numbers},
            lists={name: np.full((num, 1), schema.MISSING, np.int32) for name in self._lists},
            text={name: np.full(num, None, object) for name in self._texts},
        )

    def usable(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What can be read of attributes that another version of the model has accepted."""
        if self._is_usable(attributes):  # all of it at once: nearly always so
            return dict(attributes)
        return {name: value for name, value in attributes.items() if self._is_usable({name: value})}

    def _is_usable(self, attributes: Mapping[str, Any]) -> bool:
        try:
            self.check(attributes)
        except UserError:
            return False
        return True

    def told(self, users: Users, row: int) -> dict[str, Any]:
        """The known attributes of a row of users in a user's words; a value outside of the vocabulary is left out."""
        made: dict[str, Any] = {}
        for name, values in self._categories.items():
            codes = (users.lists if name in self._lists else users.cat)[name][row]
            known = [values[code - schema.FIRST_CODE] for code in np.atleast_1d(codes) if code >= schema.FIRST_CODE]
            if known:
                made[name] = known if name in self._lists else known[0]
        numbers = {name: float(users.num[name][row]) for name in self._numbers}
        made |= {name: round(value, 6) for name, value in numbers.items() if math.isfinite(value)}
        return made | {name: text for name in self._texts if (text := users.text[name][row])}

    def unknown_values(self, attributes: Mapping[str, Any]) -> list[str]:
        """Names of the categorical attributes with a value that the model does not know; the attributes can be read."""
        return [
            name
            for name, value in attributes.items()
            if name in self._codes and any(self._is_other(name, one) for one in (value if _is_list(value) else [value]))
        ]

    def _is_other(self, name: str, value: Any) -> bool:
        return category_code(USER, name, value, self._codes[name]) == schema.OTHER

    def _valid(self) -> str:
        return (
            f"valid ones are {', '.join(self.names)}" if self.names else "the data set has none ([users] in its spec)"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def text_value(place: str, name: str, value: Any) -> str | None:
    """A free text as `prepare` reads it from a column of texts or of lists: in one line, None where it is blank.

    Raises:
        UserError: it is no text and no list of texts.
    """
    values = list(value) if _is_list(value) else [value]
    if any(one is not None and not isinstance(one, str) for one in values):
        raise UserError(f"{place} {name} is {value!r}; expected a text").at(name)
    line = value_line(values if _is_list(value) else value)
    text: str | None = joined_text(pa.chunked_array([[line]], pa.string()))[0].as_py()
    return text
