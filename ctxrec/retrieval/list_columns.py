"""Columns of a requests file about the list: exclude, allow, filter, diversity, rerank, explain, probability, as over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import ContextSpec, ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import MAX_NUMBER
from ctxrec.data.parsing import as_lists, one_array, to_text
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.history_columns import float_numbers, is_id_list, is_numeric, read_ids

EXCLUDE, ALLOW, FILTER, DIVERSITY, RERANK, EXPLAIN = "exclude", "allow", "filter", "diversity", "rerank", "explain"
PROBABILITY = "probability"
LIST_COLUMNS = (EXCLUDE, ALLOW, FILTER, DIVERSITY, RERANK, EXPLAIN, PROBABILITY)
_SWITCHES = (RERANK, EXPLAIN, PROBABILITY)
_VALUES, _ENDS = ("any", "none"), ("min", "max")


@dataclass(frozen=True)
class ListWish:
    """What a request says of its list; the fields mean what those of the HTTP call mean."""

    exclude: list[str] = field(default_factory=list)
    allow: list[str] | None = None
    rules: Mapping[str, ColumnRule] = field(default_factory=dict)
    diversity: float | None = None
    rerank: bool | None = None
    explain: bool = False
    probability: bool = False


def check_list_columns(types: Mapping[str, pa.DataType], items: ItemsSpec | None, *, source: str) -> None:
    """Check the types of these columns.

    Args:
        types: of the file's columns of this name that are fields of the request.
        items: the data set's columns of items, which a filter is about.
        source: for the message.

    Raises:
        UserError: a column has another type; names it and what is expected.
    """
    for name in (EXCLUDE, ALLOW):
        if name in types and not is_id_list(types[name]):
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected a list of item ids")
    for name in _SWITCHES:
        if name in types and not (pa.types.is_boolean(types[name]) or pa.types.is_null(types[name])):
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected true, false or null (bool)")
    if DIVERSITY in types and not is_numeric(types[DIVERSITY]):
        raise UserError(f"{source}: column {DIVERSITY!r} is {types[DIVERSITY]}; expected numbers from 0 to 1")
    if FILTER in types and not pa.types.is_null(types[FILTER]):
        _check_filter(types[FILTER], items or ItemsSpec(path=""), source=source)


def _check_filter(kind: pa.DataType, items: ItemsSpec, *, source: str) -> None:
    known = ", ".join(dict.fromkeys((*items.categorical, *items.numeric))) or "none: the catalogue has no such column"
    if not pa.types.is_struct(kind):
        raise UserError(f"{source}: column {FILTER!r} is {kind}; expected a struct of item columns ({known})")
    for rule in kind:
        what = f"{source}: {FILTER} {rule.name}"
        if rule.name not in (*items.categorical, *items.numeric):
            raise UserError(f"{source}: {FILTER!r} has the unknown column {rule.name!r}; valid ones are {known}")
        if pa.types.is_null(rule.type) or is_id_list(rule.type):
            continue
        parts = {part.name: part.type for part in rule.type} if pa.types.is_struct(rule.type) else {}
        if not parts or not set(parts) <= {*_VALUES, *_ENDS}:
            raise UserError(
                f"{what} is {rule.type}; expected a list of values, or a struct with some of any, none, min, max"
            )
        for name, part in parts.items():
            if not (is_id_list(part) if name in _VALUES else is_numeric(part)):
                expected = "a list of values" if name in _VALUES else "numbers"
                raise UserError(f"{what}.{name} is {part}; expected {expected}")


def check_list_values(columns: Mapping[str, pa.Array], *, source: str) -> None:
    """Check the numbers in these columns.

    Raises:
        UserError: a strength is not from 0 to 1, or an end of a range is beyond `MAX_NUMBER`.
    """
    if DIVERSITY in columns:
        for found in pc.min_max(float_numbers(columns[DIVERSITY])).as_py().values():
            if found is not None and not 0 <= found <= 1:
                raise UserError(f"{source}: {DIVERSITY} is {found:g}; expected numbers from 0 to 1")
    for name, rule in _parts(columns[FILTER]).items() if FILTER in columns else ():
        for end in _ENDS if pa.types.is_struct(rule.type) else ():
            if rule.type.get_field_index(end) < 0:
                continue
            for found in pc.min_max(float_numbers(pc.struct_field(rule, end))).as_py().values():
                if found is not None and not abs(found) <= MAX_NUMBER:
                    raise UserError(
                        f"{source}: {FILTER} {name}.{end} is {found:g}; expected numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
                    )


def of_request(names: list[str] | tuple[str, ...], context: ContextSpec) -> list[str]:
    """Those of the columns that are fields of a request here, and no features of its context."""
    return [name for name in LIST_COLUMNS if name in names and name not in context.columns]


def read_wishes(table: pa.Table, context: ContextSpec) -> list[ListWish]:
    """What each row of a file that was checked says of its list; a null field is as if it were left out."""
    columns = {name: table.column(name) for name in of_request(table.column_names, context)}
    rows: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]

    def put(name: str, values: list[Any]) -> None:
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[name] = value

    for name in (EXCLUDE, ALLOW):
        if name in columns:
            array = one_array(columns[name])
            ids = [[item for item in row or [] if item is not None] for row in read_ids(array).to_pylist()]
            put(name, [row if valid else None for row, valid in zip(ids, array.is_valid().to_pylist(), strict=True)])
    for name in _SWITCHES:
        if name in columns:
            put(name, one_array(columns[name]).to_pylist())
    if DIVERSITY in columns:
        put(DIVERSITY, float_numbers(columns[DIVERSITY]).to_pylist())
    if FILTER in columns:
        put("rules", _rules(one_array(columns[FILTER])))
    return [ListWish(**row) for row in rows]


def _parts(column: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
    array = one_array(column)
    if not pa.types.is_struct(array.type):
        return {}
    return {rule.name: pc.struct_field(array, rule.name) for rule in array.type}


def _rules(column: pa.Array) -> list[dict[str, ColumnRule]]:
    made: list[dict[str, ColumnRule]] = [{} for _ in range(len(column))]
    for name, rule in _parts(column).items():
        for rules, said in zip(made, _column_rules(rule), strict=True):
            if said is not None:
                rules[name] = said
    return made


def _column_rules(rule: pa.Array) -> list[ColumnRule | None]:
    """The rule of each row for one column; None where there is none."""
    if not pa.types.is_struct(rule.type):
        return [None if values is None else ColumnRule(any=values) for values in _value_lists(rule)]
    parts: dict[str, list[Any]] = {}
    for part in rule.type:
        values = pc.struct_field(rule, part.name)
        parts[part.name] = _value_lists(values) if part.name in _VALUES else float_numbers(values).to_pylist()
    rows = (dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True))
    return [ColumnRule(**row) if any(part is not None for part in row.values()) else None for row in rows]


def _value_lists(column: pa.Array) -> list[list[str] | None]:
    """Lists of values as texts; a null list stays None, and a null in a list is left out."""
    lists = as_lists(column)
    if lists is None:
        return [None] * len(column)
    texts = to_text(lists.flatten()).to_pylist()
    stops = np.cumsum(lists.value_lengths().fill_null(0).to_numpy())
    starts = np.append(0, stops)[:-1]
    rows = zip(lists.is_valid().to_pylist(), starts, stops, strict=True)
    return [[t for t in texts[a:b] if t is not None] if valid else None for valid, a, b in rows]
