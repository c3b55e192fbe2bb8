"""Arrays by key in files of one folder: written once, mapped into memory, shared by the processes of a machine.

A shard is two files: NAME.rows.npy holds all rows end to end, and NAME.keys.npy says whose rows lie where. The second
file appears when the first is complete, so other processes see a shard whole or not at all.

`RowStore` knows keys and rows. `ItemStates` reads from one what the lowest trained layer of the encoder reads of the
catalogue's items.

Legend: n items, T tokens, H width of the encoder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence

import numpy as np
import torch

logger = logging.getLogger(__name__)

_KEYS, _ROWS = ".keys.npy", ".rows.npy"
_PLACE = np.dtype([("key", "V16"), ("start", "<i8"), ("length", "<i4")])


def digest(data: bytes) -> bytes:
    """The key of `data`: its hash, 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


class RowStore:
    """Blocks of rows [length, width] by key.

    Args:
        folder: a local folder; the first write makes it.
        width: numbers in a row.
        dtype: type of the stored numbers.
    """

    def __init__(self, folder: str, width: int, dtype: type = np.float32) -> None:
        self.folder, self.width, self.dtype = folder, width, np.dtype(dtype)
        self._files: list[np.ndarray] = []
        self._names: set[str] = set()
        self._place: dict[bytes, tuple[int, int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Map the shards that other processes have written since the last call."""
        if not os.path.isdir(self.folder):
            return
        for name in sorted(os.listdir(self.folder)):
            stem = name.removesuffix(_KEYS)
            if stem == name or stem in self._names:
                continue
            shard = self._shard(stem)
            if shard is None:
                continue
            rows, places = shard
            file = len(self._files)
            for key, start, length in zip(
                places["key"].tolist(), places["start"].tolist(), places["length"].tolist(), strict=True
            ):
                self._place[key] = (file, start, length)
            self._files.append(rows)
            self._names.add(stem)

    def _shard(self, stem: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows and places of a shard; None where it has other rows than these, or is damaged and so no longer used."""
        try:
            rows = np.load(os.path.join(self.folder, stem + _ROWS), mmap_mode="r", allow_pickle=False)
            places = np.load(os.path.join(self.folder, stem + _KEYS), allow_pickle=False)
            if rows.dtype != self.dtype or rows.ndim != 2 or rows.shape[1] != self.width:
                return None
            ends = np.cumsum(places["length"], dtype=np.int64)
            if places.dtype == _PLACE and (ends - places["length"] == places["start"]).all() and ends[-1] == len(rows):
                return rows, places
            damage = "its two files do not fit each other"
        except (OSError, ValueError, EOFError, LookupError) as error:
            damage = " ".join(str(error).split())
        logger.warning("%s is damaged and is left out: %s", os.path.join(self.folder, stem), damage)
        self._names.add(stem)
        return None

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def read(self, key: bytes) -> np.ndarray:
        """The rows of a key [length, width], mapped and not copied.

        Raises:
            KeyError: the key has no rows.
        """
        file, start, length = self._place[key]
        return self._files[file][start : start + length]

    def write(self, blocks: dict[bytes, np.ndarray]) -> None:
        """Add a shard with the blocks [length, width] of some keys.

        Raises:
            OSError: it cannot be written, as on a full disk.
            ValueError: a block has another width.
        """
        if not blocks:
            return
        os.makedirs(self.folder, exist_ok=True)
        stem = os.path.join(self.folder, uuid.uuid4().hex)
        lengths = np.array([len(rows) for rows in blocks.values()], np.int64)
        places = np.empty(len(blocks), _PLACE)
        places["key"] = np.frombuffer(b"".join(blocks), "V16")
        places["start"], places["length"] = np.cumsum(lengths) - lengths, lengths
        try:
            _write_array(stem + _ROWS, list(blocks.values()), (int(lengths.sum()), self.width), self.dtype)
            _write_array(stem + ".part.npy", [places], places.shape, _PLACE)
            os.replace(stem + ".part.npy", stem + _KEYS)
        except BaseException:
            for suffix in (_ROWS, ".part.npy"):
                if os.path.exists(stem + suffix):
                    os.remove(stem + suffix)
            raise
        self.refresh()


def _write_array(path: str, parts: Sequence[np.ndarray], shape: tuple[int, ...], kind: np.dtype) -> None:
    """Write rows as one array in a file. It is not mapped: whoever writes into a map of a full disk is killed (SIGBUS)."""
    with open(path, "wb") as stream:
        form = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, form)
        for part in parts:
            if part.shape[1:] != shape[1:]:
                raise ValueError(f"rows of shape {part.shape[1:]}; expected {shape[1:]}")
            stream.write(part.astype(kind, casting="same_kind", copy=False).tobytes())


class ItemStates:
    """What the lowest trained layer reads of each item of the catalogue, from disk.

    Args:
        store: holds the states of all items that have a text.
        keys: key of each item, in the catalogue's order.
    """

    def __init__(self, store: RowStore, keys: Sequence[bytes]) -> None:
        self._store, self._keys = store, keys

    def padded(self, which: np.ndarray, width: int) -> torch.Tensor:
        """States [n, T, H] of some items, in the stored type; T is `width`, and shorter items end with zeros."""
        states_nTH = np.zeros((len(which), width, self._store.width), self._store.dtype)
        for place, item in enumerate(which.tolist()):
            rows = self._store.read(self._keys[item])
            states_nTH[place, : len(rows)] = rows
        return torch.from_numpy(states_nTH)
