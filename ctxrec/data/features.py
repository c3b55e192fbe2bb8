"""Item features as arrays, and the hashes and scales that training and serving must share.

Legend: I items, M values of a categorical feature an item has at most, F numeric features.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.data.events import padded_codes
from ctxrec.data.prepared import MAX_VALUES, FeatureMeta, encode_categories

MAX_TRIPLES = 64  # pairs of the graph that an item keeps
TEXT_BUCKETS = 1 << 15  # rows of the hashed word table for text context
MAX_WORDS = 16  # words of a text context that are read
NUM_GAP_BUCKETS = 24

_WORD = re.compile(r"\w+", re.UNICODE)


@dataclass(frozen=True)
class ItemFeatures:
    """Features of all items besides their text; cat: int32 [I, M] codes padded with MISSING."""

    ids: list[str]
    cat: dict[str, np.ndarray]
    num: np.ndarray  # float32 [I, F], scaled, 0 where missing
    num_present: np.ndarray  # float32 [I, F]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def item_features(items: pa.Table, features: FeatureMeta) -> ItemFeatures:
    """Features of an item table (`schema.items_schema`)."""
    num_items = items.num_rows
    cat = {name: _padded_codes(items, name, values) for name, values in features.item_categories.items()}
    columns, present = [], []
    for name, scale in features.item_numbers.items():
        raw = items.column(schema.numeric_column(name)).to_numpy().astype(np.float32)
        values, mask = scale_numbers(raw, scale)
        columns.append(values)
        present.append(mask)
    empty = np.zeros((num_items, 0), np.float32)
    return ItemFeatures(
        ids=items.column(schema.ITEM_ID).to_pylist(),
        cat=cat,
        num=np.stack(columns, 1) if columns else empty,
        num_present=np.stack(present, 1) if present else empty,
        texts=[text or "" for text in items.column(schema.ITEM_TEXT).to_pylist()],
    )


def _padded_codes(items: pa.Table, name: str, vocabulary: list[str]) -> np.ndarray:
    column = items.column(schema.category_column(name)).combine_chunks()
    lengths = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)
    codes = encode_categories(column.flatten(), vocabulary).to_numpy()
    most = MAX_TRIPLES if name == schema.GRAPH else MAX_VALUES
    return padded_codes(codes, lengths, int(min(max(lengths.max(initial=0), 1), most)))


def scale_numbers(raw: np.ndarray, scale: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """sign(x)·log(1+|x|) as a z-score within ±5, 0 where missing; and 1 where present. float32, both of raw's shape."""
    raw = np.asarray(raw, np.float64)
    present = np.isfinite(raw)
    safe = np.where(present, raw, 0.0)
    z = (np.sign(safe) * np.log1p(np.abs(safe)) - scale["mean"]) / scale["std"]
    return np.where(present, np.clip(z, -5, 5), 0).astype(np.float32), present.astype(np.float32)


def hash_id(text: str, buckets: int) -> int:
    """A stable hash of an id or a word to [0, buckets)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % buckets


def id_rows(ids: list[str], buckets: int) -> np.ndarray:
    """Row of the ID embedding for each item, hashed where the items are more than the rows: int64 [I]."""
    if len(ids) <= buckets:
        return np.arange(len(ids))
    return np.array([hash_id(item, buckets) for item in ids], np.int64)


def gap_buckets(seconds: np.ndarray) -> np.ndarray:
    """Log2 bucket of gaps in seconds: 1 below 1 s, 2 below 3 s, 3 below 7 s, ...; 0 is unknown. int64 of the same shape."""
    seconds = np.asarray(seconds, np.float64)
    known = np.isfinite(seconds)
    level = np.log2(np.maximum(np.where(known, seconds, 0), 0) + 1) + 1
    return np.where(known, np.minimum(level, NUM_GAP_BUCKETS - 1), 0).astype(np.int64)


def word_rows(texts: np.ndarray) -> np.ndarray:
    """Hashed words of text contexts: int64 [N, MAX_WORDS], 0 = no word."""
    rows = np.zeros((len(texts), MAX_WORDS), np.int64)
    known: dict[str, list[int]] = {}
    for n, text in enumerate(texts):
        if not text:
            continue
        if text not in known:
            words = _WORD.findall(text.lower())[:MAX_WORDS]
            known[text] = [1 + hash_id(word, TEXT_BUCKETS - 1) for word in words]
        rows[n, : len(known[text])] = known[text]
    return rows
