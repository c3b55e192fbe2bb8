"""The attributes of a user that a request brings along, in the place of those that the model stores for the user."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.events import Users
from ctxrec.data.prepared import FeatureMeta
from ctxrec.retrieval.feature_values import category_code, codes_of, number_value

USER = "user"  # how messages name where an attribute stands


class UserReader:
    """Reads attributes of users by the features of a data set."""

    def __init__(self, features: FeatureMeta) -> None:
        self._categories = features.user_categories
        self._codes = {name: codes_of(values) for name, values in features.user_categories.items()}
        self._numbers = list(features.user_numbers)

    @property
    def names(self) -> list[str]:
        """Names of the attributes that a request may have."""
        return [*self._codes, *self._numbers]

    def replaced(self, users: Users, given: Sequence[Mapping[str, Any] | None]) -> Users:
        """The users with what the requests say of them; an attribute that a request leaves out stays as it is stored.

        Args:
            users: of N requests, as the model stores them.
            given: N mappings from attributes to values, or None. A value of None says that it is not known.

        Raises:
            UserError: an attribute is unknown, or a value has the wrong type; names the attribute.
        """
        asked = [n for n, attributes in enumerate(given) if attributes]
        if not asked:
            return users
        cat = {name: codes.copy() for name, codes in users.cat.items()}
        num = {name: values.copy() for name, values in users.num.items()}
        for n in asked:
            for name, value in (given[n] or {}).items():
                if name in self._codes:
                    cat[name][n] = category_code(USER, name, value, self._codes[name])
                elif name in num:
                    num[name][n] = number_value(USER, name, value)
                else:
                    raise UserError(f"unknown user attribute {name!r}; {self._valid()}").at(name)
        return dataclasses.replace(users, cat=cat, num=num)

    def check(self, attributes: Mapping[str, Any]) -> None:
        """Raise the `UserError` of `replaced`, if there is one."""
        none = Users(
            ids=np.array([None], object),
            cat={name: np.full(1, schema.MISSING, np.int32) for name in self._codes},
            num={name: np.full(1, np.nan, np.float32) for name in self._numbers},
        )
        self.replaced(none, [attributes])

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
        codes = {name: int(users.cat[name][row]) - schema.FIRST_CODE for name in self._codes}
        made: dict[str, Any] = {name: self._categories[name][code] for name, code in codes.items() if code >= 0}
        numbers = {name: float(users.num[name][row]) for name in self._numbers}
        return made | {name: round(value, 6) for name, value in numbers.items() if math.isfinite(value)}

    def unknown_values(self, attributes: Mapping[str, Any]) -> list[str]:
        """Names of the categorical attributes whose value is none that the model knows; the attributes can be read."""
        codes = self._codes
        return [n for n, v in attributes.items() if n in codes and category_code(USER, n, v, codes[n]) == schema.OTHER]

    def _valid(self) -> str:
        return (
            f"valid ones are {', '.join(self.names)}" if self.names else "the data set has none ([users] in its spec)"
        )
