"""Tables of every kind come in as Arrow, and go out as the kind that came in."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ctxrec.core.errors import UserError
from ctxrec.python_api.frames import from_arrow, kind_of, to_arrow

ROWS = {"user_id": ["a", "b"], "n": [1, 2]}
TABLES = {"pandas": pd.DataFrame(ROWS), "polars": pl.DataFrame(ROWS), "arrow": pa.table(ROWS)}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_goes_there_and_back(kind):
    arrow = to_arrow(TABLES[kind], what="interactions")
    assert kind_of(TABLES[kind]) == kind and arrow.to_pydict() == ROWS
    again = from_arrow(arrow, kind)
    assert type(again) is type(TABLES[kind]) and to_arrow(again, what="again").to_pydict() == ROWS


def test_lazy_tables_named_indexes_and_streams_are_tables_too():
    assert to_arrow(TABLES["polars"].lazy(), what="x").to_pydict() == ROWS
    assert to_arrow(TABLES["pandas"].set_index("user_id"), what="x").to_pydict() == ROWS
    assert to_arrow(TABLES["pandas"][TABLES["pandas"].n > 1], what="x").to_pydict() == {"user_id": ["b"], "n": [2]}
    assert to_arrow(pa.RecordBatch.from_pydict(ROWS), what="x").to_pydict() == ROWS
    reader = pa.RecordBatchReader.from_batches(TABLES["arrow"].schema, TABLES["arrow"].to_batches())
    assert to_arrow(reader, what="x").to_pydict() == ROWS


def test_what_is_no_table_is_named():
    with pytest.raises(UserError, match=r"items is a list; expected a pandas, polars or pyarrow table"):
        to_arrow([1], what="items")
    with pytest.raises(UserError, match=r"items has two columns 'a'"):
        to_arrow(pd.DataFrame([[1, 2]], columns=["a", "a"]), what="items")
    with pytest.raises(UserError, match=r"a column whose values are of several types.* column b .*expected one type"):
        to_arrow(pd.DataFrame({"b": [1, "x"]}), what="items")


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (pd.DataFrame({0: [1], "0": [2]}), "0"),
        (pd.DataFrame(ROWS).set_index("n", drop=False), "n"),
        (pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"]), "x"),
    ],
)
def test_a_name_that_stands_twice_is_named(table, name):
    with pytest.raises(UserError, match=f"items has two columns '{name}'; expected each name once"):
        to_arrow(table, what="items")


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"b": pd.arrays.SparseArray([0, 1])}),
        pd.DataFrame({"b": [1j]}),
        pl.DataFrame({"b": pl.Series([object()], dtype=pl.Object)}),  # was read as places in memory
        pl.DataFrame({"b": pl.Series([1], dtype=pl.Int128)}),
    ],
)
def test_a_column_that_arrow_cannot_hold_is_a_users_mistake(table):
    with pytest.raises(UserError, match="items has a column whose values are of several types, or of one that Arrow"):
        to_arrow(table, what="items")
