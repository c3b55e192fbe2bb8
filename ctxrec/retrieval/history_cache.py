"""A cache of history states, keyed by a hash of the history's content.

A new event gives a new key, so nothing needs to be invalidated. A user who asks again, also at another time, is
answered from the cache.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from ctxrec.data.events import widened
from ctxrec.data.prepared import MAX_VALUES
from ctxrec.data.requests import Requests

Value = tuple[np.ndarray, ...]

_OVERHEAD_BYTES = 300  # of an entry besides its numbers


class HistoryCache:
    """A least-recently-used cache; for one thread.

    Args:
        max_bytes: of all values, with their keys and places.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Value] = OrderedDict()
        self.num_bytes = 0
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, keys: Sequence[bytes], make: Callable[[np.ndarray], Sequence[Value]]) -> list[Value]:
        """The value of each key; `make` gives those of the rows (int64) that are not there."""
        found = [self._kept.get(key) for key in keys]
        missing = np.array([n for n, value in enumerate(found) if value is None], np.int64)
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        for n, value in zip(missing, make(missing) if len(missing) else (), strict=True):
            found[n] = value
            self._put(keys[n], value)
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return [value for value in found if value is not None]

    def take_counts(self) -> tuple[int, int]:
        """Numbers of hits and of misses since the last call."""
        counts, self.hits, self.misses = (self.hits, self.misses), 0, 0
        return counts

    def clear(self) -> None:
        self._kept.clear()
        self.num_bytes = 0

    def _put(self, key: bytes, value: Value) -> None:
        if key in self._kept:  # it is in a batch twice
            return
        self._kept[key] = value
        self.num_bytes += _size(value)
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= _size(self._kept.popitem(last=False)[1])


def history_keys(requests: Requests) -> list[bytes]:
    """A key for each request: of who asks, as far as the model knows, and of every event of the history."""
    events, users = requests.history, requests.users
    columns = [events.items, events.times, events.actions, *events.context.cat.values(), *events.context.num.values()]
    texts = list(events.context.text.values())
    about = [*users.cat.values(), *users.num.values()]
    about += [widened(codes, MAX_VALUES) for codes in users.lists.values()]  # whatever others of the batch have
    own_texts = list(users.text.values())
    keys = []
    for n in range(len(requests)):
        row = events.row(n)
        parts = [column[row].tobytes() for column in columns]
        parts += [repr(text[row].tolist()).encode("utf-8", "surrogatepass") for text in texts]
        parts += [value[n].tobytes() for value in about]
        parts += [repr(text[n]).encode("utf-8", "surrogatepass") for text in own_texts]
        keys.append(hashlib.blake2b(b"\0".join(parts), digest_size=16).digest())
    return keys


def _size(value: Value) -> int:
    return sum(part.nbytes for part in value) + _OVERHEAD_BYTES
