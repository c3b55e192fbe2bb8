"""The exceptions that commands turn into one line instead of a traceback."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """A mistake in the user's input. The message says what was found, what was expected and what to do.

    Commands print it as one line on stderr and exit with status 2, without a traceback.
    """

    field: tuple[str | int, ...] = ()  # the part of a request that is wrong, from the outside to the inside

    def at(self, *outer: str | int) -> UserError:
        """This error, whose field lies within another one.

        >>> UserError("no such column").at("price").at("filter").field
        ('filter', 'price')
        """
        self.field = (*outer, *self.field)
        return self


class Stopped(Exception):
    """A long command was asked to end and has saved its work. The same command goes on from there."""


class Failed(Exception):
    """A long command could not go on for a reason outside of it. The same command goes on from there."""


def require(condition: bool, key: str, found: Any, expected: str) -> None:
    """Raise a `UserError` that names an option, its value and what was expected, unless `condition` holds.

    Raises:
        UserError: the condition does not hold.
    """
    if not condition:
        raise UserError(f"{key} is {found!r}; expected {expected}")
