"""The tasks of `prepare` in this process, one after another, as Ray would run them: for tests that prepare many small logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from ctxrec.ingest import bucket_pass, log_pass, temporal_cuts


def prepare_here(patch: pytest.MonkeyPatch) -> None:
    """Let `prepare` run without Ray until the patch ends."""

    def map_in_order(inputs: list[pa.Table], task: Any, **arguments: Any) -> Iterator[pa.Table]:
        for block in inputs:
            yield from task(block, **arguments)

    for module in (log_pass, bucket_pass, temporal_cuts):
        patch.setattr(module, "map_in_order", map_in_order)
    patch.setattr("ctxrec.core.ray_cluster.connect", lambda *a, **k: None)
    for name in ("put", "get"):
        patch.setattr(f"ray.{name}", lambda value: value)
