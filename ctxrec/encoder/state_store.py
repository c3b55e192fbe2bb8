"""What the lowest trained layer of the encoder reads of each item, from disk.

Legend: n items, T tokens, H width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ctxrec.encoder.row_store import RowStore


class ItemStates:
    """States of the catalogue's items.

    Args:
        store: has the states of all of them that have a text.
        keys: of the items, in the catalogue's order.
    """

    def __init__(self, store: RowStore, keys: Sequence[bytes]) -> None:
        self._store, self._keys = store, keys

    def padded(self, which: np.ndarray, width: int) -> torch.Tensor:
        """States [n, T, H] of some items, in the stored type, zeros at the end of shorter ones; T is `width`."""
        states_nTH = np.zeros((len(which), width, self._store.width), self._store.dtype)
        for place, item in enumerate(which.tolist()):
            rows = self._store.read(self._keys[item])
            states_nTH[place, : len(rows)] = rows
        return torch.from_numpy(states_nTH)
