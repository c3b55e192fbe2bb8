"""Attributes of items that diversity and freshness need: values of categorical columns as codes, and birth times.

Both are owned by `ctxrec.retrieval.live_catalogue.LiveCatalogue`, which gives them the rows of later items.

Legend: I items, of the bundle and added ones; M most values of an item in a column.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import US, Events
from ctxrec.retrieval.slate.mmr import NO_VALUE

_LAST_YEAR = 10_000  # numbers below are years, and others epoch times
_MILLISECONDS, _MICROSECONDS = 1e11, 1e14  # from which on an epoch time is one of these
_YEAR_US = 365.2425 * 86_400 * US


class CategoricalCodes:
    """Codes of the values that items have in a categorical column.

    Attributes:
        codes_IM: int32, filled up with `NO_VALUE`.

    Raises:
        UserError: the catalogue has no such column.
    """

    def __init__(self, items: pa.Table, spec: ItemsSpec | None, column: str, *, option: str):
        columns = () if spec is None else spec.categorical
        if column not in columns:
            valid = ", ".join(columns) or "none: the catalogue has no such column"
            raise UserError(f"{option}: unknown column {column!r}; valid categorical columns are {valid}")
        self._column = schema.category_column(column)
        self._codes: dict[str, int] = {}
        self.codes_IM = self._coded(items)

    def put(self, places: np.ndarray, items: pa.Table) -> None:
        """Take over rows at these positions, which may lie behind the last one; of a position that comes twice the last row
        counts."""
        rows = self._coded(items)
        self.codes_IM = _with_rows(self.codes_IM, places, rows, NO_VALUE)

    def _coded(self, items: pa.Table) -> np.ndarray:
        column = items.column(self._column).combine_chunks()
        values = column.flatten().dictionary_encode()
        names = values.dictionary.to_pylist()
        own = np.array([self._codes.setdefault(name, len(self._codes)) for name in names] + [NO_VALUE], np.int32)
        codes = own[values.indices.fill_null(len(names)).to_numpy().astype(np.int64)]
        owners = column.value_parent_indices().to_numpy()
        lengths = np.bincount(owners, minlength=len(column))
        first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        made = np.full((len(column), max(int(lengths.max(initial=0)), 1)), NO_VALUE, np.int32)
        made[owners, np.arange(len(owners)) - first[owners]] = codes
        return made


class ItemBirthTimes:
    """When each item was born, in microseconds since 1970; NaN where that is not known.

    Args:
        items: the bundle's item table.
        spec: names the columns.
        date_column: a numeric column with years or epoch times. Empty: an item is born with its first event, and an
            item that came after training is always new.
        events: the events of the bundle's histories.

    Raises:
        UserError: the catalogue has no such column.
    """

    def __init__(self, items: pa.Table, spec: ItemsSpec | None, date_column: str, events: Events):
        columns = () if spec is None else spec.numeric
        if date_column and date_column not in columns:
            valid = ", ".join(columns) or "none: the catalogue has no such column"
            raise UserError(f"diversity.date_column: unknown column {date_column!r}; valid numeric columns are {valid}")
        self._column = schema.numeric_column(date_column) if date_column else None
        if self._column is not None:
            self.born_I = _as_times(items.column(self._column).to_numpy())
        else:
            first = np.full(items.num_rows, np.iinfo(np.int64).max)
            np.minimum.at(first, events.items, events.times)
            self.born_I = np.where(first == np.iinfo(np.int64).max, np.nan, first.astype(np.float64))

    def put(self, places: np.ndarray, items: pa.Table) -> None:
        """Take over rows at these positions, which may lie behind the last one; of a position that comes twice the last row
        counts."""
        if self._column is not None:
            born = _as_times(items.column(self._column).to_numpy())
        else:  # the log knows when those of the bundle came, and later ones are always new
            known = np.minimum(places, len(self.born_I) - 1)
            born = np.where(places < len(self.born_I), self.born_I[known], np.inf)
        self.born_I = _with_rows(self.born_I[:, None], places, born[:, None], np.nan)[:, 0]

    def days(self, positions: np.ndarray, times_us: np.ndarray) -> np.ndarray:
        """Ages of items [N, P] at the times of N requests, in days, 0 or more; NaN where not known.

        Nothing is known of an item whose first event comes after the request.
        """
        born = self.born_I[positions]
        age = (times_us[:, None] - born) / (86_400 * US)
        if self._column is None:
            age = np.where(np.isfinite(born) & (age < 0), np.nan, age)
        return np.maximum(age, 0)


def _as_times(numbers: np.ndarray) -> np.ndarray:
    """Microseconds since 1970 of years (their first day) or epoch times of any unit, float64."""
    numbers = numbers.astype(np.float64)
    with np.errstate(invalid="ignore"):
        years = (numbers - 1970) * _YEAR_US
        unit = np.where(numbers >= _MICROSECONDS, 1, np.where(numbers >= _MILLISECONDS, 1e3, US))
        return np.where(numbers < _LAST_YEAR, years, numbers * unit)


def _with_rows(table: np.ndarray, places: np.ndarray, rows: np.ndarray, filling: float) -> np.ndarray:
    """`table` with rows in these places, grown in both directions where that is needed."""
    height = max(len(table), int(places.max(initial=-1)) + 1)
    made = np.full((height, max(table.shape[1], rows.shape[1])), filling, table.dtype)
    made[: len(table), : table.shape[1]] = table
    made[places] = filling
    made[places, : rows.shape[1]] = rows
    return made
