"""Prepared data of a share of the users, for the cheap trials of a sweep."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData

_PARTS = 1 << 20


def share_of_users(data_path: str, out: str, share: float) -> str:
    """Write the prepared data of a share of the users, chosen by a hash of their IDs.

    Catalogue and vocabularies stay whole, so a configuration means the same on both. If `out` is complete, it is kept.

    Args:
        data_path: folder that `ctxrec.prepare` wrote.
        out: folder to write.
        share: share of the users, from 0 to 1.

    Returns:
        `out`.

    Raises:
        UserError: no training or no validation event is left.
    """
    if storage.exists(storage.join(out, schema.META)):
        return out
    data = PreparedData.open(data_path)
    users, split, train_events = 0, np.zeros(3, np.int64), np.zeros(data.num_items, np.int64)
    for bucket in range(len(data.bucket_paths)):
        table = data.read_bucket(bucket)
        table = table.filter(pa.array(_is_inside(table.column(schema.USER_ID).to_pylist(), share)))
        _write(table, storage.join(out, schema.HISTORIES, f"bucket-{bucket:05d}.parquet"))
        columns = (table.column(c).combine_chunks() for c in (schema.EVENT_ITEMS, schema.EVENT_SPLIT))
        items, splits = (column.flatten().to_numpy() for column in columns)
        users += len(table)
        split += np.bincount(splits, minlength=3)
        train_events += np.bincount(items[splits == schema.TRAIN], minlength=data.num_items)
    if not (split[schema.TRAIN] and split[schema.VALID]):
        raise UserError(
            f"sweep.fidelity.users = {share:g} leaves {users} users, who have no training or no validation event; raise it"
        )
    place = data.items.schema.get_field_index(schema.ITEM_TRAIN_EVENTS)
    events = pa.array(train_events, pa.int64())
    _write(data.items.set_column(place, schema.ITEM_TRAIN_EVENTS, events), storage.join(out, schema.ITEMS))
    counts = data.meta["counts"] | {"users": users, "events": int(split.sum())}
    counts |= {name: int(n) for name, n in zip(("train", "valid", "test"), split, strict=True)}
    fingerprint = storage.sha256_json([data.fingerprint, share])
    storage.write_json(storage.join(out, schema.META), data.meta | {"counts": counts, "fingerprint": fingerprint})
    return out


def _is_inside(ids: list[str], share: float) -> list[bool]:
    return [zlib.crc32(f"share/{user}".encode()) % _PARTS < share * _PARTS for user in ids]


def _write(table: pa.Table, path: str) -> None:
    storage.make_dir(storage.parent(path))
    fs, inner = storage.filesystem(path)
    pq.write_table(table, inner, filesystem=fs, compression="zstd")
