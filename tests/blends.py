"""Blends without a training, for tests of what reads them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ctxrec.memory.blend import Blend
from ctxrec.memory.item_memory import ItemMemory


def blend_of(item_vectors: np.ndarray, widths: tuple[int, ...]) -> Blend:
    """A blend with a random memory that leaves some pairs out."""
    rng = np.random.default_rng(0)
    num = len(item_vectors)
    pairs = sp.random_array((num, num), density=0.3, format="csr", dtype=np.float32, rng=rng)
    memory = ItemMemory(
        cooccurrence_II=pairs, next_II=pairs.T.tocsr(), repeats=True,
        popularity_I=rng.normal(size=num).astype(np.float32), recent_I=rng.normal(size=num).astype(np.float32),
        known_I=np.arange(num) > 0,
    )  # fmt: skip
    return Blend.of(memory, None, item_vectors, widths)
