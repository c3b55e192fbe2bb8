"""Arrow types without views and extensions, which many kernels of Arrow do not take."""

from __future__ import annotations

import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without views (string_view and binary_view of DataFusion and arrow-rs), also inside of other types."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        value = plain_type(kind.value_type)
        return kind if value == kind.value_type else value
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        value = plain_type(kind.value_type)
        made = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return kind if value == kind.value_type else made(value)
    if pa.types.is_fixed_size_list(kind):
        value = plain_type(kind.value_type)
        return kind if value == kind.value_type else pa.list_(value, kind.list_size)
    if pa.types.is_struct(kind):
        fields = [field.with_type(plain_type(field.type)) for field in kind]
        return kind if all(a.type == b.type for a, b in zip(fields, kind, strict=True)) else pa.struct(fields)
    return kind


def plain_table(table: pa.Table) -> pa.Table:
    """A table whose columns have plain types; UUIDs become text, and other extension types what they are stored as."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            table = table.set_column(place, field.name, _plain_extension(table.column(place)))
    wanted = pa.schema([field.with_type(plain_type(field.type)) for field in table.schema])
    return table if wanted.types == table.schema.types else table.cast(wanted)


def _plain_extension(column: pa.ChunkedArray) -> pa.Array:
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type).combine_chunks()
