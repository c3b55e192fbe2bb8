"""Rows of the item and user tables: texts, lists of values and numbers, and the item table of a prepared folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data import parsing
from ctxrec.data.column_facts import FirstReject


@dataclass(frozen=True)
class Entities:
    """Rows of an item or user table, one for each id, in the file's order."""

    ids: pa.Array  # string, distinct
    tables: list[pa.Table] = field(default_factory=list)  # the rows as read, in parts
    rejects: dict[str, int] = field(default_factory=dict)
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # of the rows as read, which these are
    first_rejects: dict[str, FirstReject] = field(default_factory=dict)  # by reason
    file_rows: dict[str, int] = field(default_factory=dict)  # rows read, by file

    def column(self, name: str, clean: Callable[[pa.ChunkedArray], pa.Array]) -> pa.Array:
        """A column of all parts as one array. `clean` is called with each part, and must give the same type for
        all."""
        return pa.concat_arrays([clean(table.column(name)) for table in self.tables])


NO_ENTITIES = Entities(ids=pa.array([], pa.string()))


def items_table(
    spec: DatasetSpec,
    items: Entities,
    log_items: pa.Array,
    train_events: np.ndarray,
    *,
    pairs: pa.Array | None = None,
) -> pa.Table:
    """The item table: the catalogue's items, then those that only the log has.

    `prepare` makes the table of a prepared folder with it, and a service makes the table of posted items
    (`ctxrec.data.posted_rows`), so that an item is the same to the model wherever it comes from.

    Args:
        spec: the data set.
        items: rows of the item table.
        log_items: ids only in the log, in order of first appearance; they have empty content.
        train_events: int64, events of each item in the training split.
        pairs: what the graph says of each item (`ctxrec.ingest.triples`); None: there is no graph.
    """
    extra = len(log_items)

    def padded(array: pa.Array, kind: pa.DataType) -> pa.Array:
        return pa.concat_arrays([array.cast(kind), pa.nulls(extra, kind)])

    texts = [items.column(name, joined_text) for name in spec.items.text] if spec.items and items.tables else []
    title = texts[0] if texts else pa.nulls(len(items.ids), pa.string())
    text = join_sentences(texts) if texts else title
    columns = {
        schema.ITEM_ID: pa.concat_arrays([items.ids, log_items.cast(pa.string())]),
        schema.ITEM_TITLE: padded(title, pa.string()).fill_null(""),
        schema.ITEM_TEXT: padded(text, pa.string()).fill_null(""),
        schema.ITEM_TRAIN_EVENTS: pa.array(train_events, pa.int64()),
    }
    if pairs is not None:
        columns[schema.category_column(schema.GRAPH)] = pairs
    wanted = schema.items_schema(spec)
    for name in spec.items.categorical if spec.items else ():
        column = schema.category_column(name)
        empty = pa.array([[]] * extra, pa.list_(pa.string()))
        columns[column] = pa.concat_arrays([items.column(name, value_lists), empty]) if items.tables else empty
    read_numbers = partial(numbers_or_null, decimal=spec.items.decimal if spec.items else None)
    for name in spec.items.numeric if spec.items else ():
        numbers = items.column(name, read_numbers) if items.tables else pa.array([], pa.float64())
        columns[schema.numeric_column(name)] = padded(numbers, pa.float64())
    return pa.Table.from_arrays([columns[name] for name in wanted.names], schema=wanted)


def joined_text(column: pa.ChunkedArray) -> pa.Array:
    """A text column in one line with single spaces; values of a list joined by commas; null where empty."""
    if parsing.as_lists(column) is not None:
        column = pc.binary_join(value_lists(column, normal=False), ", ")
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(parsing.to_text(column), r"\s+", " "))
    return pc.if_else(pc.equal(text, ""), None, text)


def join_sentences(texts: Sequence[pa.Array]) -> pa.Array:
    """Texts joined row by row with ". ", empty ones left out.

    Arrow's own null_handling="skip" drops rows whose parts are all null, so none is null here.
    """
    joined = texts[0].fill_null("")
    for text in texts[1:]:
        text = text.fill_null("")
        both = pc.and_(pc.not_equal(joined, ""), pc.not_equal(text, ""))
        joined = pc.binary_join_element_wise(joined, pc.if_else(both, ". ", ""), text, "")
    return joined


def value_lists(column: pa.Array | pa.ChunkedArray, *, normal: bool = True) -> pa.Array:
    """A categorical column as list<string>: lists without their empty values, single values as lists of one.

    Args:
        column: single values or lists of any type.
        normal: whether each value takes the form that it has in all sources (`parsing.normal_categories`).
    """
    clean = parsing.normal_categories if normal else parsing.to_text
    lists = parsing.as_lists(column)
    if lists is not None:
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(lists)), lengths)  # a null list may hide values, which `flatten` leaves out
        values = clean(lists.flatten())
    else:
        owner, values = np.arange(len(column)), clean(column)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(column) + 1, np.int32)
    np.cumsum(np.bincount(owner[present], minlength=len(column)), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values.drop_null())


def numbers_or_null(column: pa.ChunkedArray, decimal: str | None = None) -> pa.Array:
    """A numeric column as float64; null where a value is missing or no finite number."""
    numbers, _ = parsing.to_numbers(column, np.float64, decimal=decimal)
    return pa.array(numbers, mask=np.isnan(numbers))
