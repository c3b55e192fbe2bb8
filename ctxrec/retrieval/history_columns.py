"""Histories in a column of a requests file: lists of item ids, or lists of structs with the fields of the HTTP API."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import ContextSpec
from ctxrec.core.errors import UserError
from ctxrec.data.parsing import one_array, to_text
from ctxrec.data.zone_offsets import instants
from ctxrec.retrieval.raw_request import RawEvent

ITEM_ID, ACTION, TIMESTAMP, VALUE, CONTEXT = "item_id", "action", "timestamp", "value", "context"
_FIELDS = (ITEM_ID, ACTION, TIMESTAMP, VALUE, CONTEXT)


def is_numeric(kind: pa.DataType, *, times: bool = False) -> bool:
    """Whether a column has numbers or only nulls; with `times` also whether it has timestamps."""
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return numbers or pa.types.is_null(kind) or (times and pa.types.is_timestamp(kind))


def float_numbers(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of numbers as float64, with NaN as null; whole numbers that no float holds exactly are rounded."""
    numbers = one_array(column).cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def epoch_seconds(column: pa.Array | pa.ChunkedArray, zone: str) -> pa.Array:
    """A column of timestamps or of epoch seconds as epoch seconds, float64, with NaN as null.

    Timestamps of a type without a time zone are those of `zone`.
    """
    if pa.types.is_timestamp(column.type):
        micros = one_array(column).cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64())
        if column.type.tz is None:
            known = micros.fill_null(0).to_numpy(zero_copy_only=False)
            micros = pa.array(instants(known, zone), mask=micros.is_null().to_numpy(zero_copy_only=False))
        return pc.divide(micros.cast(pa.float64()), 1e6)
    return float_numbers(column)


def is_id_list(kind: pa.DataType) -> bool:
    """Whether a column has lists of single values, or only nulls."""
    return pa.types.is_null(kind) or (_is_list(kind) and not pa.types.is_nested(kind.value_type))


def read_ids(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of lists of ids (`is_id_list`) as lists of text."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return array.cast(pa.list_(pa.string()))
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, to_text(array.flatten()))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def check_history(kind: pa.DataType, context: ContextSpec, *, source: str) -> None:
    """Check the type of a column of histories.

    Raises:
        UserError: it is not a list of ids or of events, or a field of the events is unknown or has the wrong type.
    """
    if pa.types.is_null(kind):
        return
    event = kind.value_type if _is_list(kind) else None
    if event is None or (pa.types.is_nested(event) and not pa.types.is_struct(event)):
        raise UserError(
            f"{source}: column 'history' is {kind}; expected a list of item ids, oldest first, or of structs with "
            f"{', '.join(_FIELDS)}"
        )
    if pa.types.is_struct(event):
        _check_event(event, context, source=source)


def _check_event(event: pa.StructType, context: ContextSpec, *, source: str) -> None:
    names = {field.name: field.type for field in event}
    unknown = [name for name in names if name not in _FIELDS]
    if ITEM_ID not in names or unknown:
        found = f"the unknown field {unknown[0]!r}" if unknown else f"no field {ITEM_ID!r}"
        raise UserError(f"{source}: the structs of 'history' have {found}; expected {', '.join(_FIELDS)}")
    for name in (ITEM_ID, ACTION):
        if name in names and pa.types.is_nested(names[name]):
            raise UserError(f"{source}: {name} of 'history' is {names[name]}; expected single values")
    if TIMESTAMP in names and not is_numeric(names[TIMESTAMP], times=True):
        raise UserError(
            f"{source}: timestamp of 'history' is {names[TIMESTAMP]}; expected epoch seconds, UTC, or a timestamp"
        )
    if VALUE in names and not is_numeric(names[VALUE]):
        raise UserError(f"{source}: value of 'history' is {names[VALUE]}; expected numbers")
    if CONTEXT not in names or pa.types.is_null(names[CONTEXT]):
        return
    if not pa.types.is_struct(names[CONTEXT]):
        raise UserError(f"{source}: context of 'history' is {names[CONTEXT]}; expected a struct of context features")
    for field in names[CONTEXT]:
        if field.name not in context.columns:
            known = ", ".join(context.columns) or "none"
            raise UserError(
                f"{source}: context of 'history' has the unknown key {field.name!r}; valid keys are {known}"
            )
        if pa.types.is_nested(field.type) or (field.name in context.numeric and not is_numeric(field.type)):
            wanted = "numbers" if field.name in context.numeric else "single values"
            raise UserError(f"{source}: context {field.name} of 'history' is {field.type}; expected {wanted}")


def history_ids(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The item ids of all events of all histories, as strings; null where an event has none."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return pa.array([], pa.string())
    values = array.flatten()
    return to_text(pc.struct_field(values, ITEM_ID) if pa.types.is_struct(values.type) else values)


def history_field(column: pa.Array | pa.ChunkedArray, name: str) -> pa.Array | None:
    """A field of all events of all histories, such as their times, as it is in the file; None where they have none."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return None
    event = array.type.value_type
    has_field = pa.types.is_struct(event) and event.get_field_index(name) >= 0
    return pc.struct_field(array.flatten(), name) if has_field else None


def read_histories(column: pa.Array | pa.ChunkedArray, context: ContextSpec, zone: str) -> list[list[RawEvent] | None]:
    """The events of each row; a null list stays None, events without an item id are left out. `zone`: see `epoch_seconds`."""
    array = one_array(column)
    if pa.types.is_null(array.type):
        return array.to_pylist()
    events = np.empty(len(array.flatten()), object)
    events[:] = _events(array.flatten(), context, zone)
    stops = np.cumsum(array.value_lengths().fill_null(0).to_numpy())
    lists = [[event for event in part if event is not None] for part in np.split(events, stops[:-1])]
    return [lists[n] if valid else None for n, valid in enumerate(array.is_valid().to_pylist())]


def _events(values: pa.Array, context: ContextSpec, zone: str) -> list[RawEvent | None]:
    if not pa.types.is_struct(values.type):
        return [None if item is None else RawEvent(item_id=item) for item in to_text(values).to_pylist()]
    names = [field.name for field in values.type]
    nothing: list[Any] = [None] * len(values)
    ids = to_text(pc.struct_field(values, ITEM_ID)).to_pylist()
    actions = to_text(pc.struct_field(values, ACTION)).to_pylist() if ACTION in names else nothing
    times = epoch_seconds(pc.struct_field(values, TIMESTAMP), zone).to_pylist() if TIMESTAMP in names else nothing
    numbers = float_numbers(pc.struct_field(values, VALUE)).to_pylist() if VALUE in names else nothing
    features: dict[str, list[Any]] = {}
    if CONTEXT in names and pa.types.is_struct(values.type.field(CONTEXT).type):
        given = pc.struct_field(values, CONTEXT)
        for field in given.type:
            read = float_numbers if field.name in context.numeric else to_text
            features[field.name] = read(pc.struct_field(given, field.name)).to_pylist()
    return [
        None
        if item is None
        else RawEvent(
            item_id=item,
            action=actions[n],
            timestamp=times[n],
            context={name: column[n] for name, column in features.items() if column[n] is not None},
            value=numbers[n],
        )
        for n, item in enumerate(ids)
    ]
