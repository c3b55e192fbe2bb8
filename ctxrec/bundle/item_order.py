"""All files of a bundle that have a row for each item have the same items in the same order.

A digest of the ids lies in the manifest and in the header of each file of arrays. Where an array has a row for each
item, its number of rows is checked too. Bundles of earlier versions have no digest; only their numbers are checked.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths

DIGEST = "item_ids"  # its key in the manifest and in the headers
_ROWS = ("items", "trained", "popularity", "recent", "known", "text", "image", "audio")  # arrays with a row an item
_AT_ONCE = 1 << 16


def digest_of(ids: pa.ChunkedArray) -> str:
    """Hex sha256 over the ids of the items in their order.

    Args:
        ids: strings [I].
    """
    digest = hashlib.sha256(str(len(ids)).encode())
    for start in range(0, len(ids), _AT_ONCE):
        part = ids.slice(start, _AT_ONCE).to_pylist()
        digest.update("".join(f"{len(item)}:{item}" for item in part).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_item_order(folder: str, manifest: dict[str, Any], *, where: str) -> None:
    """Compare the items of all files of a checked local bundle.

    Args:
        folder: of the bundle.
        manifest: its content.
        where: path or URI of the bundle, for the message.

    Raises:
        UserError: a file has other items, or as many in another order.
    """
    paths = BundlePaths(folder)
    ids = pq.read_table(paths.items, columns=[schema.ITEM_ID]).column(schema.ITEM_ID)
    found = digest_of(ids)
    digests = {"manifest.json": manifest.get(DIGEST)}
    for path in (paths.vectors, paths.blend, paths.media):
        if f"{path[len(folder) :].lstrip('/')}" not in manifest["files"]:
            continue
        name = path.rsplit("/", 1)[-1]
        with safe_open(path, "numpy") as stream:
            digests[name] = (stream.metadata() or {}).get(DIGEST)
            there = set(stream.keys())
            for key in (key for key in _ROWS if key in there):
                rows = stream.get_slice(key).get_shape()[0]
                if rows != len(ids):
                    what = "vectors" if (name, key) == ("vectors.safetensors", "items") else f"rows of {key!r}"
                    raise UserError(
                        f"the bundle at {where} is damaged: items.parquet has {len(ids)} rows and {name} {rows} {what}; "
                        "expected one for each item. Restore it or train again"
                    )
    for name, digest in digests.items():
        if digest is not None and digest != found:
            raise UserError(
                f"the bundle at {where} is damaged: items.parquet has other items than {name}, or the same in another "
                "order. Restore it or train again"
            )
