"""trivago: hotel search sessions of two days (RecSys Challenge 2019), for "which hotel will be clicked out to?".

What is an event. An event needs an item, so of the log's ten action types the six that refer to a hotel make
events (clickout, image, info, rating, deals, search for item); the four others (filter selection, change
of sort order, search for destination or place) act through the context of the events after them.

Protocol. A session is a "user", because the question is asked inside a session and few people have two. A
session is cut after its last clickout, as the challenge does, and one without a clickout is left out, so
the last event of each session is a clickout: with the split "last" every test target is one (in sessions of at
least three events). The validation event is the one before it, whatever its action. Repeats are allowed:
people look at a hotel before they click it out. Clickouts weigh 1 as training targets, looks less. The log
repeats an action on one hotel within a second many times (six rows in ten); the first is kept.

Context. Device, platform (country site) and city as logged with the event; the active filters as last logged in the
session before or with the event. They are logged with clickouts, filter selections and searches only, and
an empty value there means that none is active.

Items. The catalogue has the hotels of the events. The log has no hotel text; a hotel's city is the one it
was shown or looked at in most often, and its price the median shown, over the whole log: both are facts that the
site's own catalogue holds, and say nothing of who clicked. The lists of hotels shown are not used otherwise.
"""

from __future__ import annotations

import os

import pandas as pd
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.datasets import common

NAME = "trivago"
WRITER_VERSION = 1
CLICKOUT = "clickout item"
WEIGHTS = {
    CLICKOUT: 1.0,
    "interaction item deals": 0.3,
    "search for item": 0.3,
    "interaction item image": 0.2,
    "interaction item info": 0.2,
    "interaction item rating": 0.2,
}
FILTERS_LOGGED = (CLICKOUT, "filter selection", "search for destination", "search for poi")
_TEXTS = ("session_id", "action_type", "reference", "platform", "city", "device")
_LISTS = ("current_filters", "impressions", "prices")
COLUMNS: dict[str, common.Kind] = {**dict.fromkeys((*_TEXTS, *_LISTS), "text"), "timestamp": "whole", "step": "whole"}

SPEC = """\
# trivago, RecSys Challenge 2019: research use. A user here is a session, and its last event is its last clickout.
name = "trivago"

[events]
path = "events.parquet"
action = "action"

[events.context]
categorical = ["device", "platform", "city"]
text = ["filters"]

[events.actions]
{weights}

[items]
path = "items.parquet"
text = ["city"]
categorical = ["city"]
numeric = ["price"]

[split]
strategy = "last"
repeats = true
"""


def write_trivago(out: str, source: str | None = None) -> bool:
    """Write the tables and the spec; returns False when they were there, unchanged.

    Args:
        out: local folder.
        source: the challenge's train.csv or the same table as parquet, or a folder or zip with one.

    Raises:
        UserError: no source is given, or its table is not the one expected.
    """
    return common.write_dataset(out, source, writer=f"{NAME} {WRITER_VERSION}", make=lambda: _make(source))


def _make(source: str | None) -> common.Made:
    if source is None:
        raise UserError(
            "the trivago log is handed out on the challenge's site after registration; give its train.csv, or the "
            "same table as parquet, with --source"
        )
    wanted = ["trivago*.parquet|train*.parquet|trivago*.csv|train*.csv"]
    ((name, data),) = common.find_files(source, wanted, what=NAME).items()
    log = common.read_frame(name, data, COLUMNS)
    events = session_events(log)
    weights = "\n".join(f'"{action}" = {weight}' for action, weight in WEIGHTS.items())
    return common.Made(
        tables={"events": _table(events), "items": _items(log, events)},
        spec=SPEC.format(weights=weights),
        source=f"{name} in {os.path.basename(os.path.abspath(source))}",
    )


def session_events(log: pd.DataFrame) -> pd.DataFrame:
    """The events on hotels, each with the filters known then, up to the last clickout of each session."""
    logged = log["action_type"].isin(FILTERS_LOGGED)
    filters = log["current_filters"].fillna("").where(logged).groupby(log["session_id"]).ffill()
    refers = log["action_type"].isin(list(WEIGHTS)) & log["reference"].str.fullmatch(r"\d+", na=False)
    events = log.assign(filters=filters)[refers]
    events = events.drop_duplicates(["session_id", "timestamp", "action_type", "reference"])
    clickouts = events[events["action_type"] == CLICKOUT]
    last = clickouts.groupby("session_id")["step"].max()
    return events[events["step"] <= events["session_id"].map(last)]  # no clickout: NaN, which is never reached


def _table(events: pd.DataFrame) -> pa.Table:
    filters = events["filters"].str.replace("|", ", ").replace("", None)
    return pa.table(
        {
            "user_id": pa.array(events["session_id"], pa.string()),
            "item_id": pa.array(events["reference"], pa.string()),
            "timestamp": pa.array(events["timestamp"], pa.int64()),
            "action": pa.array(events["action_type"], pa.string()),
            "device": pa.array(events["device"], pa.string()),
            "platform": pa.array(events["platform"], pa.string()),
            "city": pa.array(events["city"], pa.string()),
            "filters": pa.array(filters, pa.string(), from_pandas=True),
        }
    )


def _items(log: pd.DataFrame, events: pd.DataFrame) -> pa.Table:
    """One row a hotel of the events, in the order of first appearance: its city and its price."""
    lists = log.loc[log["impressions"].notna(), ["impressions", "prices", "city"]]
    lists = lists.assign(hotel=lists["impressions"].str.split("|"), price=lists["prices"].fillna("").str.split("|"))
    uneven = lists["hotel"].str.len() != lists["price"].str.len()
    if uneven.any():
        row = lists[uneven].iloc[0]
        raise UserError(
            f"the log lists {len(row['hotel'])} impressions with {len(row['price'])} prices ({row['impressions'][:60]!r}); "
            "expected a price for each hotel shown. Take an unchanged copy of the challenge's file"
        )
    shown = lists[["hotel", "price", "city"]].explode(["hotel", "price"])
    prices = common.typed(shown["price"], "number", where="the lists of prices").groupby(shown["hotel"]).median()
    looked = events[["reference", "city"]].rename(columns={"reference": "hotel"})
    places = pd.concat([shown[["hotel", "city"]], looked]).groupby(["hotel", "city"], sort=False).size()
    best = places.sort_values(ascending=False, kind="stable").reset_index().drop_duplicates("hotel")
    hotels = events["reference"].drop_duplicates()
    return pa.table(
        {
            "item_id": pa.array(hotels, pa.string()),
            "city": pa.array(best.set_index("hotel")["city"].reindex(hotels), pa.string(), from_pandas=True),
            "price": pa.array(prices.reindex(hotels), pa.float32(), from_pandas=True),
        }
    )
