"""Items that were posted to the service, in a version that was loaded to be compared: the service ranks them too."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.data.posted_rows import fitting, posted_table
from ctxrec.retrieval.bundle_texts import NoEncoder
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.recommender import Recommender

logger = logging.getLogger(__name__)


def put_posted(version: Recommender, bundle: str, live: str) -> int:
    """Put the posted items that a version lacks into its catalogue, by the code of the service; returns their number.

    Without the bundle's text encoder none is put, as the service would take none then.

    Args:
        version: loaded from `bundle`.
        bundle: path or URI.
        live: folder where the service stored them; "": none.
    """
    rows = [row for row in _posted(live, version) if row["item_id"] not in version.item_position]
    if not rows:
        return 0
    try:
        encoded = ItemEncoder(bundle, version).encode(posted_table(rows, version.spec))
    except NoEncoder as error:
        logger.warning("%d posted items are not compared: %s", len(rows), error)
        return 0
    version.catalogue.put(encoded)
    return len(rows)


def _posted(live: str, version: Recommender) -> list[dict[str, Any]]:
    """The rows of the files, with the columns that the version's item file has."""
    section, folder = version.spec.items, storage.join(live, "items")
    if not live or section is None or not storage.exists(folder):
        return []
    rows: dict[str, dict[str, Any]] = {}
    for path in storage.list_files(folder):
        if path.endswith(".parquet"):
            fs, inside = storage.filesystem(path)
            for found in pq.read_table(inside, filesystem=fs).to_pylist():
                row = {name: value for name, value in found.items() if value is not None and name != section.id}
                rows.setdefault(found[section.id], {**fitting(row, version.spec), "item_id": found[section.id]})
    return list(rows.values())
