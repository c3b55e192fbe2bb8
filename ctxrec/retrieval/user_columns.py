"""Attributes of users in a column of a requests file: structs whose fields are columns of the user file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.errors import UserError
from ctxrec.data import parsing
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.parsing import one_array, to_text
from ctxrec.data.prepared import MAX_VALUES, FeatureMeta
from ctxrec.retrieval.history_columns import float_numbers, is_numeric

USER = "user"


def check_users(kind: pa.DataType, features: FeatureMeta | None, *, source: str) -> None:
    """Check the type of a column of attributes.

    Raises:
        UserError: it is no struct, or a field is no attribute of the data set's users or has the wrong type.
    """
    if pa.types.is_null(kind):
        return
    names = _attributes(features)
    known = ", ".join(names) or "none, as the data set has no [users]"
    if not pa.types.is_struct(kind):
        raise UserError(f"{source}: column {USER!r} is {kind}; expected a struct of user attributes ({known})")
    for field in kind:
        if field.name not in names:
            raise UserError(f"{source}: {USER!r} has the unknown attribute {field.name!r}; valid ones are {known}")
        wanted, found = names[field.name], _value_type(field.type)
        may_be_list = wanted in ("lists of values", "texts")
        wrong = pa.types.is_nested(found if may_be_list else field.type)
        if wrong or (wanted == "numbers" and not is_numeric(field.type)) or (wanted == "texts" and not _is_text(found)):
            raise UserError(f"{source}: {USER} {field.name} is {field.type}; expected {wanted}")


def check_user_values(column: pa.Array, features: FeatureMeta | None, *, source: str) -> None:
    """Check the size of numbers and of lists.

    Raises:
        UserError: a number is beyond `MAX_NUMBER`, or a list has more than `MAX_VALUES` values.
    """
    names = _attributes(features)
    for field in column.type if pa.types.is_struct(column.type) else ():
        values = pc.struct_field(column, field.name)
        if names[field.name] == "numbers":
            for found in pc.min_max(float_numbers(values)).as_py().values():
                if found is not None and MAX_NUMBER < abs(found) < float("inf"):
                    raise UserError(
                        f"{source}: {USER} {field.name} is {found:g}; expected numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
                    )
        lists = parsing.as_lists(values) if names[field.name] == "lists of values" else None
        if lists is not None and (most := pc.max(pc.list_value_length(lists)).as_py() or 0) > MAX_VALUES:
            raise UserError(f"{source}: {USER} {field.name} has {most} values; expected at most {MAX_VALUES}")


def read_users(column: pa.Array | pa.ChunkedArray, features: FeatureMeta | None) -> list[dict[str, Any] | None]:
    """The attributes of each row by name; a null field is left out, so that what is stored for the user stays."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return array.to_pylist()
    names = _attributes(features)
    made: list[dict[str, Any]] = [{} for _ in range(len(array))]
    for field in array.type:
        for attributes, value in zip(made, _values(pc.struct_field(array, field.name), names[field.name]), strict=True):
            if value is not None:
                attributes[field.name] = value
    return [attributes or None for attributes in made]


def _values(column: pa.Array, kind: str) -> list[Any]:
    if kind == "numbers":
        return float_numbers(column).to_pylist()
    lists = parsing.as_lists(column)
    if lists is None:
        return to_text(column).to_pylist()
    texts, offsets = to_text(lists.flatten()).to_pylist(), [0]
    for length in lists.value_lengths().fill_null(0).to_pylist():
        offsets.append(offsets[-1] + length)
    rows = zip(lists.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True)
    return [texts[start:stop] if valid else None for valid, start, stop in rows]


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column of lists, or of the column itself."""
    lists = parsing.as_lists(pa.array([], kind))
    return kind if lists is None else lists.type.value_type


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def _attributes(features: FeatureMeta | None) -> dict[str, str]:
    """What each attribute holds, in words."""
    if features is None:
        return {}
    several = features.user_lists
    made = {name: "lists of values" if name in several else "single values" for name in features.user_categories}
    return made | dict.fromkeys(features.user_numbers, "numbers") | dict.fromkeys(features.user_texts, "texts")
