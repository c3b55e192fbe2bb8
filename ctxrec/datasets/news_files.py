"""The simulated news service as a data set: tables, a spec, and the true parameters beside them."""

from __future__ import annotations

import dataclasses
import os

import pyarrow as pa

from ctxrec.datasets.common import Made, write_dataset
from ctxrec.datasets.news import NewsLog, NewsPlan
from ctxrec.datasets.simulation import TRUTH

WRITER_VERSION = 1

SPEC = """\
# A simulated news service ({about}). The true preferences are in truth.safetensors.
name = "news"

[events]
path = "events.parquet"

[items]
path = "items.parquet"
text = ["title"]
categorical = ["topic"]
numeric = ["published"]

[users]
path = "users.parquet"
categorical = ["age_group", "job"]

[split]
strategy = "temporal"
"""


def write_news(out: str, plan: NewsPlan) -> bool:
    """Simulate a news service into the folder `out`; returns False when the very same one is there."""
    about = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(plan).items())

    def make() -> Made:
        log = NewsLog.make(plan)
        os.makedirs(out, exist_ok=True)
        log.truth.save(os.path.join(out, TRUTH))
        tables = {"events": pa.concat_tables(log.chunks()), "items": log.items_table(), "users": log.users_table()}
        return Made(tables, SPEC.format(about=about), f"simulation of a news service ({about})")

    return write_dataset(out, None, writer=f"simulate-news {WRITER_VERSION}, {about}", make=make)
