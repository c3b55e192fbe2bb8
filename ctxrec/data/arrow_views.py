"""Arrow types without views, extensions and narrow decimals, which many kernels of Arrow do not take; bytes as text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_UUID_WIDTH, _UUID_DASHES = 36, (8, 13, 18, 23)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without views (string_view and binary_view of DataFusion and arrow-rs), extensions and narrow decimals, also
    inside of others.

    A UUID becomes text, a bool8 a truth value, and any other extension what it is stored as.
    """
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
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
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        fields = [field.with_type(plain_type(field.type)) for field in kind]
        return kind if all(a.type == b.type for a, b in zip(fields, kind, strict=True)) else pa.struct(fields)
    if pa.types.is_map(kind):
        key, item = plain_type(kind.key_type), plain_type(kind.item_type)
        return kind if (key, item) == (kind.key_type, kind.item_type) else pa.map_(key, item)
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """`array` with values of `plain_type`."""
    kind, wanted = array.type, plain_type(array.type)
    if wanted == kind:
        return array
    if isinstance(kind, pa.UuidType):
        return _uuid_texts(array.storage)
    if isinstance(kind, pa.Bool8Type):
        return array.storage.cast(wanted)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_array(array.storage)
    if pa.types.is_dictionary(kind):
        return plain_array(array.dictionary).take(array.indices)
    if pa.types.is_struct(kind):
        parts = [plain_array(array.field(place)) for place in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(wanted), mask=array.is_null())
    if pa.types.is_map(kind):
        starts = array.offsets.to_numpy()
        keys, items = (plain_array(part.slice(starts[0], starts[-1] - starts[0])) for part in (array.keys, array.items))
        return pa.MapArray.from_arrays(pa.array(starts - starts[0]), keys, items, type=wanted, mask=array.is_null())
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(plain_array(values), type=wanted, mask=array.is_null())
    if pa.types.is_list(wanted) or pa.types.is_large_list(wanted):
        offsets = np.append(0, np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy()))
        made, width = (pa.ListArray, np.int32) if pa.types.is_list(wanted) else (pa.LargeListArray, np.int64)
        values = plain_array(array.flatten())  # without values that a null list may hide
        return made.from_arrays(pa.array(offsets.astype(width)), values, type=wanted, mask=array.is_null())
    return array.cast(wanted)


def binary_to_text(array: pa.Array) -> pa.Array:
    """Bytes as strings."""
    try:
        return array.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:  # not UTF-8: the bytes as \x escapes, so that nothing is lost
        return pa.array([None if v is None else v.decode("utf-8", "backslashreplace") for v in array.to_pylist()])


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with values of `plain_type`."""
    wanted = plain_type(column.type)
    return column if wanted == column.type else pa.chunked_array(map(plain_array, column.chunks), wanted)


def plain_table(table: pa.Table) -> pa.Table:
    """A table whose columns have plain types."""
    for place, field in enumerate(table.schema):
        if plain_type(field.type) != field.type:
            table = table.set_column(place, field.name, plain_column(table.column(place)))
    return table


def _uuid_texts(array: pa.FixedSizeBinaryArray) -> pa.Array:
    """UUIDs of 16 bytes each as strings such as 00000000-0000-0000-0000-000000000001."""
    known = array.drop_null()
    octets = np.frombuffer(known.buffers()[1] or b"", np.uint8)[16 * known.offset :][: 16 * len(known)].reshape(-1, 16)
    texts = np.full((len(known), _UUID_WIDTH), ord("-"), np.uint8)
    places = np.delete(np.arange(_UUID_WIDTH), _UUID_DASHES)
    texts[:, places[0::2]], texts[:, places[1::2]] = _HEX[octets >> 4], _HEX[octets & 15]
    made = pa.StringArray.from_buffers(
        len(known), pa.py_buffer(np.arange(len(known) + 1, dtype=np.int32) * _UUID_WIDTH), pa.py_buffer(texts)
    )
    rows = np.cumsum(array.is_valid().to_numpy(zero_copy_only=False)) - 1
    return made.take(pa.array(rows, mask=array.is_null().to_numpy(zero_copy_only=False)))
