"""A simulated log as a data set: tables in several files, a spec, and the true parameters beside them."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil

import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.terminal import progress_bar
from ctxrec.datasets import common
from ctxrec.datasets.described import DescribedLog
from ctxrec.datasets.simulation import TRUTH, SimulatedLog, Simulation

logger = logging.getLogger(__name__)

WRITER_VERSION = 1
EVENTS_PER_FILE = 1_000_000

SPEC = """\
# A simulated log ({about}). The true preferences are in truth.safetensors.
name = "simulated"

[events]
path = "events/*.parquet"

[events.context]
categorical = ["device", "place"]
{text}
[items]
path = "items.parquet"
text = ["title"]
categorical = ["category", "brand"]

[users]
path = "users.parquet"
categorical = ["age_group", "job"]

[split]
strategy = "temporal"
"""

SPEC_OF_DESCRIPTIONS = """\
# A simulated log ({about}). The true preferences are in truth.safetensors.
# Descriptions are longer than the 64 tokens that encoder.max_tokens reads by default; 128 hold them.
name = "simulated-descriptions"

[events]
path = "events/*.parquet"

[items]
path = "items.parquet"
text = ["title", "description"]

[split]
strategy = "temporal"
"""


def write_simulated(out: str, plan: Simulation) -> bool:
    """Simulate a log into the folder `out`; returns False when the very same one is there.

    Memory does not grow with the number of events beyond a byte for each; a file holds about a million of them.
    """
    asked = {"writer": f"simulate {WRITER_VERSION}", "plan": dataclasses.asdict(plan)}
    manifest = os.path.join(out, common.SOURCE_RECORD)
    if os.path.exists(manifest):
        found = storage.read_json(manifest)
        files = [os.path.join(out, name) for name in found.get("files", ())]
        if {key: found.get(key) for key in asked} == asked and all(map(os.path.exists, files)):
            return False
        os.remove(manifest)  # it comes back when all is written
    folder = os.path.join(out, "events")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    log = DescribedLog.make(plan) if plan.descriptions else SimulatedLog.make(plan)
    files = _write_events(log, folder)
    pq.write_table(log.items_table(), os.path.join(out, "items.parquet"))
    pq.write_table(log.users_table(), os.path.join(out, "users.parquet"))
    log.truth.save(os.path.join(out, TRUTH))
    about = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(plan).items())
    text = 'text = ["search"]\n' if plan.searches else ""
    spec = SPEC_OF_DESCRIPTIONS.format(about=about) if plan.descriptions else SPEC.format(about=about, text=text)
    storage.write_text(os.path.join(out, "dataset.toml"), spec)
    names = ["dataset.toml", "items.parquet", "users.parquet", TRUTH, *(f"events/{name}" for name in files)]
    storage.write_json(manifest, {**asked, "source": f"simulation ({about})", "files": names})
    return True


def _write_events(log: SimulatedLog | DescribedLog, folder: str) -> list[str]:
    """Write the events as they are drawn; returns the names of the files."""
    names: list[str] = []
    writer, inside = None, EVENTS_PER_FILE
    with progress_bar(log.plan.events, "simulate", "event", scale=True) as progress:
        for chunk in log.chunks():
            if inside >= EVENTS_PER_FILE:
                if writer is not None:
                    writer.close()
                names.append(f"events-{len(names):05d}.parquet")
                writer, inside = pq.ParquetWriter(os.path.join(folder, names[-1]), chunk.schema), 0
            assert writer is not None
            writer.write_table(chunk)
            inside += len(chunk)
            progress.update(len(chunk))
    if writer is not None:
        writer.close()
    return names
