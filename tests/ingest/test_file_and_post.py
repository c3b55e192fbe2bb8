"""An item is the same whether a line of a file brings it or a call to the service."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.item_rows import items_table
from ctxrec.data.posted_rows import check_rows, posted_table
from ctxrec.ingest import readers
from ctxrec.ingest.entities import read_entities

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["A|B", " | ", "['A', 'B']", "[1, 2]", "1.50", "TRUE", "2024-01-01", "007"]),
)
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(-3e38, 3e38),
    st.floats(1e9, 1e17),
    st.sampled_from([1e-5, 1e10 + 0.5, 19.99]),
)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ROWS = st.fixed_dictionaries(
    {
        "item_id": st.just("x"),
        "title": VALUES,
        "kind": VALUES | st.lists(VALUES, max_size=3),
        "both": VALUES,
        "price": st.none() | NUMBERS,
    }
)


@pytest.mark.parametrize("separators", [{}, {"kind": "|", "both": "|"}, {"kind": "[]"}])
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(row=ROWS)
def test_a_posted_item_is_the_item_of_a_file(tmp_path, separators, row):
    items = {"path": "i", "text": ["title", "both"], "categorical": ["kind", "both"], "numeric": ["price"]}
    spec = DatasetSpec.from_dict({"name": "t", "events": {"path": "e"}, "items": {**items, "separators": separators}})
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row) + "\n")
    columns = ["title", "kind", "both", "price"]
    read = read_entities(
        readers.inspect(str(path), ["item_id", *columns], section="items"), "item_id", columns, what="item",
        max_id_bytes=1024, rejects=str(tmp_path / "rejects"), separators=separators, numeric=["price"],
    )  # fmt: skip
    prepared = items_table(spec, read, pa.array([], pa.string()), np.zeros(1, np.int64))
    check_rows([row], spec)
    assert posted_table([row], spec).to_pylist() == prepared.to_pylist()
