"""The protocol of a baseline.

Legend: N requests, I items.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ctxrec.data.requests import Requests


class Baseline(Protocol):
    """A recommender that is fitted to the training events. Requests without history get defined scores, too."""

    def scores(self, requests: Requests) -> np.ndarray:
        """float [N, I], higher is better."""
        ...
