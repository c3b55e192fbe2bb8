"""Posted events as Parquet files with the columns of the data set's own log, for the next `ctxrec.prepare`.

A file holds a fixed range of events, and its name follows from the range. It appears complete. If the process dies
before the store has recorded the file, the same file is written again, so no event is lost or duplicated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.parsing import value_text
from ctxrec.live.store import HistoryStore, LoggedEvent

logger = logging.getLogger(__name__)

ROWS_A_FILE = 100_000


def write_event_files(store: HistoryStore, folder: str, spec: EventsSpec, *, rows: int = ROWS_A_FILE) -> int:
    """Write all that no file has yet; returns how many events were written.

    Args:
        store: what was posted.
        folder: path or URI.
        spec: names of the log's columns.
        rows: of a file, at most.
    """
    total = 0
    while (taken := store.take_unwritten(rows)) is not None:
        try:
            sink = pa.BufferOutputStream()
            pq.write_table(events_table(taken.events, spec), sink)
            storage.write_bytes(storage.join(folder, taken.name), sink.getvalue().to_pybytes())
            store.written(taken)
        finally:
            store.release()
        total += len(taken.events)
    return total


def events_table(events: Sequence[LoggedEvent], spec: EventsSpec) -> pa.Table:
    """Events in the columns that `spec` names; times as timestamps, which `prepare` reads beside any unit."""
    times = pa.array(np.array([e.time_us for e in events], np.int64)).cast(pa.timestamp("us", tz="UTC"))
    columns: dict[str, pa.Array] = {
        spec.user: pa.array([e.user_id for e in events], pa.string()),
        spec.item: pa.array([e.item_id for e in events], pa.string()),
        spec.time: times,
    }
    if spec.action:
        columns[spec.action] = pa.array([e.action for e in events], pa.string())
    if spec.value:
        columns[spec.value] = pa.array([e.value for e in events], pa.float64())
    context = spec.context
    for name in context.categorical + context.text:
        columns[name] = pa.array([value_text(e.context.get(name)) for e in events], pa.string())
    for name in context.numeric:
        columns[name] = pa.array([_as_number(e.context.get(name)) for e in events], pa.float64())
    return pa.table(columns)


def _as_number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
