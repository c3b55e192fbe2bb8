"""Online Retail: the log of a British gift shop, December 2010 to December 2011 (UCI 352).

An event is a line of an invoice. Left out are cancellations and returns (quantity not above 0), lines without a
price, lines without a customer, and codes that are no product (postage, fees: product codes start with
five digits); of equal lines of one customer at one minute the first is kept. `Quantity` is the event's
value and `Country` its context. An item's text is its most frequent description, its price the median.
Items of one invoice share a minute and keep the file's order, so the split is by time: leaving the last
event out would ask for the next line of a list.
"""

from __future__ import annotations

import os

import pandas as pd
import pyarrow as pa

from ctxrec.core.errors import UserError
from ctxrec.datasets import common

NAME, NAME_REPEATS = "online-retail", "online-retail-repeats"
WRITER_VERSION = 1
ARCHIVE_URL = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"
COLUMNS: dict[str, common.Kind] = {
    "StockCode": "text",
    "Description": "text",
    "Quantity": "number",
    "InvoiceDate": "time",
    "UnitPrice": "number",
    "CustomerID": "whole",
    "Country": "text",
}

SPEC = """\
# Online Retail (UCI Machine Learning Repository 352): CC BY 4.0. D. Chen, S. L. Sain and K. Guo, 2012, Data mining
# for the online retail industry, Journal of Database Marketing and Customer Strategy Management 19(3).
name = "{name}"

[events]
path = "events.parquet"
value = "quantity"

[events.context]
categorical = ["country"]

[items]
path = "items.parquet"
text = ["description"]
numeric = ["price"]

[split]
strategy = "temporal"
repeats = {repeats}
"""


def write_online_retail(out: str, source: str | None = None) -> bool:
    """Write the tables and the spec for first purchases; returns False when they were there, unchanged.

    Args:
        out: local folder.
        source: the archive, its workbook, or the same table as parquet or csv, or a folder with one; None: download.

    Raises:
        UserError: no source can be reached, or its table is not the one expected.
    """
    return _write(out, source, name=NAME, repeats=False)


def write_online_retail_repeats(out: str, source: str | None = None) -> bool:
    """The same tables with a spec that lets an item be bought again."""
    return _write(out, source, name=NAME_REPEATS, repeats=True)


def _write(out: str, source: str | None, *, name: str, repeats: bool) -> bool:
    spec = SPEC.format(name=name, repeats=str(repeats).lower())
    return common.write_dataset(out, source, writer=f"{name} {WRITER_VERSION}", make=lambda: _make(source, spec))


def _make(source: str | None, spec: str) -> common.Made:
    path = source or _download()
    files = common.find_files(path, ["*retail*.parquet|*retail*.xlsx|*retail*.csv"], what="Online Retail")
    ((name, data),) = files.items()
    lines = clean(common.read_frame(name, data, COLUMNS))
    return common.Made(
        tables={"events": _events(lines), "items": _items(lines)},
        spec=spec,
        source=f"{name} in {os.path.basename(os.path.abspath(path))}",
    )


def _download() -> str:
    try:
        return common.download(ARCHIVE_URL, "online-retail.zip", what="the UCI archive")
    except UserError as error:
        raise UserError(
            f"Online Retail cannot be had: {error}. Get the archive by other means and give it with --source"
        ) from error


def clean(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines that are purchases of products by known customers, in the file's own order."""
    lines = lines.assign(StockCode=lines["StockCode"].str.strip())
    bought = (lines["Quantity"] > 0) & (lines["UnitPrice"] > 0) & lines["CustomerID"].notna()
    lines = lines[bought & lines["StockCode"].str.match(r"\d{5}", na=False)]
    lines = lines.assign(CustomerID=lines["CustomerID"].astype(str))
    return lines.drop_duplicates(["CustomerID", "StockCode", "InvoiceDate"], keep="first")


def _events(lines: pd.DataFrame) -> pa.Table:
    seconds = lines["InvoiceDate"].astype("datetime64[s]").astype("int64")
    return pa.table(
        {
            "user_id": pa.array(lines["CustomerID"], pa.string()),
            "item_id": pa.array(lines["StockCode"], pa.string()),
            "quantity": pa.array(lines["Quantity"], pa.float32()),
            "timestamp": pa.array(seconds, pa.int64()),
            "country": pa.array(lines["Country"], pa.string()),
        }
    )


def _items(lines: pd.DataFrame) -> pa.Table:
    """One row a product, in the order of first purchase in the file."""
    prices = lines.groupby("StockCode", sort=False)["UnitPrice"].median()
    named = lines.assign(Description=lines["Description"].str.strip()).dropna(subset=["Description"])
    counts = named.groupby(["StockCode", "Description"], sort=False).size()
    # A stable sort: of equally frequent descriptions the one that came first.
    best = counts.sort_values(ascending=False, kind="stable").reset_index().drop_duplicates("StockCode")
    texts = best.set_index("StockCode")["Description"].reindex(prices.index)
    return pa.table(
        {
            "item_id": pa.array(prices.index.astype(str), pa.string()),
            "description": pa.array(texts, pa.string(), from_pandas=True),
            "price": pa.array(prices, pa.float32()),
        }
    )
