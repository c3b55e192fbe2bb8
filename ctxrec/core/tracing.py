"""Names of sections in a trace of `--profile`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.profiler import record_function

PREFIX = "ctxrec."

_tracing = False


def set_tracing(on: bool) -> None:
    """Say whether a trace is being taken. If so, each section waits for the work that it started on a GPU."""
    global _tracing
    _tracing = on


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Name the work inside this context in a trace. Without a trace the cost is negligible."""
    with record_function(PREFIX + name):
        yield
        if _tracing and torch.cuda.is_available():
            torch.cuda.synchronize()  # wait for the GPU work that this section started
