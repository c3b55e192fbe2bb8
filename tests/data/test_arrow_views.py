"""Columns of views and extension types, alone and inside of other types, become columns that all kernels take."""

from __future__ import annotations

import decimal
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.data.arrow_views import plain_array, plain_table, plain_type
from ctxrec.data.parsing import as_lists, encode, to_numbers, to_text

KNOWN = [uuid.UUID(int=7**40 + n) for n in range(5)]
IDS = pa.array([*KNOWN[:2], None, *KNOWN[3:]], pa.uuid())
STARTS = pa.array([0, 1, None, 3, 5], pa.int32())  # lists of one, two, none and two
LISTS = pa.ListArray.from_arrays(STARTS, IDS)
COLUMNS = {
    "alone": IDS,
    "list": LISTS,
    "large_list": pa.LargeListArray.from_arrays(STARTS.cast(pa.int64()), IDS),
    "fixed_size_list": pa.FixedSizeListArray.from_arrays(IDS.slice(1), 2, mask=pa.array([False, True])),
    "list_view": pa.ListViewArray.from_arrays([2, 0, 1], [2, 0, 3], IDS),
    "list of lists": pa.ListArray.from_arrays(pa.array([0, 1, None, 4], pa.int32()), LISTS),
    "struct": pa.StructArray.from_arrays([IDS, LISTS.take(pa.array([0, 1, 2, 3, 0]))], ["a", "b"]),
    "map": pa.MapArray.from_arrays(STARTS, pa.array(list("abcde")), IDS),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([4, 1, None, 2], pa.int32()), IDS),
    "nulls": pa.nulls(2, pa.uuid()),
    "a list of text views": pa.array([["x"], None], pa.list_(pa.string())).cast(pa.list_(pa.string_view())),
}


def spelled(value: Any) -> Any:
    """A value with texts in place of UUIDs."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return {key: spelled(inner) for key, inner in value.items()}
    return type(value)(map(spelled, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("kind", COLUMNS)
def test_uuids_are_texts_wherever_they_stand(kind):
    column = COLUMNS[kind]
    for part in (column, column.slice(1), column.slice(1, 1), column.slice(0, 0)):
        plain = plain_array(part)
        plain.validate(full=True)
        assert plain.type == plain_type(part.type)
        assert plain.to_pylist() == spelled(part.to_pylist())


def test_a_column_of_extensions_reads_as_its_values_do(tmp_path):
    assert to_text(IDS).to_pylist() == encode(IDS).to_arrow().to_pylist() == spelled(IDS.to_pylist())
    assert as_lists(pa.chunked_array([LISTS, LISTS.slice(1)])).to_pylist() == spelled(
        LISTS.to_pylist() + LISTS.slice(1).to_pylist()
    )
    truth = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
    assert to_text(truth).to_pylist() == to_text(pa.array([True, False, None])).to_pylist()
    pq.write_table(pa.table({"x": LISTS, "y": truth.take(pa.array([0, 1, 2, 0]))}), tmp_path / "t.parquet")
    table = plain_table(pq.read_table(tmp_path / "t.parquet"))
    assert table.to_pydict() == {"x": spelled(LISTS.to_pylist()), "y": [True, False, None, True]}


@pytest.mark.parametrize("kind", [pa.decimal32(5, 2), pa.decimal64(15, 2)])
def test_narrow_decimals_are_read_as_wide_ones(kind):
    """Many kernels of Arrow take none of them, and prepare ended with a traceback."""
    numbers = pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.00")], kind)
    assert encode(numbers).to_arrow().to_pylist() == ["1.5", None, "2"]
    lists = pa.array([[decimal.Decimal("1.50")], None], pa.list_(kind))
    assert plain_array(lists).type == pa.list_(pa.decimal128(kind.precision, kind.scale))
    assert to_numbers(numbers)[0][[0, 2]].tolist() == [1.5, 2.0]
