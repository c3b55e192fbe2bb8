"""Attributes of users in a column of a requests file: structs whose fields are columns of the user file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.parsing import one_array, to_text
from ctxrec.retrieval.history_columns import float_numbers, is_numeric

USER = "user"


def check_users(kind: pa.DataType, users: UsersSpec | None, *, source: str) -> None:
    """Check the type of a column of attributes.

    Raises:
        UserError: it is no struct, or a field is no attribute of the data set's users or has the wrong type.
    """
    if pa.types.is_null(kind):
        return
    categories, numbers = _attributes(users)
    known = ", ".join([*categories, *numbers]) or "none, as the data set has no [users]"
    if not pa.types.is_struct(kind):
        raise UserError(f"{source}: column {USER!r} is {kind}; expected a struct of user attributes ({known})")
    for field in kind:
        if field.name not in (*categories, *numbers):
            raise UserError(f"{source}: {USER!r} has the unknown attribute {field.name!r}; valid ones are {known}")
        if pa.types.is_nested(field.type) or (field.name in numbers and not is_numeric(field.type)):
            wanted = "numbers" if field.name in numbers else "single values"
            raise UserError(f"{source}: {USER} {field.name} is {field.type}; expected {wanted}")


def check_user_numbers(column: pa.Array, users: UsersSpec | None, *, source: str) -> None:
    """Check the size of the numbers.

    Raises:
        UserError: one is beyond `MAX_NUMBER`.
    """
    fields = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
    for name in fields.intersection(_attributes(users)[1]):
        for found in pc.min_max(float_numbers(pc.struct_field(column, name))).as_py().values():
            if found is not None and MAX_NUMBER < abs(found) < float("inf"):
                raise UserError(
                    f"{source}: {USER} {name} is {found:g}; expected numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
                )


def read_users(column: pa.Array | pa.ChunkedArray, users: UsersSpec | None) -> list[dict[str, Any] | None]:
    """The attributes of each row by name; a null field is left out, so that what is stored for the user stays."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return array.to_pylist()
    numbers = _attributes(users)[1]
    made: list[dict[str, Any]] = [{} for _ in range(len(array))]
    for field in array.type:
        values = pc.struct_field(array, field.name)
        read = float_numbers(values) if field.name in numbers else to_text(values)
        for attributes, value in zip(made, read.to_pylist(), strict=True):
            if value is not None:
                attributes[field.name] = value
    return [attributes or None for attributes in made]


def _attributes(users: UsersSpec | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the categorical and of the numeric attributes."""
    return ((), ()) if users is None else (tuple(users.categorical), tuple(users.numeric))
