"""Posted items and users as Parquet files with the columns of the data set's own tables, for the next `ctxrec.prepare`.

One file of a table holds the rows of all of them as they are now. Its name sorts before most others, because `prepare`
keeps the first row of an id that several files have, and this file has the newest rows.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ItemsSpec, UsersSpec
from ctxrec.data.posted_rows import file_table, key_of
from ctxrec.live.store import HistoryStore, Table


def write_row_file(
    store: HistoryStore, table: Table, folder: str, section: ItemsSpec | UsersSpec | None, *, since: int = 0
) -> int:
    """Write the file of a table again if a row changed after the change of number `since`; returns the number of the last.

    An item that was taken away has no row. A user who was has an empty one, so that the next `prepare` knows no more of
    the user than the service does.

    Args:
        store: what was posted.
        table: which rows.
        folder: path or URI.
        section: names of the file's columns; None where the data set has no such table: nothing is written.
        since: what this function returned before.
    """
    if section is None or not store.row_changes(table, since):
        return since
    changes = store.row_changes(table, 0)
    left = [change for change in changes if change.row is not None or table == "users"]
    rows = [{**(change.row or {}), key_of(table): change.id} for change in left]
    sink = pa.BufferOutputStream()
    pq.write_table(file_table(rows, section, table), sink)
    storage.write_bytes(storage.join(folder, f"0-live-{store.id}.parquet"), sink.getvalue().to_pybytes())
    return changes[-1].number
