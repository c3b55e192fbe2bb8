"""Amazon Industrial and Scientific (reviews of 2016 to 2018), short histories with rich texts.

The set keeps the true order of each user's events but no clock: its timestamp is the position in the
history. The positions stay as they are, as seconds since 1970: hour, weekday and month are the same for
every event, the gaps are one second, and only a split by the last event makes sense.
"""

from __future__ import annotations

import ast
import html
import os

import pandas as pd
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.datasets import common

NAME = "amazon-industrial"
WRITER_VERSION = 1
EVENTS: dict[str, common.Kind] = {"user_id": "text", "item_id": "text", "timestamp": "whole"}
ITEMS: dict[str, common.Kind] = {"item_id": "text", "title": "text", "brand": "text", "description": "text"}

SPEC = """\
# Amazon reviews 2018, Industrial and Scientific: research use. J. Ni, J. Li and J. McAuley, 2019, Justifying
# Recommendations using Distantly-Labeled Reviews and Fine-grained Aspects, EMNLP.
# timestamp is the position in the user's history: there is no clock.
name = "amazon-industrial"

[events]
path = "events.parquet"

[items]
path = "items.parquet"
text = ["title", "brand", "description"]
categorical = ["brand"]

[split]
strategy = "last"
"""


def write_amazon_industrial(out: str, source: str | None = None) -> bool:
    """Write the tables and the spec; returns False when they were there, unchanged.

    Args:
        out: local folder.
        source: folder or zip with events (user_id, item_id, timestamp) and items (item_id, title, brand,
            description), each as parquet or csv; there is no public address for the prepared set.

    Raises:
        UserError: no source is given, or its files are not the ones expected.
    """
    return common.write_dataset(out, source, writer=f"{NAME} {WRITER_VERSION}", make=lambda: _make(source))


def _make(source: str | None) -> common.Made:
    if source is None:
        raise UserError(
            f"{NAME} has no public address of its own; give a folder with events.parquet and items.parquet "
            "(or .csv) with --source"
        )
    wanted = ["events.parquet|events.csv", "items.parquet|items.csv"]
    (events_name, events), (items_name, items) = common.find_files(source, wanted, what=NAME).items()
    log = common.read_frame(events_name, events, EVENTS)
    catalogue = common.read_frame(items_name, items, ITEMS)
    return common.Made(
        tables={"events": _events(log), "items": _items(catalogue)},
        spec=SPEC,
        source=f"{events_name} and {items_name} in {os.path.basename(os.path.abspath(source))}",
    )


def _events(log: pd.DataFrame) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array(log["user_id"], pa.string()),
            "item_id": pa.array(log["item_id"], pa.string()),
            "timestamp": pa.array(log["timestamp"], pa.int64()),
        }
    )


def _items(catalogue: pd.DataFrame) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(catalogue["item_id"], pa.string()),
            "title": [_text(value) for value in catalogue["title"]],
            "brand": [_text(value) or None for value in catalogue["brand"]],
            "description": [plain_description(_text(value)) or None for value in catalogue["description"]],
        }
    )


def _text(value: object) -> str:
    return html.unescape(value).strip() if isinstance(value, str) else ""


def plain_description(written: str) -> str:
    """Turn a description into running text, where the source has it as the inside of a list of strings.

    >>> plain_description("'Strong tape.', 'Ten rolls'")
    'Strong tape. Ten rolls'
    >>> plain_description("5' of pipe")
    "5' of pipe"
    """
    try:
        parts = ast.literal_eval(f"[{written}]")
    except (SyntaxError, ValueError):
        return written
    return " ".join(part.strip() for part in parts if isinstance(part, str)).strip() or written
