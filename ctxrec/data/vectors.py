"""Rows of vectors: unit length and principal axes.

Legend: N rows, H width.
"""

from __future__ import annotations

import numpy as np


def principal_axes(centred_NH: np.ndarray, width: int) -> np.ndarray:
    """The `width` directions in which vectors vary most, by falling variance: float32 [H, width]."""
    _, axes = np.linalg.eigh((centred_NH.T @ centred_NH).astype(np.float64))
    return np.ascontiguousarray(axes[:, ::-1][:, :width], dtype=np.float32)


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32 [N, H]; a row of zeros stays."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)
