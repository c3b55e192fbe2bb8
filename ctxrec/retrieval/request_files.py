"""A file of requests: what its columns may hold, and its rows as requests.

A file is read once before any request is scored, so that a mistake is one line and loses nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ContextSpec, ItemsSpec
from ctxrec.core.errors import UserError, require
from ctxrec.core.time_zones import TIMEZONE, UTC, check_zone
from ctxrec.data.events import EARLIEST_S, LATEST_S, MAX_NUMBER
from ctxrec.data.parsing import to_text
from ctxrec.data.prepared import FeatureMeta
from ctxrec.retrieval.history_columns import (
    VALUE,
    check_history,
    epoch_seconds,
    float_numbers,
    history_field,
    is_id_list,
    is_numeric,
    read_histories,
    read_ids,
)
from ctxrec.retrieval.list_columns import LIST_COLUMNS, check_list_columns, check_list_values, of_request
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.request_reader import MAX_DISLIKE, MAX_QUERY
from ctxrec.retrieval.user_columns import USER, check_user_values, check_users, read_users

logger = logging.getLogger(__name__)

REQUEST_ID, USER_ID, TIMESTAMP, HISTORY = "request_id", "user_id", "timestamp", "history"
# These and TIMEZONE are of the request unless the context has a feature of that name, which the column then is.
DISLIKE, QUERY = "dislike", "query"  # and USER, and LIST_COLUMNS
# Times below these sizes are likely in such units, and divided by so much they are seconds.
_UNITS = ((1e14, "milliseconds", "1000"), (1e17, "microseconds", "10^6"))


def is_of_request(name: str, columns: Container[str], context: ContextSpec) -> bool:
    """Whether a file has a column of this name that is a field of the request, and no feature of its context."""
    return name in columns and name not in context.columns


def raw_requests(
    table: pa.Table, context: ContextSpec, *, now_s: float, zone: str = UTC, features: FeatureMeta | None = None
) -> list[RawRequest]:
    """The rows of R.parquet as requests; a column that is missing is as if it were null in every row.

    Args:
        table: columns that `check_requests` took.
        context: features of the data set's contexts.
        now_s: epoch seconds, the time of requests without one.
        zone: of timestamps of a type without a time zone.
        features: of the data set, with the attributes of its users.
    """
    nothing = [None] * table.num_rows

    def values(name: str, convert: Callable[[pa.ChunkedArray], pa.Array]) -> list[Any]:
        return convert(table.column(name)).to_pylist() if name in table.column_names else nothing

    names = values(USER_ID, to_text)
    times = values(TIMESTAMP, lambda column: epoch_seconds(column, zone))
    histories = read_histories(table.column(HISTORY), context, zone) if HISTORY in table.column_names else nothing
    contexts = {name: values(name, to_text) for name in context.categorical + context.text}
    contexts |= {name: values(name, float_numbers) for name in context.numeric}
    contexts.setdefault(TIMEZONE, values(TIMEZONE, to_text))
    about = read_users(table.column(USER), features) if is_of_request(USER, table.column_names, context) else nothing
    queries = nothing if QUERY in context.columns else values(QUERY, to_text)
    dislikes = nothing if DISLIKE in context.columns else values(DISLIKE, read_ids)
    return [
        RawRequest(
            user_id=names[n],
            timestamp=now_s if times[n] is None else times[n],
            context={name: column[n] for name, column in contexts.items() if column[n] is not None},
            history=histories[n],
            user=about[n],
            dislike=tuple(item for item in dislikes[n] or () if item is not None),
            query=queries[n],
        )
        for n in range(table.num_rows)
    ]


def check_requests(
    inputs: Sequence[str],
    context: ContextSpec,
    features: FeatureMeta | None = None,
    items: ItemsSpec | None = None,
) -> tuple[list[str], int]:
    """The columns to read and the number of rows, after a check of all that a file can have wrong.

    Args:
        inputs: Parquet files, paths or URIs.
        context: features of the data set's contexts.
        features: its features, with the attributes of its users.
        items: its columns of items, which filters are about.

    Raises:
        UserError: a file lacks a column, has one twice or of a wrong type, or holds a value that no request may have.
    """
    own = (REQUEST_ID, USER_ID, TIMESTAMP, TIMEZONE, HISTORY, USER, DISLIKE, QUERY, *LIST_COLUMNS)
    known = list(dict.fromkeys([*own, *context.columns]))
    num_rows, wanted, unused = 0, None, []
    for file in inputs:
        parquet = open_parquet(file)
        names = parquet.schema_arrow.names
        if twice := next((name for name in known if names.count(name) > 1), None):
            raise UserError(f"{file} has two columns {twice!r}; expected each name once. Rename one of them")
        types = {field.name: field.type for field in parquet.schema_arrow}
        present = [name for name in known if name in types]
        if wanted is not None and set(wanted) != set(present):
            raise UserError(f"{file} has the columns {', '.join(present)}; {inputs[0]} has {', '.join(wanted)}")
        wanted = present
        unused = [name for name in types if name not in known]
        _check_columns(types, context, source=file)
        if HISTORY in types:
            check_history(types[HISTORY], context, source=file)
        if is_of_request(DISLIKE, types, context) and not is_id_list(types[DISLIKE]):
            raise UserError(f"{file}: column {DISLIKE!r} is {types[DISLIKE]}; expected a list of item ids")
        check_list_columns({name: types[name] for name in of_request(present, context)}, items, source=file)
        if is_of_request(USER, types, context):
            check_users(types[USER], features, source=file)
        _check_rows(parquet, present, context, features, source=file)
        num_rows += parquet.metadata.num_rows
    if unused:
        logger.warning("columns %s are not used; known are %s", ", ".join(unused), ", ".join(known))
    return wanted or [], num_rows


def open_parquet(file: str) -> pq.ParquetFile:
    """A Parquet file, path or URI.

    Raises:
        UserError: it is none.
    """
    fs, inner = storage.filesystem(file)
    try:
        return pq.ParquetFile(inner, filesystem=fs)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is no Parquet file ({str(error).splitlines()[0]})") from error


def _check_columns(types: dict[str, pa.DataType], context: ContextSpec, *, source: str) -> None:
    for name in (REQUEST_ID, TIMESTAMP):
        if name not in types:
            raise UserError(f"{source}: column {name!r} is missing; found {', '.join(types) or 'no column'}")
    if USER_ID not in types and HISTORY not in types:
        raise UserError(f"{source}: found neither {USER_ID!r} nor {HISTORY!r}; expected one of them, to know who asks")
    for name in (USER_ID, TIMEZONE, QUERY, *context.columns):
        if name in types and pa.types.is_nested(types[name]):
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected one value a request")
    for name in (TIMESTAMP, *context.numeric):
        if name in types and not is_numeric(types[name], times=name == TIMESTAMP):
            wanted = "epoch seconds, UTC, or a timestamp" if name == TIMESTAMP else "numbers"
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected {wanted}")


def _check_rows(
    parquet: pq.ParquetFile, columns: list[str], context: ContextSpec, features: FeatureMeta | None, *, source: str
) -> None:
    """Read all that a task will read, where a mistake is one line."""
    try:
        for batch in parquet.iter_batches(columns=columns):
            _check_times(batch.column(TIMESTAMP), TIMESTAMP, source=source)
            if is_of_request(QUERY, columns, context):
                longest = pc.max(pc.utf8_length(to_text(batch.column(QUERY)))).as_py() or 0
                require(
                    longest <= MAX_QUERY, f"{source}: the longest query", longest, f"at most {MAX_QUERY:,} characters"
                )
            if is_of_request(DISLIKE, columns, context):
                most = pc.max(pc.list_value_length(read_ids(batch.column(DISLIKE)))).as_py() or 0
                require(most <= MAX_DISLIKE, f"{source}: the longest dislike", most, f"at most {MAX_DISLIKE} items")
            if is_of_request(USER, columns, context):
                check_user_values(batch.column(USER), features, source=source)
            check_list_values({name: batch.column(name) for name in of_request(columns, context)}, source=source)
            if is_of_request(TIMEZONE, columns, context):
                for zone in to_text(batch.column(TIMEZONE)).unique().drop_null().to_pylist():
                    check_zone(zone, f"{source}: {TIMEZONE}")
            for name in set(context.numeric).intersection(columns):
                _check_numbers(batch.column(name), name, source=source)
            if HISTORY in columns:
                if (times := history_field(batch.column(HISTORY), TIMESTAMP)) is not None:
                    _check_times(times, "timestamp of the history", source=source)
                if (numbers := history_field(batch.column(HISTORY), VALUE)) is not None:
                    _check_numbers(numbers, "value of the history", source=source, may_be_infinite=False)
            _check_somebody_asks(batch, source=source)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the machine, and not of the content
            raise
        raise UserError(
            f"{source} cannot be read ({str(error).splitlines()[0]}); expected a whole Parquet file. Write it again"
        ) from error


def _check_somebody_asks(batch: pa.RecordBatch, *, source: str) -> None:
    """Refuse a row that says neither who asks nor after which history, as over HTTP."""
    has = [to_text(batch.column(USER_ID)).is_valid()] if USER_ID in batch.schema.names else []
    has += [batch.column(HISTORY).is_valid()] if HISTORY in batch.schema.names else []
    said = has[0] if len(has) == 1 else pc.or_(*has)
    if (row := pc.index(said, False).as_py()) >= 0:
        raise UserError(
            f"{source}: the request {batch.column(REQUEST_ID)[row].as_py()!r} has neither {USER_ID} nor {HISTORY}; expected "
            f"one of them, to know who asks. Give somebody without a name an empty {HISTORY}"
        )


def _check_numbers(column: pa.Array, what: str, *, source: str, may_be_infinite: bool = True) -> None:
    """Refuse numbers beyond `MAX_NUMBER`. An infinite one says nothing where it may be there."""
    for found in pc.min_max(float_numbers(column)).as_py().values():
        if found is not None and abs(found) > MAX_NUMBER and not (may_be_infinite and math.isinf(found)):
            raise UserError(
                f"{source}: {what} is {found:g}; expected numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}. Leave it empty "
                "where it is not known"
            )


def _check_times(column: pa.Array, what: str, *, source: str) -> None:
    for found in pc.min_max(epoch_seconds(column, UTC)).as_py().values():
        if found is not None and not EARLIEST_S <= found <= LATEST_S:
            unit, factor = next(
                ((unit, factor) for limit, unit, factor in _UNITS if abs(found) < limit), ("nanoseconds", "10^9")
            )
            raise UserError(
                f"{source}: {what} {found:g} is outside the years 1 to 9999; expected epoch seconds, UTC "
                f"(divide {unit} by {factor})"
            )
