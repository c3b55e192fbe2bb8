"""Names, schemas and layout of a prepared data folder, which `prepare` writes and all the rest reads.

DATA/meta.json                      counts, split, vocabularies, the spec, fingerprint; written last
DATA/items.parquet                  one row an item, in catalogue order: the row number is the item's index
DATA/media.parquet                  where the catalogue has images or sounds: item index, and file or content
DATA/histories/bucket-00000.parquet one row a user, users divided by a hash of their id
DATA/rejects/*.parquet              rejected rows with the reason
DATA/report.json                    what a person may want to check: columns, files, actions, the first reject of each kind
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core.errors import UserError

FORMAT_VERSION = 1

META = "meta.json"
REPORT = "report.json"
ITEMS = "items.parquet"
MEDIA = "media.parquet"
HISTORIES = "histories"
REJECTS = "rejects"

USER_ID = "user_id"
ITEM_ID = "item_id"

# List columns of a history, one value an event, ordered by time (stable on the log's own order).
EVENT_ITEMS = "items"  # int32 item index
EVENT_TIMES = "times"  # int64 microseconds since 1970, UTC
EVENT_SPLIT = "split"  # int8, one of TRAIN, VALID, TEST
EVENT_ACTIONS = "actions"  # int16 code, 0 = no action
EVENT_VALUES = "values"  # float32, NaN = none
EVENT_GAPS = "gap_s"  # float32 seconds since the user's event before; NaN for the first
TIME_CONTEXT = ("hour", "weekday", "month")  # int8, in the zone of the log: 0-23, 0 = Monday, 1-12

TRAIN, VALID, TEST = 0, 1, 2

# Codes of categorical values: position in the vocabulary plus FIRST_CODE.
MISSING, OTHER, FIRST_CODE = 0, 1, 2

ITEM_TEXT = "text"  # the text columns joined
ITEM_TITLE = "title"  # the first text column, for people to read
ITEM_TRAIN_EVENTS = "train_events"  # int64
GRAPH = "[graph]"  # the category that the triples of the graph make
MEDIA_ITEM = "item"  # int32 item index
# Where an image or a sound is: its content, or its path or URI. One of the two is null.
MEDIA_PLACE = pa.struct([("content", pa.large_binary()), ("path", pa.large_string())])


def context_column(name: str) -> str:
    """Column of a context feature in a history (list) and in a request."""
    return f"ctx_{name}"


def user_column(name: str) -> str:
    """Column of a user attribute in a history row: int32 code, list of int32 codes, float32 or string."""
    return f"user_{name}"


def category_column(name: str) -> str:
    """Column of a categorical item feature: list<string>, several values allowed."""
    return f"cat_{name}"


def numeric_column(name: str) -> str:
    """Column of a numeric item feature: float64, null = missing."""
    return f"num_{name}"


def histories_schema(spec: Any, user_lists: Collection[str] = ()) -> pa.Schema:
    """Schema of a history bucket for a `DatasetSpec`; `user_lists` are the attributes of users that have several values."""
    fields = [
        (USER_ID, pa.string()),
        (EVENT_ITEMS, pa.list_(pa.int32())),
        (EVENT_TIMES, pa.list_(pa.int64())),
        (EVENT_SPLIT, pa.list_(pa.int8())),
        (EVENT_ACTIONS, pa.list_(pa.int16())),
        (EVENT_VALUES, pa.list_(pa.float32())),
        (EVENT_GAPS, pa.list_(pa.float32())),
        *((name, pa.list_(pa.int8())) for name in TIME_CONTEXT),
    ]
    context = spec.events.context
    fields += [(context_column(n), pa.list_(pa.int32())) for n in context.categorical]
    fields += [(context_column(n), pa.list_(pa.float32())) for n in context.numeric]
    fields += [(context_column(n), pa.list_(pa.string())) for n in context.text]
    if spec.users is not None:
        several = pa.list_(pa.int32())
        fields += [(user_column(n), several if n in user_lists else pa.int32()) for n in spec.users.categorical]
        fields += [(user_column(n), pa.float32()) for n in spec.users.numeric]
        fields += [(user_column(n), pa.string()) for n in spec.users.text]
    return pa.schema(fields)


def items_schema(spec: Any) -> pa.Schema:
    """Schema of the item table for a `DatasetSpec`."""
    fields = [
        (ITEM_ID, pa.string()),
        (ITEM_TITLE, pa.string()),
        (ITEM_TEXT, pa.string()),
        (ITEM_TRAIN_EVENTS, pa.int64()),
    ]
    if spec.items is not None:
        fields += [(category_column(n), pa.list_(pa.string())) for n in spec.items.categorical]
        fields += [(numeric_column(n), pa.float64()) for n in spec.items.numeric]
    if spec.graph is not None:
        fields += [(category_column(GRAPH), pa.list_(pa.string()))]
    return pa.schema(fields)


def widen_item_numbers(items: pa.Table) -> pa.Table:
    """An item table whose numeric columns are float64, as those of `items_schema` are.

    Item tables written before December 2026 have float32. A number of these becomes the decimal of fewest digits that has
    the same float32, so 19.989999771118164 is 19.99 again.
    """
    for place, column in enumerate(items.schema):
        if column.name.startswith(numeric_column("")) and pa.types.is_float32(column.type):
            items = items.set_column(place, column.name, shortest_decimals(items.column(place)))
    return items


def shortest_decimals(numbers: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Numbers of float16 or float32 as the float64 of the decimal with fewest digits that means the same number."""
    return shortest_texts(numbers).cast(pa.float64())


def shortest_texts(numbers: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Floats as the texts of fewest digits that mean the same numbers in their own precision."""
    if not pa.types.is_float16(numbers.type):
        return numbers.cast(pa.string())
    # Arrow writes a float16 with the digits of a wider float. There are 65,536 of them at most.
    wide = numbers.combine_chunks() if isinstance(numbers, pa.ChunkedArray) else numbers
    coded = wide.cast(pa.float32()).dictionary_encode()
    found = coded.dictionary.to_numpy(zero_copy_only=False)
    digits = [float(value) if float(value).is_integer() else float(str(np.float16(value))) for value in found]
    return pa.array(digits, pa.float64()).cast(pa.string()).take(coded.indices)


def check_schema(table: pa.Table, schema: pa.Schema, *, source: str) -> None:
    """Check that a table has every column of a schema with its type.

    Raises:
        UserError: a column is missing or has another type; the message names the first one.
    """
    for wanted in schema:
        if wanted.name not in table.column_names:
            raise UserError(
                f"{source}: column {wanted.name!r} is missing; found {', '.join(table.column_names)}. "
                "Run ctxrec prepare again"
            )
        found = table.schema.field(wanted.name).type
        if found != wanted.type:
            raise UserError(f"{source}: column {wanted.name!r} is {found}; expected {wanted.type}")
