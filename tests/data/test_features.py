"""Item features as arrays; hashes, scales and buckets by hand."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.core import schema
from ctxrec.data.features import (
    MAX_VALUES,
    MAX_WORDS,
    NUM_GAP_BUCKETS,
    TEXT_BUCKETS,
    gap_buckets,
    hash_id,
    id_rows,
    item_features,
    scale_numbers,
    word_rows,
)
from ctxrec.data.prepared import FeatureMeta


def meta(**changes) -> FeatureMeta:
    empty = {
        "item_categories": {}, "item_numbers": {}, "user_categories": {}, "user_numbers": {},
        "context_categories": {}, "context_numbers": {}, "context_texts": [], "actions": [],
    }  # fmt: skip
    return FeatureMeta(**{**empty, **changes})


def table(num_items: int, **columns: pa.Array) -> pa.Table:
    ids = [f"i{n}" for n in range(num_items)]
    return pa.table({schema.ITEM_ID: ids, schema.ITEM_TEXT: pa.array([None] * num_items, pa.string()), **columns})


def test_categories_are_codes_padded_with_missing():
    values = pa.chunked_array(
        [
            pa.array([["b", "a"], [], None], pa.list_(pa.string())),
            pa.array([["a", "?", "", "c"]], pa.list_(pa.string())),
        ]
    )
    made = item_features(table(4, cat_kind=values), meta(item_categories={"kind": ["a", "b", "c"]}))
    assert made.cat["kind"].tolist() == [[3, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, schema.OTHER, schema.MISSING, 4]]
    assert len(made) == 4 and made.texts == [""] * 4 and made.num.shape == made.num_present.shape == (4, 0)


def test_an_item_keeps_its_first_values():
    many = pa.array([["a"] * 3 + ["b"] * 30, ["b"]], pa.list_(pa.string()))
    codes = item_features(table(2, cat_kind=many), meta(item_categories={"kind": ["a", "b"]})).cat["kind"]
    assert codes.shape == (2, MAX_VALUES)
    assert codes[0].tolist() == [2] * 3 + [3] * (MAX_VALUES - 3) and codes[1].tolist() == [3] + [0] * (MAX_VALUES - 1)


def test_a_column_without_any_value_has_one_slot():
    nothing = pa.array([None, []], pa.list_(pa.string()))
    assert item_features(table(2, cat_kind=nothing), meta(item_categories={"kind": []})).cat["kind"].tolist() == [
        [0],
        [0],
    ]


def test_numbers_by_hand():
    scale = {"mean": 1.0, "std": 0.5}
    values, present = scale_numbers(np.array([0.0, math.e - 1, -(math.e - 1), 1e30, -1e30, np.nan, np.inf]), scale)
    np.testing.assert_allclose(values, [-2, 0, -4, 5, -5, 0, 0], atol=1e-6)
    assert present.tolist() == [1, 1, 1, 1, 1, 0, 0] and values.dtype == present.dtype == np.float32
    made = item_features(
        table(
            3, num_price=pa.array([math.e - 1, None, 0.0], pa.float32()), num_size=pa.array([None] * 3, pa.float32())
        ),
        meta(item_numbers={"price": scale, "size": scale}),
    )
    np.testing.assert_allclose(made.num, [[0, 0], [0, 0], [-2, 0]], atol=1e-6)
    assert made.num_present.tolist() == [[1, 0], [0, 0], [1, 0]]


def test_hashes_are_those_of_blake2b_whatever_the_process():
    assert hash_id("item 1", 1 << 62) == int.from_bytes(
        hashlib.blake2b(b"item 1", digest_size=8).digest(), "little"
    ) % (1 << 62)
    spread = np.bincount([hash_id(f"i{n}", 10) for n in range(10_000)], minlength=10)
    assert spread.min() > 800


def test_id_rows_are_own_rows_or_hashed_ones():
    ids = [f"i{n}" for n in range(8)]
    assert id_rows(ids, 8).tolist() == list(range(8))
    hashed = id_rows(ids, 7)
    assert hashed.tolist() == [hash_id(i, 7) for i in ids] and hashed.max() < 7
    assert id_rows(ids[::-1], 7).tolist() == hashed.tolist()[::-1], "a hashed row does not depend on the position"


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0, 1),
        (0.9, 1),
        (1, 2),
        (2.9, 2),
        (3, 3),
        (7, 4),
        (-5, 1),
        (np.nan, 0),
        (np.inf, 0),
        (1e300, NUM_GAP_BUCKETS - 1),
    ],
)
def test_gap_buckets(seconds, bucket):
    assert gap_buckets(np.array([seconds])).tolist() == [bucket]


def test_word_rows():
    rows = word_rows(np.array(["Red shoe", None, "", "shoe, RED!", "..."] + [" ".join(["w"] * 40)], object))
    assert rows.shape == (6, MAX_WORDS) and rows.max() < TEXT_BUCKETS
    red, shoe = (1 + hash_id(word, TEXT_BUCKETS - 1) for word in ("red", "shoe"))
    assert rows[0].tolist() == [red, shoe] + [0] * (MAX_WORDS - 2)
    assert rows[3, :2].tolist() == [shoe, red]
    assert not rows[[1, 2, 4]].any() and (rows[5] == 1 + hash_id("w", TEXT_BUCKETS - 1)).all()
