"""Items and users that somebody posts to a running service: checked rows, and from them the tables that `prepare` reads.

A posted row has `item_id` or `user_id`, and columns of the item or user file by their names; what is left out is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ctxrec.core.dataset_spec import DatasetSpec, ItemsSpec, UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.item_rows import Entities, items_table
from ctxrec.data.list_texts import divided, value_line, value_words
from ctxrec.data.parsing import value_text

ITEM_ID, USER_ID = "item_id", "user_id"
Row = Mapping[str, Any]
Table = Literal["items", "users"]  # whose rows are posted


class BadRow(UserError):
    """A posted row has an unknown column, or a value that does not fit its column.

    Attributes:
        place: number of the row among those posted.
        column: name of the column.
    """

    def __init__(self, message: str, place: int, column: str) -> None:
        super().__init__(message)
        self.place, self.column = place, column


def section_of(spec: DatasetSpec, table: Table) -> ItemsSpec | UsersSpec:
    """The columns of a table; none where the data set has no such table."""
    if table == "users":
        return spec.users or UsersSpec(path="")
    return spec.items or ItemsSpec(path="")


def key_of(table: Table) -> str:
    """The key of a posted row."""
    return USER_ID if table == "users" else ITEM_ID


def check_rows(rows: Sequence[Row], spec: DatasetSpec, table: Table = "items") -> None:
    """Check posted rows.

    Image and audio columns are accepted; the next training uses them (`ctxrec.live.row_files`).

    Raises:
        BadRow: names the row, the column, and what is valid.
    """
    section = section_of(spec, table)
    for place, row in enumerate(rows):
        for name, value in row.items():
            _check(name, value, section, place, key_of(table))


def fitting(row: Row, spec: DatasetSpec, table: Table = "items") -> dict[str, Any]:
    """A row that another version of the data set has accepted, without the columns that this one does not accept."""
    section, made = section_of(spec, table), {}
    for name, value in row.items():
        try:
            _check(name, value, section, 0, key_of(table))
        except BadRow:
            continue
        made[name] = value
    return made


def posted_table(rows: Sequence[Row], spec: DatasetSpec) -> pa.Table:
    """Checked rows as a table of `schema.items_schema`, made by the function that makes the table of `prepare`.

    The items have no training event, and the graph says nothing of them.
    """
    section, num = section_of(spec, "items"), len(rows)
    ids = pa.array([row[ITEM_ID] for row in rows], pa.string())
    given = Entities(ids=ids, tables=[file_table(rows, section)] if num else [])
    no_triples = pa.array([[]] * num, pa.list_(pa.string()))
    no_log_items = pa.array([], pa.string())
    no_events = np.zeros(num, np.int64)
    return items_table(spec, given, no_log_items, no_events, pairs=None if spec.graph is None else no_triples)


def file_table(rows: Sequence[Row], section: ItemsSpec | UsersSpec, table: Table = "items") -> pa.Table:
    """Checked rows as a file would have them: texts as strings, categories as lists, as a row may have several values."""
    columns: dict[str, pa.Array] = {section.id: pa.array([row[key_of(table)] for row in rows], pa.string())}
    for name in section.text:
        columns[name] = pa.array([value_line(row.get(name)) for row in rows], pa.string())
    for name in section.categorical:  # a column that is a text too becomes the line of these values
        separator = section.separators.get(name)
        lists = [_values(row.get(name), separator) for row in rows]
        if table == "users" and not any(
            isinstance(row.get(name), list) or len(row_) > 1 for row, row_ in zip(rows, lists, strict=True)
        ):
            # A column of lists would make several values of an attribute that has one.
            columns[name] = pa.array([row_[0] if row_ else None for row_ in lists], pa.string())
        else:
            columns[name] = pa.array(lists, pa.list_(pa.string()))
    for name in section.numeric:
        numbers = [row.get(name) for row in rows]  # Arrow refuses whole numbers that no float holds exactly
        columns[name] = pa.array([None if number is None else float(number) for number in numbers], pa.float64())
    for name in section.media.values():
        columns[name] = pa.array([value_text(row.get(name)) for row in rows], pa.string())
    return pa.table(columns)


def _values(value: Any, separator: str | None) -> list[str]:
    """The values of a category, one or a list; with a separator each of its texts is divided, as `list_texts.divide` does."""
    words = value_words(value)
    return [word for text in words for word in divided(text, separator)] if separator else words


def _check(name: str, value: Any, section: ItemsSpec | UsersSpec, place: int, key: str) -> None:
    media = tuple(section.media.values())
    valid = (*section.text, *section.categorical, *section.numeric, *media)
    if name != key and name not in valid:
        known = ", ".join((key, *dict.fromkeys(valid)))
        raise BadRow(f"unknown column {name!r}; valid columns are {known}", place, name)
    is_number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    if name in section.numeric and not is_number:
        raise BadRow(f"{name} is {value!r}; expected a number", place, name)
    if name in section.numeric and value is not None and not abs(value) <= MAX_NUMBER:
        message = f"{name} is out of range; expected a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
        raise BadRow(message, place, name)
