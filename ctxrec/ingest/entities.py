"""The item table and the user table of a data set: read, checked, and coded for the histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.data import list_texts, parsing
from ctxrec.data.column_facts import FirstReject
from ctxrec.data.item_rows import Entities, joined_text, numbers_or_null, value_lists
from ctxrec.data.prepared import MAX_VALUES, FeatureMeta, encode_categories
from ctxrec.ingest import readers
from ctxrec.ingest.rejects import first_of_each, lines_of, reject_table, write_rejects
from ctxrec.ingest.shard_files import user_buckets


def read_entities(
    files: Sequence[readers.FileInfo],
    id_column: str,
    columns: Sequence[str],
    *,
    what: str,
    max_id_bytes: int,
    rejects: str,
    separators: Mapping[str, str] = MappingProxyType({}),
    numeric: Sequence[str] = (),
) -> Entities:
    """Read a table of items or users; rows without an id and later rows of an id already seen are rejected.

    Args:
        files: the table's files.
        id_column: its key.
        columns: what else is read.
        what: "item" or "user", for reasons and file names.
        max_id_bytes: longer ids are rejected.
        rejects: folder for the rejected rows.
        separators: what divides the texts of columns that hold several values (`ItemsSpec.separators`).
        numeric: those of `columns` that are numbers.

    Raises:
        UserError: a column has values that are neither single ones nor lists.
    """
    parts: list[tuple[readers.RawBatch, str]] = []
    wanted = list(dict.fromkeys([id_column, *columns]))
    for piece in readers.make_pieces(files, rows=1 << 20):
        for batch in readers.read_piece(piece, wanted):
            _check_columns(batch.table, id_column, numeric, piece.path)
            parts.append((readers.RawBatch(batch.table.select(wanted), batch.rows, batch.malformed), piece.path))
    ids = [parsing.to_text(batch.table.column(id_column)) for batch, _ in parts]
    coded = parsing.encode(pa.chunked_array(ids, pa.string()))
    names = ["", *(f"{what} table: {r}" for r in ("missing id", "id too long", "duplicate id", "malformed row"))]
    reasons = _entity_reasons(coded, max_id_bytes)
    counts = np.bincount(reasons, minlength=len(names))
    counts[4] = sum(lines_of(batch.malformed) for batch, _ in parts)
    kept, rejected, start = [], [], 0
    rows = dict.fromkeys((info.path for info in files), 0)
    for batch, path in parts:
        rows[path] += len(batch.rows) + lines_of(batch.malformed)
        here = reasons[start : start + len(batch.table)]
        start += len(batch.table)
        kept.append(_divided(batch.table.filter(pa.array(here == 0)), separators))
        bad = np.flatnonzero(here)
        if len(bad) or batch.malformed:
            lines = [(path, row, text) for row, text in batch.malformed]
            labels = np.array(names, object)[here[bad]]
            raw = batch.table.take(pa.array(bad))
            rejected.append(reject_table(raw, labels, np.full(len(bad), path, object), batch.rows[bad], lines))
    firsts: dict[str, FirstReject] = {}
    if rejected:
        table = pa.concat_tables(rejected)
        write_rejects(table, storage.join(rejects, f"{what}s.parquet"))
        found = first_of_each(table, {reason: [id_column] for reason in names})
        firsts = {f"{what} table: {reason.removeprefix(f'{what} table: ')}": first for reason, first in found.items()}
    good = coded.take(np.flatnonzero(reasons == 0))
    return Entities(
        ids=good.values.take(pa.array(good.codes)),
        tables=kept,
        rejects={name: int(n) for name, n in zip(names[1:], counts[1:], strict=True) if n},
        kept=reasons == 0,
        first_rejects=firsts,
        file_rows=rows,
    )


def _check_columns(table: pa.Table, id_column: str, numeric: Sequence[str], path: str) -> None:
    """Check that ids and numbers are single values, and that other columns have single values or lists of them."""
    for column in table.schema:
        lists = parsing.as_lists(pa.array([], column.type))
        value = column.type if lists is None or column.name in (id_column, *numeric) else lists.type.value_type
        if pa.types.is_nested(value):
            expected = (
                "one value a row" if value == column.type and lists is not None else "single values, or lists of them"
            )
            raise UserError(
                f"column {column.name!r} of {path} is {column.type}; expected {expected}. Take another column, or write "
                "the field that is meant into a column of its own"
            )


def _divided(table: pa.Table, separators: Mapping[str, str]) -> pa.Table:
    """A table with lists in the columns that have a separator."""
    for name, separator in separators.items():
        lists = list_texts.divide(table.column(name), separator)
        table = table.set_column(table.column_names.index(name), name, lists)
    return table


def write_media(
    files: Sequence[readers.FileInfo], columns: dict[str, str], kept: np.ndarray, path: str
) -> dict[str, int]:
    """Write where the images and sounds of items are, file by file, so that contents need not fit into memory.

    Args:
        files: of the item table.
        columns: "image" and "audio" to their columns.
        kept: of the table's rows, those that are items, in the order of their index.
        path: of the file to write (`schema.MEDIA`).

    Returns:
        how many items have one, by kind.
    """
    counts, writer, row, item = dict.fromkeys(columns, 0), None, 0, 0
    fs, inner = storage.filesystem(path)
    for piece in readers.make_pieces(files, rows=1 << 16):
        for batch in readers.read_piece(piece, list(columns.values())):
            here = kept[row : row + len(batch.table)]
            row += len(batch.table)
            table = batch.table.filter(pa.array(here))
            made = {schema.MEDIA_ITEM: pa.array(np.arange(item, item + len(table), dtype=np.int32))}
            item += len(table)
            for kind, name in columns.items():
                made[kind] = _media_values(table.column(name), name, storage.parent(piece.path))
                counts[kind] += len(table) - made[kind].null_count
            made = pa.table(made)
            writer = writer or pq.ParquetWriter(inner, made.schema, filesystem=fs)
            writer.write_table(made)
    if writer is not None:
        writer.close()
    return counts


def _media_values(column: pa.ChunkedArray, name: str, folder: str) -> pa.Array:
    """Where the images or sounds of some items are, as `schema.MEDIA_PLACE`; null for an item without one.

    Args:
        column: contents, paths, or structs of "bytes" and "path", as the `datasets` package stores them. In a struct
            the content is taken where there is one.
        name: of the column.
        folder: of the item file, where a relative path starts.

    Raises:
        UserError: the values are none of these.
    """
    array = parsing.one_array(column)
    parts = {"bytes": array, "path": array}
    is_struct = pa.types.is_struct(array.type)
    names = [f.name for f in array.type] if is_struct else []
    if "bytes" in names or "path" in names:
        parts = {key: pc.struct_field(array, key) if key in names else pa.nulls(len(array)) for key in parts}
    contents, paths = pa.nulls(len(array), pa.large_binary()), pa.nulls(len(array), pa.large_string())
    for key, part in parts.items():
        if pa.types.is_dictionary(part.type):
            part = part.cast(part.type.value_type)
        is_text = pa.types.is_string(part.type) or pa.types.is_large_string(part.type)
        is_bytes = any(test(part.type) for test in (pa.types.is_binary, pa.types.is_large_binary))
        if key == "bytes" and is_bytes:
            contents = pc.if_else(pc.equal(pc.binary_length(part), 0), None, part.cast(pa.large_binary()))
        elif key == "path" and is_text:
            found = [value and value.strip() for value in part.to_pylist()]
            paths = pa.array([storage.join(folder, value) if value else None for value in found], pa.large_string())
        elif is_struct or not (is_text or is_bytes):
            if pa.types.is_null(part.type):
                continue
            raise UserError(
                f"items: column {name!r} is {column.type}; expected paths, URIs, the content as bytes, or structs of bytes "
                "and path. Write the column as one of these"
            )
    paths = pc.if_else(contents.is_valid(), None, paths)
    nothing = pc.and_(contents.is_null(), paths.is_null())
    return pa.StructArray.from_arrays([contents, paths], fields=list(schema.MEDIA_PLACE), mask=nothing)


def _entity_reasons(ids: parsing.Coded, max_id_bytes: int) -> np.ndarray:
    """The reason to reject each row, int64 [N]: 0 keeps it, 1 missing id, 2 id too long, 3 duplicate id."""
    reasons = np.zeros(len(ids.codes), np.int64)
    long = pc.greater(pc.binary_length(ids.values), max_id_bytes).to_numpy(zero_copy_only=False)
    first = np.full(len(ids.values) + 1, -1, np.int64)
    first[ids.codes[::-1]] = np.arange(len(ids.codes))[::-1]  # the last write, the first row, stays
    reasons[first[ids.codes] != np.arange(len(ids.codes))] = 3
    reasons[np.append(long, False)[ids.codes]] = 2
    reasons[ids.codes < 0] = 1
    return reasons


def user_attributes(
    users: Entities, section: UsersSpec | None, features: FeatureMeta, *, buckets: int
) -> tuple[pa.Table, np.ndarray]:
    """The user table coded and sorted by bucket, and where each bucket begins (int64 [buckets + 1])."""
    columns: dict[str, pa.Array] = {schema.USER_ID: users.ids}
    for name in section.categorical if section else ():
        lists = users.column(name, value_lists) if users.tables else value_lists(pa.array([], pa.string()))
        vocabulary = features.user_categories[name]
        several = name in features.user_lists
        columns[schema.user_column(name)] = code_lists(lists, vocabulary) if several else first_codes(lists, vocabulary)
    for name in section.numeric if section else ():
        read = partial(numbers_or_null, decimal=section.decimal if section else None)
        numbers = users.column(name, read) if users.tables else pa.array([], pa.float64())
        columns[schema.user_column(name)] = numbers.cast(pa.float32())
    for name in section.text if section else ():
        texts = users.column(name, joined_text) if users.tables else pa.array([], pa.string())
        columns[schema.user_column(name)] = texts.cast(pa.string())
    ids = parsing.Coded(codes=np.arange(len(users.ids), dtype=np.int32), values=users.ids)
    bucket = user_buckets(ids, buckets)
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    return pa.table(columns).take(pa.array(order)), bounds


def code_lists(lists: pa.Array, vocabulary_: list[str]) -> pa.Array:
    """Codes of the first `MAX_VALUES` values of each list, list<int32>."""
    codes = encode_categories(lists.flatten(), vocabulary_)
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = np.append(0, np.cumsum(np.minimum(lengths, MAX_VALUES))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), codes.filter(pa.array(place < MAX_VALUES)))


def first_codes(lists: pa.Array, vocabulary_: list[str]) -> pa.Array:
    """Code of the one value of each list, int32; MISSING for an empty list."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    codes = np.full(len(lists), schema.MISSING, np.int32)
    starts = lists.offsets.to_numpy()[:-1][lengths > 0]
    codes[lengths > 0] = encode_categories(lists.values.take(pa.array(starts)), vocabulary_).to_numpy()
    return pa.array(codes)
