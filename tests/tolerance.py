"""How far two computations of the same thing may differ, stated once.

Which kernel a matrix product takes depends on the CPU and on the shape of the batch, so the same request in another
batch can have a score that differs in its last bits. The contract of the API is a relative difference of 1e-5.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

SCORE_RTOL = 1e-5  # of scores of one request in two batches, two workers or on two machines
SCORE_ATOL = 1e-5  # a score is a sum of several sources and may be near 0


def assert_same_scores(found: ArrayLike, wanted: ArrayLike) -> None:
    np.testing.assert_allclose(found, wanted, rtol=SCORE_RTOL, atol=SCORE_ATOL)


def assert_same_answers(found: list[Any], wanted: list[Any]) -> None:
    """Answers of `serve.engine`, equal in everything but the last bits of their scores."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert dataclasses.replace(one, scores=[]) == dataclasses.replace(other, scores=[])
        assert_same_scores(one.scores, other.scores)


def assert_same_json(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Answers of the HTTP API, equal in everything but the last bits of their scores."""
    for answer in (found, wanted):
        assert {"items", "model_version", "fallback"} <= answer.keys(), answer
    assert {**found, "items": None} == {**wanted, "items": None}
    assert [item["item_id"] for item in found["items"]] == [item["item_id"] for item in wanted["items"]]
    assert_same_scores([item["score"] for item in found["items"]], [item["score"] for item in wanted["items"]])
