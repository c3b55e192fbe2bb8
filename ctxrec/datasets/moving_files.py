"""The simulated logs that move, a news service and a shop, as data sets: tables, a spec, and the true parameters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pyarrow as pa

from ctxrec.datasets.common import Made, write_dataset
from ctxrec.datasets.moving_log import MovingPlan
from ctxrec.datasets.news import NewsLog, NewsPlan
from ctxrec.datasets.shop import ShopLog, ShopPlan
from ctxrec.datasets.simulation import TRUTH

WRITER_VERSION = 1

NEWS_SPEC = """\
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

SHOP_SPEC = """\
# A simulated shop with campaigns ({about}). The true preferences are in truth.safetensors.
name = "shop"

[events]
path = "events.parquet"

[items]
path = "items.parquet"
text = ["title"]
categorical = ["category"]

[users]
path = "users.parquet"
categorical = ["age_group", "job"]

[split]
strategy = "temporal"
"""


def write_news(out: str, plan: NewsPlan) -> bool:
    """Simulate a news service into the folder `out`; returns False when the very same one is there."""
    return _write(out, plan, lambda: NewsLog.make(plan), NEWS_SPEC, "simulate-news", "a news service")


def write_shop(out: str, plan: ShopPlan) -> bool:
    """Simulate a shop with campaigns into the folder `out`; returns False when the very same one is there."""
    return _write(out, plan, lambda: ShopLog.make(plan), SHOP_SPEC, "simulate-shop", "a shop with campaigns")


def _write(
    out: str, plan: MovingPlan, draw: Callable[[], NewsLog | ShopLog], spec: str, command: str, what: str
) -> bool:
    about = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(plan).items())

    def make() -> Made:
        log = draw()
        os.makedirs(out, exist_ok=True)
        log.truth.save(os.path.join(out, TRUTH))
        tables = {"events": pa.concat_tables(log.chunks()), "items": log.items_table(), "users": log.users_table()}
        return Made(tables, spec.format(about=about), f"simulation of {what} ({about})")

    return write_dataset(out, None, writer=f"{command} {WRITER_VERSION}, {about}", make=make)
