"""The ids of users as a column of a file that is mapped into memory, and the rows of users by their ids.

A service of many users keeps no Python object for each of them: an id is made when it is asked for, and a row is found by
binary search.

Legend: N users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_AT_ONCE = 1 << 14  # ids that are made Python strings at a time


class UserIds:
    """Ids of N distinct users, row by row, as a column of Arrow.

    Args:
        ids: strings without nulls, [N].
        order: rows in the order of the ids' UTF-8 bytes, unsigned [N]; None sorts them.
    """

    def __init__(self, ids: pa.StringArray, order: np.ndarray | None = None) -> None:
        self._ids = ids
        self._order = sorted_rows(ids) if order is None else order
        _, ends, data = ids.buffers()
        self._data = memoryview(b"" if data is None else data)
        self._ends = np.frombuffer(ends, np.int32)[ids.offset :] if ends is not None else np.zeros(1, np.int32)
        self.rows = _Rows(self)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, rows: Any) -> Any:
        """The id of a row, or the ids of several (positions, a slice or a mask) as an object array."""
        if isinstance(rows, int | np.integer):
            return self._ids[int(rows)].as_py()
        which = np.arange(len(self))[rows]
        return self._ids.take(pa.array(which)).to_numpy(zero_copy_only=False)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._ids.slice(start, _AT_ONCE).to_pylist()

    def row_of(self, user_id: str) -> int:
        """The row of a user, -1 of one who is not here."""
        key = _bytes(user_id)
        place = self._first_from(key)
        if place < len(self) and self._at(place) == key:
            return int(self._order[place])
        return -1

    def beginning_with(self, prefix: str, limit: int) -> list[str]:
        """The first `limit` ids, in the order of their bytes, that begin with a prefix."""
        key, found = _bytes(prefix), []
        for place in range(start := self._first_from(key), min(start + limit, len(self))):
            if not (id_ := self._at(place)).startswith(key):
                break
            found.append(id_.decode())
        return found

    def _at(self, place: int) -> bytes:
        row = self._order[place]
        return bytes(self._data[self._ends[row] : self._ends[row + 1]])

    def _first_from(self, key: bytes) -> int:
        """The first place, in the order of the ids, of an id that is not before the key."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._at(middle) < key else (low, middle)
        return low


def user_ids_of(ids: np.ndarray) -> UserIds:
    """Ids in memory, object [N], as a column."""
    return UserIds(pa.array(ids, pa.string()))


class _Rows(Mapping[str, int]):
    """Rows of users by id."""

    def __init__(self, ids: UserIds) -> None:
        self._ids = ids

    def __getitem__(self, user_id: str) -> int:
        row = self._ids.row_of(user_id)
        if row < 0:
            raise KeyError(user_id)
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def sorted_rows(ids: pa.StringArray) -> np.ndarray:
    """Rows in the order of the ids' UTF-8 bytes: uint32 [N]."""
    return pc.sort_indices(ids).to_numpy().astype(np.uint32)


def is_order(order: np.ndarray, ids: pa.ChunkedArray) -> bool:
    """Whether these rows are all rows of distinct ids in the order of their bytes."""
    if len(order) != len(ids) or (len(order) and order.max() >= len(ids)):
        return False
    for start in range(0, len(ids) - 1, _AT_ONCE):
        some = ids.take(pa.array(order[start : start + _AT_ONCE + 1])).combine_chunks()
        if not pc.all(pc.less(some[:-1], some[1:])).as_py():
            return False
    return True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # what no file can hold is found nowhere
