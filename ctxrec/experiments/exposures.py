"""Exposures of an A/B test as Parquet files: one row for each list that a user got."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.errors import UserError

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("share", pa.float64()),  # of the arm
        ("model_version", pa.string()),
        ("user_id", pa.string()),  # null: the request had no user id
        ("request_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class Exposure:
    """One list that a user got; `time_us` is in microseconds since 1970, UTC."""

    time_us: int
    experiment: str
    arm: str
    share: float
    model_version: str
    user_id: str | None
    request_id: str | None
    item_ids: list[str]


def write_exposures(folder: str, exposures: Sequence[Exposure]) -> str:
    """Write the exposures to a new file, which appears when it is complete; returns its path.

    Args:
        folder: path or URI.
        exposures: at least one.
    """
    columns = zip(*([getattr(e, name) for name in Exposure.__slots__] for e in exposures), strict=True)
    arrays = [pa.array(list(values), kind) for values, kind in zip(columns, SCHEMA.types, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), sink)
    path = storage.join(folder, f"exposures-{exposures[0].time_us:017d}-{os.getpid()}-{uuid.uuid4().hex[:8]}.parquet")
    storage.write_bytes(path, sink.getvalue().to_pybytes())
    return path


def read_exposures(path: str) -> pa.Table:
    """All exposures of a file, folder, glob or URI.

    Raises:
        UserError: there is no file, or a file does not hold exposures.
    """
    tables = []
    for file in storage.list_files(path):
        fs, inner = storage.filesystem(file)
        try:
            table = pq.read_table(inner, filesystem=fs, columns=SCHEMA.names)
            tables.append(table.select(SCHEMA.names).cast(SCHEMA))
        except (pa.ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{file} has no exposures ({str(error).splitlines()[0]}); expected {SCHEMA.names}"
            ) from error
    return pa.concat_tables(tables)
