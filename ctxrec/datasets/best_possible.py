"""The best possible rankings of a simulated log, whichever simulation wrote it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.datasets import oracle
from ctxrec.datasets.described import DescribedTruth
from ctxrec.datasets.described_oracle import DescribedOracle
from ctxrec.datasets.news import NewsTruth
from ctxrec.datasets.oracle import Oracle
from ctxrec.datasets.shop import ShopTruth
from ctxrec.datasets.simulation import TRUTH

Oracles = dict[str, Oracle | DescribedOracle | NewsTruth | ShopTruth]


def load_oracles(folder: str, prepared: PreparedData) -> Oracles:
    """The rankers that know the true preferences, by their names in `metrics.json`.

    Args:
        folder: what `ctxrec datasets simulate`, `simulate-news` or `simulate-shop` wrote.
        prepared: the data prepared from it.

    Raises:
        UserError: the folder does not hold a simulated log, or the data comes from another one.
    """
    path = storage.join(folder, TRUTH)
    arrays = safetensors.numpy.load(storage.read_bytes(path)) if storage.exists(path) else {}
    moving = next((kind for kind in (NewsTruth, ShopTruth) if kind.is_in(arrays)), None)
    truth = DescribedTruth.of(arrays) if moving is None else moving.of(arrays)
    if truth is None:
        return {**oracle.load_oracles(folder, prepared)}
    expected = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, "items.parquet"))))
    found = prepared.items
    if [found[name].to_pylist() for name in (schema.ITEM_ID, schema.ITEM_TITLE)] != [
        expected[name].to_pylist() for name in ("item_id", "title")
    ]:
        raise UserError(
            f"the items of {prepared.path} ({len(found):,}) are not those of the simulated log in {folder} "
            f"({len(expected):,}); expected data that was prepared from that log as it is there now"
        )
    return {"oracle": DescribedOracle(truth) if isinstance(truth, DescribedTruth) else truth}


def oracle_of_log(known: Oracle | DescribedOracle, prepared: PreparedData, before: int) -> Oracle | DescribedOracle:
    """An upper bound that knows the simulator's parameters and learns from the log what the users like.

    Args:
        known: ranks by the true parameters.
        prepared: the data with the events.
        before: the events of splits earlier than this one count.
    """
    if isinstance(known, DescribedOracle):
        return known.of_log(prepared, before)
    return oracle.oracle_of_log(known, prepared, before)
