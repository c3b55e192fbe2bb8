"""What people read of an item: its title and the columns of the item file, also of items that came later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec


class ItemCards:
    """Rows of the catalogue by position.

    Args:
        items: the bundle's item table.
        spec: names the columns.
    """

    def __init__(self, items: pa.Table, spec: ItemsSpec | None):
        categorical, numeric = (spec.categorical, spec.numeric) if spec is not None else ((), ())
        self._columns = {schema.ITEM_ID: "item_id", schema.ITEM_TITLE: "title"}
        self._columns |= {schema.category_column(name): name for name in categorical}
        self._columns |= {schema.numeric_column(name): name for name in numeric}
        self._items = items.select(list(self._columns))
        self._later: dict[int, dict[str, Any]] = {}

    def put(self, places: np.ndarray, items: pa.Table) -> None:
        """Take over rows at these positions, which may lie behind the last one."""
        self._later |= dict(zip(places.tolist(), self._rows(items.select(list(self._columns))), strict=True))

    def cards(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """`item_id`, `title` and every column of each item; lists for categorical columns, None for what is missing."""
        bundled = [p for p in positions if p not in self._later]
        rows = dict(zip(bundled, self._rows(self._items.take(pa.array(bundled, pa.int64()))), strict=True))
        return [self._later.get(p) or rows[p] for p in positions]

    def _rows(self, table: pa.Table) -> list[dict[str, Any]]:
        # A column of the file may be called like the id or the title; these two stay what they are.
        return [
            {name: row[column] for column, name in reversed(list(self._columns.items()))} for row in table.to_pylist()
        ]
