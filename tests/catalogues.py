"""Catalogues without a model, for tests of what reads them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.core.dataset_spec import ItemsSpec
from ctxrec.data.events import Context, Events
from ctxrec.retrieval.live_catalogue import EncodedItems, LiveCatalogue


def with_ids(columns: dict[str, pa.Array], ids: list[str]) -> pa.Table:
    """Columns of items with ids and without titles."""
    return pa.table({schema.ITEM_ID: pa.array(ids), schema.ITEM_TITLE: pa.nulls(len(ids), pa.string()), **columns})


def catalogue_of(items: pa.Table, spec: ItemsSpec | None, *, width: int = 1) -> LiveCatalogue:
    """A catalogue of these items, with vectors of zeros and without any event."""
    none = np.zeros(0, np.int64)
    events = Events(np.array([0]), none.astype(np.int32), none, none.astype(np.int16), Context({}, {}, {}))
    return LiveCatalogue(items, spec, np.zeros((items.num_rows, width), np.float32), events)


def encoded(items: pa.Table, num_bundled: int, *, value: float = 0, width: int = 1) -> EncodedItems:
    """Rows for `LiveCatalogue.put`, with one number in all vectors and proxy weights."""
    weights = sp.csr_array(np.full((items.num_rows, num_bundled), value, np.float32))
    return EncodedItems(items, np.full((items.num_rows, width), value, np.float32), weights)
