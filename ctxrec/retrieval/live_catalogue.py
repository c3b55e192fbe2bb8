"""The catalogue that is recommended from: the items of a bundle, and those that were added or changed later.

`LiveCatalogue` owns everything that belongs to an item by its position: ids, search vectors, columns, birth times and
who may be recommended. All other classes read from it, and `put` changes all of it as one.

Legend: I items of the bundle, J items added later, D width of the search vectors, n rows of one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.data.events import Events
from ctxrec.index.exact import Allowed, ByColumn
from ctxrec.retrieval.read_write_lock import ReadWriteLock
from ctxrec.retrieval.slate.item_attributes import CategoricalCodes, ItemBirthTimes

_SPARE_ROWS = 1024  # by which the matrix of vectors grows at least


@dataclass(frozen=True)
class EncodedItems:
    """Rows of items that are ready to be put into a catalogue (`ctxrec.retrieval.item_encoder`).

    Attributes:
        table: n rows of `schema.items_schema`; of two rows with one id the last one counts.
        vectors: float32 [n, D], the search vectors.
        proxy_weights: float32 [n, I], the bundle's items whose co-occurrences an added item takes, with weights that
            sum to 1; rows of items that the bundle has are empty.
    """

    table: pa.Table
    vectors: np.ndarray
    proxy_weights: sp.csr_array


# Attributes that a change replaces as a whole, so that the earlier value can be put back.
_REPLACED = ("vectors", "_matrix", "alive", "proxy_weights", "fresh", "stale", "version", "_all_alive")


@dataclass(frozen=True)
class _State:
    """The catalogue before a change, as far as the change can touch it."""

    num_items: int
    places: np.ndarray
    rows_of_vectors: np.ndarray
    rows: dict[int, dict[str, Any] | None]
    changed: np.ndarray
    arrays: dict[str, Any]
    codes: dict[str, np.ndarray]
    births: dict[str, np.ndarray]


class LiveCatalogue:
    """Ids, vectors, columns and birth times of all items, which change as one.

    An item keeps its position for good: added items come behind those of the bundle, and a removed item stays where
    it is, because histories may hold it. Use what belongs together inside `reading`; `put` and `remove` wait until
    no thread is inside, and no thread sees half of a change.

    Args:
        items: the bundle's item table (`schema.items_schema`, with or without the text column).
        spec: names the columns; None where the data set has no item file.
        vectors: float32 [I, D], the search vectors of the bundle's items; they are copied before the first change.
        events: the bundle's histories, whose first event of an item is its birth where no column says it.

    Attributes:
        ids: item ids by position.
        position: positions by item id, also of removed items.
        vectors: float32 [I + J, D].
        proxy_weights: float32 [J, I]; see `EncodedItems`.
        alive: bool [I + J], which items may be recommended.
        fresh: positions in rising order of what an index of the bundle lacks: added and changed items.
        stale: positions in rising order of what such an index must not return: changed and removed items.
        version: a number that differs after every change.
    """

    def __init__(self, items: pa.Table, spec: ItemsSpec | None, vectors: np.ndarray, events: Events):
        self.bundled, self.spec, self._events = items, spec, events
        self.ids: list[str] = items.column(schema.ITEM_ID).to_pylist()
        self.position: dict[str, int] = {item: n for n, item in enumerate(self.ids)}
        self.num_bundled = len(self.ids)
        self.vectors = vectors
        self.proxy_weights = sp.csr_array((0, self.num_bundled), dtype=np.float32)
        self.alive = np.ones(self.num_bundled, bool)
        self.fresh = self.stale = np.zeros(0, np.int64)
        self.version = 0
        self._matrix: np.ndarray | None = None  # `vectors` and spare rows, from the first change on
        self._changed = np.zeros(self.num_bundled, bool)
        self._all_alive = True
        self._rows: dict[int, dict[str, Any]] = {}
        self._codes: dict[str, CategoricalCodes] = {}
        self._births: dict[str, ItemBirthTimes] = {}
        self._by_column: ByColumn | None = None
        self._lock = ReadWriteLock()
        categorical, numeric = (spec.categorical, spec.numeric) if spec is not None else ((), ())
        self._names = {schema.ITEM_ID: "item_id", schema.ITEM_TITLE: "title"}
        self._names |= {schema.category_column(name): name for name in categorical}
        self._names |= {schema.numeric_column(name): name for name in numeric}

    def __len__(self) -> int:
        return len(self.ids)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the catalogue as it is for a while; may be entered again by the same thread."""
        with self._lock.reading():
            yield

    def put(self, items: EncodedItems) -> np.ndarray:
        """Add items, and replace those of the same id; returns their positions, int64 [n].

        The catalogue is as it was where this raises anything.

        Raises:
            ValueError: a vector is missing or not finite, an id or a column is missing, or proxies have another shape.
        """
        with self._lock.writing():
            return self._put(items)

    def remove(self, item_ids: Iterable[str]) -> None:
        """Take items out of what may be recommended; ids that the catalogue lacks are ignored."""
        with self._lock.writing():
            self._remove(item_ids)

    def update(self, items: EncodedItems | None, removed: Iterable[str] = ()) -> None:
        """`put` and then `remove`, as one change."""
        gone = list(dict.fromkeys(removed))  # ids that cannot be looked up raise before anything changes
        with self._lock.writing():
            if items is not None:
                self._put(items)
            self._remove(gone)

    def _put(self, items: EncodedItems) -> np.ndarray:
        ids = self._checked_ids(items)
        before = self._state(self.positions(ids))
        try:
            return self._put_rows(ids, items)
        except BaseException:
            self._restore(before)
            raise

    def _checked_ids(self, items: EncodedItems) -> list[str]:
        """Ids of items that can be put; all that is wrong with them is found before anything changes."""
        missing = [name for name in self._names if name not in items.table.column_names]
        if missing:
            raise ValueError(f"items to put lack the columns {', '.join(missing)}")
        ids = items.table.column(schema.ITEM_ID).to_pylist()
        if not all(isinstance(item, str) for item in ids):
            raise ValueError("items to put have an id that is missing or no text")
        shape, proxies = (len(ids), self.vectors.shape[1]), (len(ids), self.num_bundled)
        if items.vectors.shape != shape or not np.isfinite(items.vectors).all():
            raise ValueError(f"items to put have vectors {items.vectors.shape}; expected finite ones, {shape}")
        if items.proxy_weights.shape != proxies:
            raise ValueError(f"items to put have proxies {items.proxy_weights.shape}; expected {proxies}")
        return ids

    def _state(self, places: np.ndarray) -> _State:
        """What `_restore` needs to undo a change of these positions, int64 [known ids]."""
        return _State(
            num_items=len(self.ids),
            places=places,
            rows_of_vectors=self.vectors[places].copy(),
            rows={p: self._rows.get(p) for p in places.tolist()},
            changed=self._changed.copy(),
            arrays={name: getattr(self, name) for name in _REPLACED},
            codes={name: codes.codes_IM for name, codes in self._codes.items()},
            births={name: births.born_I for name, births in self._births.items()},
        )

    def _restore(self, state: _State) -> None:
        """Undo a change that failed half way."""
        for item in self.ids[state.num_items :]:
            del self.position[item]
        del self.ids[state.num_items :]
        for name, value in state.arrays.items():
            setattr(self, name, value)
        if self._matrix is not None:
            self._matrix[state.places] = state.rows_of_vectors
        self._by_column = None  # made anew when it is asked for
        self._changed = state.changed
        self._rows = {p: row for p, row in self._rows.items() if p < state.num_items and p not in state.rows}
        self._rows |= {p: row for p, row in state.rows.items() if row is not None}
        for name, codes_IM in state.codes.items():
            self._codes[name].codes_IM = codes_IM
        for name, born_I in state.births.items():
            self._births[name].born_I = born_I

    def _put_rows(self, ids: list[str], items: EncodedItems) -> np.ndarray:
        added = [item for item in dict.fromkeys(ids) if item not in self.position]
        matrix = self._make_room(len(self.ids) + len(added))
        for item in added:
            self.position[item] = len(self.ids)
            self.ids.append(item)
        places = self.positions(ids)
        matrix[places] = items.vectors
        self.vectors = matrix[: len(self.ids)]
        if self._by_column is not None:
            self._by_column.put(self.vectors, places)
        self.alive = np.concatenate([self.alive, np.ones(len(added), bool)])
        self.alive[places] = True
        self._changed[places[places < self.num_bundled]] = True
        self._put_proxies(places, items.proxy_weights, len(added))
        self._rows |= dict(zip(places.tolist(), items.table.select(list(self._names)).to_pylist(), strict=True))
        for codes in self._codes.values():
            codes.put(places, items.table)
        for births in self._births.values():
            births.put(places, items.table)
        self._note_change()
        return places

    def _remove(self, item_ids: Iterable[str]) -> None:
        self.alive[self.positions(item_ids)] = False
        self._note_change()

    def positions(self, item_ids: Iterable[str]) -> np.ndarray:
        """Positions of those ids that the catalogue has: int64 [known ids]; the others are left out."""
        return np.array([self.position[i] for i in item_ids if i in self.position], np.int64)

    def has(self, item_id: str) -> bool:
        """Whether the item can be recommended."""
        place = self.position.get(item_id)
        return place is not None and bool(self.alive[place])

    @property
    def num_added(self) -> int:
        """J, how many items were added behind those of the bundle."""
        return len(self.ids) - self.num_bundled

    @property
    def num_alive(self) -> int:
        """How many items may be recommended."""
        return int(self.alive.sum())

    @property
    def vectors_by_column(self) -> np.ndarray:
        """`vectors` in the memory layout of an exact search, [I + J, D]; copied when it is first asked for."""
        if self._by_column is None:
            self._by_column = ByColumn(self.vectors)
        return self._by_column.vectors

    def alive_among(self, allowed: Allowed) -> Allowed:
        """Masks without removed items."""
        if self._all_alive:
            return allowed
        if allowed is None or isinstance(allowed, np.ndarray):
            return self.alive if allowed is None else allowed & self.alive
        made = {id(mask): self.alive if mask is None else mask & self.alive for mask in allowed}
        return [made[id(mask)] for mask in allowed]

    @property
    def is_in_index(self) -> np.ndarray:
        """bool [I], items of the bundle that are as they were when its index was built."""
        return self.alive[: self.num_bundled] & ~self._changed

    @property
    def later_rows(self) -> Mapping[int, Mapping[str, Any]]:
        """Rows of added and changed items by position, with the column names of `schema.items_schema`."""
        return MappingProxyType(self._rows)

    def cards(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """What people read of items: `item_id`, `title` and every column of the item file under its own name.

        Values of categorical columns are lists, and a missing number is None. Where a column of the file is called
        like the id or the title, these two win.
        """
        bundled = [p for p in positions if p not in self._rows]
        table = self.bundled.select(list(self._names)).take(pa.array(bundled, pa.int64()))
        rows = self._rows | dict(zip(bundled, table.to_pylist(), strict=True)) if bundled else self._rows
        names = list(reversed(self._names.items()))
        return [{name: rows[p][column] for column, name in names} for p in positions]

    def codes(self, column: str, *, option: str) -> CategoricalCodes:
        """Codes of a categorical column of all items; `option` is what an error names.

        Raises:
            UserError: the catalogue has no such column.
        """
        if column not in self._codes:
            made = CategoricalCodes(self.bundled, self.spec, column, option=option)
            self._catch_up(made)
            self._codes[column] = made
        return self._codes[column]

    def births(self, date_column: str) -> ItemBirthTimes:
        """Birth times of all items; `date_column` as for `ItemBirthTimes`.

        Raises:
            UserError: the catalogue has no such column.
        """
        if date_column not in self._births:
            made = ItemBirthTimes(self.bundled, self.spec, date_column, self._events)
            self._catch_up(made)
            self._births[date_column] = made
        return self._births[date_column]

    def _catch_up(self, attribute: CategoricalCodes | ItemBirthTimes) -> None:
        """Give an attribute that is first asked for now the rows that were put before."""
        if self._rows:
            types = self.bundled.select(list(self._names)).schema
            attribute.put(np.array(list(self._rows), np.int64), pa.Table.from_pylist(list(self._rows.values()), types))

    def _make_room(self, num: int) -> np.ndarray:
        if self._matrix is None or num > len(self._matrix):
            size = max(num, len(self.vectors)) + max(_SPARE_ROWS, len(self.vectors) // 8)
            matrix = np.empty((size, self.vectors.shape[1]), np.float32)
            matrix[: len(self.vectors)] = self.vectors
            self._matrix = matrix
        return self._matrix

    def _put_proxies(self, places: np.ndarray, weights: sp.csr_array, num_added: int) -> None:
        known = self.proxy_weights.shape[0]
        later = np.flatnonzero(places >= self.num_bundled)
        if not len(later):
            return
        source = np.full(known + num_added, -1, np.int64)
        source[:known] = np.arange(known)
        source[places[later] - self.num_bundled] = known + later
        self.proxy_weights = sp.csr_array(sp.vstack([self.proxy_weights, weights], format="csr"))[source]

    def _note_change(self) -> None:
        size = self.num_bundled
        self.stale = np.flatnonzero(~self.alive[:size] | self._changed)
        is_fresh = self.alive.copy()
        is_fresh[:size] &= self._changed
        self.fresh = np.flatnonzero(is_fresh)
        self._all_alive = bool(self.alive.all())
        self.version += 1
