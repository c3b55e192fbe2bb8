"""Filters, against the plainest Python that says the same, on tables and rules that nobody thought of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from catalogues import catalogue_of, encoded, with_ids

pytest.importorskip("hypothesis", reason="hypothesis is not installed (pip install hypothesis)")
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.retrieval.filters import ColumnRule, ItemFilter

VALUES = st.sampled_from(["a", "b", "c", "", "A", "a,b", "\u00e9"])
NUMBERS = st.none() | st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, 3.4e38])
ROWS = st.lists(st.tuples(st.none() | st.lists(VALUES, max_size=3), NUMBERS), min_size=1, max_size=12)
BOUND = st.none() | st.floats(-4, 4) | st.sampled_from([0.1, 1.0, 1e300, -1e300])
KIND = st.builds(
    ColumnRule, any=st.none() | st.lists(VALUES, max_size=3), none=st.none() | st.lists(VALUES, max_size=3)
)
PRICE = st.builds(ColumnRule, min=BOUND, max=BOUND)
SPEC = ItemsSpec(path="", categorical=("kind",), numeric=("price",))


def table(rows, places) -> pa.Table:
    return with_ids(
        {
            schema.category_column("kind"): pa.array([kinds for kinds, _ in rows], pa.list_(pa.string())),
            schema.numeric_column("price"): pa.array([price for _, price in rows], pa.float64()),
        },
        [f"i{n}" for n in places],
    )


def passes(kinds, price, kind: ColumnRule, bounds: ColumnRule) -> bool:
    kinds = kinds or []
    if kind.any is not None and not any(value in kind.any for value in kinds):
        return False
    if kind.none is not None and any(value in kind.none for value in kinds):
        return False
    with np.errstate(over="ignore"):
        if bounds.min is not None and not (price is not None and price >= bounds.min):
            return False
        return bounds.max is None or (price is not None and price <= bounds.max)


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, later=ROWS, kind=KIND, bounds=PRICE, data=st.data())
def test_a_mask_has_the_items_that_pass_one_by_one(rows, later, kind, bounds, data):
    catalogue = catalogue_of(table(rows, range(len(rows))), SPEC)
    made = ItemFilter(catalogue)
    rules = {"kind": kind, "price": bounds}
    assert made.mask(rules).tolist() == [passes(*row, kind, bounds) for row in rows]
    # Changed and new items come in the place of old ones and behind them.
    changed = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, max_size=min(len(rows), len(later) - 1)))
    places = changed + list(range(len(rows), len(rows) + len(later) - len(changed)))
    catalogue.put(encoded(table(later, places), len(rows)))
    whole = dict(enumerate(rows)) | dict(zip(places, later, strict=True))
    assert made.mask(rules).tolist() == [passes(*whole[n], kind, bounds) for n in range(len(whole))]
    assert made.mask({"kind": kind}) is made.mask({"kind": kind}), "a mask that comes again is kept"
