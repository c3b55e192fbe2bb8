"""Rules on item columns, worked by hand and against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from catalogues import catalogue_of, with_ids

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.retrieval import filters
from ctxrec.retrieval.filters import ColumnRule, ItemFilter

KINDS = [["a", "b"], ["b"], [], None, ["c"], ["a"]]
PRICES = [1.0, 19.99, None, 3.0, 0.0, 16777216.0]
SPEC = ItemsSpec(path="items", categorical=("kind",), numeric=("price",))


def made() -> ItemFilter:
    columns = {
        schema.category_column("kind"): pa.array(KINDS, pa.list_(pa.string())),
        schema.numeric_column("price"): pa.array(PRICES, pa.float64()),
    }
    return ItemFilter(catalogue_of(with_ids(columns, [f"i{n}" for n in range(len(KINDS))]), SPEC))


@pytest.mark.parametrize(
    ("rules", "passing"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"kind": ColumnRule(any=["a"])}, [0, 5]),
        ({"kind": ColumnRule(any=["a", "c", "no such"])}, [0, 4, 5]),
        ({"kind": ColumnRule(any=[])}, []),
        ({"kind": ColumnRule(none=["b"])}, [2, 3, 4, 5]),
        ({"kind": ColumnRule(none=[])}, [0, 1, 2, 3, 4, 5]),
        ({"kind": ColumnRule(any=["a", "b"], none=["a"])}, [1]),
        ({"price": ColumnRule(min=1)}, [0, 1, 3, 5]),
        ({"price": ColumnRule(max=0)}, [4]),
        ({"price": ColumnRule(min=16777217)}, []),  # a neighbour that float32 cannot tell from 16777216
        ({"price": ColumnRule(min=19.9900001, max=20)}, []),
        ({"price": ColumnRule(min=19.99, max=19.99)}, [1]),
        ({"price": ColumnRule(min=5, max=4)}, []),
        ({"price": ColumnRule(min=-1e300, max=1e300)}, [0, 1, 3, 4, 5]),
        ({"price": ColumnRule(min=0), "kind": ColumnRule(none=["b"])}, [3, 4, 5]),
    ],
)
def test_rules(rules, passing):
    items = made()
    for _ in range(2):  # the second time from what is kept
        assert np.flatnonzero(items.mask(rules)).tolist() == passing


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"colour": ColumnRule(any=["red"])}, "unknown column 'colour'; valid columns are kind, price"),
        ({"kind": ColumnRule(min=1)}, "'kind' is categorical; expected any or none"),
        ({"price": ColumnRule(any=["1"])}, "'price' is numeric; expected min or max"),
    ],
)
def test_a_rule_that_does_not_fit_is_named(rules, says):
    with pytest.raises(UserError, match=says):
        made().mask(rules)


def test_many_rules_keep_few_masks(monkeypatch):
    monkeypatch.setattr("ctxrec.retrieval.filters._CACHED_BYTES", 3 * (6 + 400))  # three masks of six items
    items = made()
    first = items.mask({"price": ColumnRule(min=0)})
    assert items.mask({"price": ColumnRule(min=0)}) is first
    for n in range(1, 6):
        items.mask({"price": ColumnRule(min=n)})
    assert len(items._masks) == 3
    assert items.mask({"price": ColumnRule(min=0)}) is not first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = True


def test_kept_masks_are_bounded_with_their_keys(monkeypatch):
    """A request may bring a filter of 1 MB; what is kept of it is a digest."""
    monkeypatch.setattr(filters, "_CACHED_BYTES", 50_000)
    spec = ItemsSpec(path="i", categorical=("kind",))
    column = pa.array([["a"], ["b"]], pa.list_(pa.string()))
    made = ItemFilter(catalogue_of(with_ids({schema.category_column("kind"): column}, ["x", "y"]), spec))
    for n in range(300):
        made.mask({"kind": ColumnRule(any=[f"{n}" + "x" * 10_000])})
    assert made.num_bytes <= 50_000 and 1 < len(made._masks) < 200
    assert sum(len(key) + mask.nbytes for key, mask in made._masks.items()) <= made.num_bytes


def test_which_values_and_numbers_the_items_have():
    catalogue = catalogue_of(
        with_ids(
            {
                schema.category_column("kind"): pa.array(KINDS, pa.list_(pa.string())),
                schema.numeric_column("price"): pa.array([None] * 6, pa.float64()),
            },
            [f"i{n}" for n in range(6)],
        ),
        SPEC,
    )
    found = ItemFilter(catalogue)
    assert found.has_value("kind", "a") and not found.has_value("kind", "z") and found.range_of("price") is None
    assert made().range_of("price") == (0.0, 16777216.0)
