"""Small logs written, prepared and read again: what tests of `ctxrec.prepare` share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest import pipeline
from ctxrec.ingest.pipeline import prepare

START = 1_600_000_000


def write_spec(folder: Path, text: str) -> str:
    (folder / "dataset.toml").write_text('name = "t"\n' + text)
    return str(folder / "dataset.toml")


def write_csv(folder: Path, rows, header="user_id,item_id,timestamp", name="events.csv") -> None:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(folder: Path, text: str, overrides=()) -> PreparedData:
    return prepare(load_spec(write_spec(folder, text)), str(folder / "out"), load_config(None, overrides))


def histories(data: PreparedData) -> dict[str, dict]:
    """All rows of all buckets by user."""
    found = {}
    for bucket in range(len(data.bucket_paths)):
        table = data.read_bucket(bucket)
        assert table.schema.equals(schema.histories_schema(data.spec, data.features.user_lists))
        ids = table.column(schema.USER_ID).to_pylist()
        assert ids == sorted(ids)
        found |= {row[schema.USER_ID]: row for row in table.to_pylist()}
    return found


def items_of(data: PreparedData, user: str) -> list[str]:
    ids = data.items.column(schema.ITEM_ID).to_pylist()
    return [ids[i] for i in histories(data)[user]["items"]]


def rejected(folder: Path) -> pa.Table:
    parts = [pq.read_table(path) for path in sorted((folder / "out" / schema.REJECTS).glob("*.parquet"))]
    return pa.concat_tables(parts, promote_options="default")


def only_temporary_gone(folder: Path) -> bool:
    return not (folder / "out" / pipeline.TEMPORARY).exists()


LOG = '[events]\npath = "events.csv"\n'
LAST = '[split]\nstrategy = "last"\n'
