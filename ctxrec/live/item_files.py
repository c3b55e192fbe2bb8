"""Posted items as a Parquet file with the columns of the data set's own item file, for the next `ctxrec.prepare`.

One file holds the rows of all of them as they are now. Its name sorts before most others, because `prepare` keeps the
first row of an item that several files have, and this file has the newest rows.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.data.posted_items import ITEM_ID, file_table
from ctxrec.live.store import HistoryStore


def write_item_file(store: HistoryStore, folder: str, spec: ItemsSpec | None, *, since: int = 0) -> int:
    """Write the file again if an item changed after the change of number `since`; returns the number of the last one.

    Args:
        store: what was posted.
        folder: path or URI.
        spec: names of the item file's columns; None where the data set has no item file: nothing is written.
        since: what this function returned before.
    """
    if spec is None or not store.item_changes(since):
        return since
    changes = store.item_changes(0)
    rows = [{**change.row, ITEM_ID: change.item_id} for change in changes if change.row is not None]
    sink = pa.BufferOutputStream()
    pq.write_table(file_table(rows, spec), sink)
    storage.write_bytes(storage.join(folder, f"0-live-{store.id}.parquet"), sink.getvalue().to_pybytes())
    return changes[-1].number
