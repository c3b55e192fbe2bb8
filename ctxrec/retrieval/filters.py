"""Filters: rules on item columns as masks of the catalogue, by values that are wanted or not and by ranges of numbers.

Legend: I items, of the bundle and added ones.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.parsing import category_text
from ctxrec.retrieval.live_catalogue import LiveCatalogue

_CACHED_BYTES = 64 << 20  # of masks, with their keys, that are kept for the next request with the same rules
_OVERHEAD_BYTES = 400  # of a mask besides its items: its key, a digest, and its place in the cache


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """What an item must have in a column; a part that is None is not checked.

    any: at least one of these values. none: not one of these. min, max: a number within these, both included.
    """

    any: Sequence[str] | None = None
    none: Sequence[str] | None = None
    min: float | None = None
    max: float | None = None

    def key(self) -> tuple:
        """The same for rules that let the same items pass."""
        values = (None if names is None else tuple(sorted(set(names))) for names in (self.any, self.none))
        return (*values, self.min, self.max)


class ItemFilter:
    """Computes which items of a catalogue pass rules, and keeps the masks for later requests with the same rules."""

    def __init__(self, catalogue: LiveCatalogue):
        self._catalogue, items, spec = catalogue, catalogue.bundled, catalogue.spec
        categorical, numeric = (spec.categorical, spec.numeric) if spec is not None else ((), ())
        self._values = {name: _positions_by_value(items, name) for name in categorical}
        self._numbers = {name: items.column(schema.numeric_column(name)).to_numpy() for name in numeric}
        self._columns = {name: schema.category_column(name) for name in categorical}
        self._columns |= {name: schema.numeric_column(name) for name in numeric if name not in categorical}
        self._masks: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._version = catalogue.version  # of the catalogue that the kept masks are for
        self._later_values: tuple[Any, dict[str, set[Any]]] = (None, {})  # and the version that they are of

    def mask(self, rules: Mapping[str, ColumnRule]) -> np.ndarray:
        """The items that pass every rule: bool [I]; not to be changed.

        A value that no item has is no error; an item without a number is in no range.

        Raises:
            UserError: a column is unknown, or a rule does not fit its kind; names it and what is valid.
        """
        key = _digest(rules)
        num_items = len(self._catalogue)
        if self._version != self._catalogue.version:
            self._masks.clear()
            self._version = self._catalogue.version
        found = self._masks.pop(key, None)
        if found is None:
            found = np.ones(num_items, bool)
            for column, rule in rules.items():
                self._apply(found[: self._catalogue.num_bundled], column, rule)
            for place, row in self._catalogue.later_rows.items():
                found[place] = all(_passes(row[self._columns[column]], rule) for column, rule in rules.items())
            found.flags.writeable = False
        self._masks[key] = found
        if self.num_bytes > _CACHED_BYTES and len(self._masks) > 1:
            self._masks.popitem(last=False)
        return found

    def has_value(self, column: str, value: str) -> bool:
        """Whether an item has a value in a categorical column."""
        return any(text in self._values[column] or text in self._later[column] for text in _spellings([value]))

    def range_of(self, column: str) -> tuple[float, float] | None:
        """The least and the greatest number of a numeric column; None where no item has one."""
        numbers = self._ends.get(column, ()) + tuple(self._later[column])
        return (min(numbers), max(numbers)) if numbers else None

    @cached_property
    def _ends(self) -> dict[str, tuple[float, ...]]:
        """The least and the greatest number of each numeric column of the bundle; none where it has no number."""
        known = {name: numbers[~np.isnan(numbers)] for name, numbers in self._numbers.items()}
        return {name: (float(n.min()), float(n.max())) if len(n) else () for name, n in known.items()}

    @property
    def _later(self) -> dict[str, set[Any]]:
        """The values of each column in the rows that came after the bundle."""
        version, found = self._later_values
        if version != self._catalogue.version:
            found = {name: set() for name in self._columns}
            for row in self._catalogue.later_rows.values():
                for name, column in self._columns.items():
                    value = row[column]
                    found[name] |= set(value) if isinstance(value, list) else {value} - {None}
            self._later_values = (self._catalogue.version, found)
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes of all kept masks, with their keys."""
        return len(self._masks) * (len(self._catalogue) + _OVERHEAD_BYTES)

    def _apply(self, mask: np.ndarray, column: str, rule: ColumnRule) -> None:
        ranged = rule.min is not None or rule.max is not None
        if column in self._values:
            if ranged:
                raise _mistake(column, f"column {column!r} is categorical; expected any or none, not min or max")
            if rule.any is not None:
                mask &= self._having(column, rule.any)
            if rule.none is not None:
                mask &= ~self._having(column, rule.none)
        elif column in self._numbers:
            if rule.any is not None or rule.none is not None:
                raise _mistake(column, f"column {column!r} is numeric; expected min or max, not values")
            with np.errstate(invalid="ignore"):  # NaN, an item without a number, is in no range
                if rule.min is not None:
                    mask &= self._numbers[column] >= rule.min
                if rule.max is not None:
                    mask &= self._numbers[column] <= rule.max
        else:
            valid = ", ".join([*self._values, *self._numbers]) or "none: the catalogue has no such column"
            raise _mistake(column, f"unknown column {column!r}; valid columns are {valid}")

    def _having(self, column: str, values: Sequence[str]) -> np.ndarray:
        mask = np.zeros(self._catalogue.num_bundled, bool)
        for value in _spellings(values):
            mask[self._values[column].get(value, [])] = True
        return mask


def _mistake(column: str, message: str) -> UserError:
    return UserError(f"filter: {message}").at("filter", column)


def _digest(rules: Mapping[str, ColumnRule]) -> bytes:
    """A key for rules of any length; a few bytes, as a request may bring 1 MB of them."""
    text = repr(sorted((column, rule.key()) for column, rule in rules.items()))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def _spellings(values: Sequence[str]) -> set[str]:
    """Values as they are given, and in the form that `prepare` gives them."""
    return {*values, *(text for value in values if (text := category_text(value)) is not None)}


def _passes(value: Any, rule: ColumnRule) -> bool:
    """`ItemFilter.mask` for one item."""
    values = value if isinstance(value, list) else []
    if rule.any is not None and not set(values) & _spellings(rule.any):
        return False
    if rule.none is not None and set(values) & _spellings(rule.none):
        return False
    if rule.min is None and rule.max is None:
        return True
    if value is None:
        return False
    return (rule.min is None or rule.min <= value) and (rule.max is None or value <= rule.max)


def _positions_by_value(items: pa.Table, name: str) -> dict[str, np.ndarray]:
    """For each value of a categorical column the positions of the items that have it."""
    column = items.column(schema.category_column(name)).combine_chunks()
    values = column.flatten().dictionary_encode()
    codes = values.indices.fill_null(len(values.dictionary)).to_numpy()
    owners = column.value_parent_indices().to_numpy()
    order = np.argsort(codes, kind="stable")
    stops = np.searchsorted(codes[order], np.arange(len(values.dictionary) + 1))
    return {
        value: owners[order[start:stop]]
        for value, start, stop in zip(values.dictionary.to_pylist(), stops[:-1], stops[1:], strict=True)
    }
