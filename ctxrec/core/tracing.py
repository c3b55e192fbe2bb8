"""Names for what runs, as they appear in a trace of `--profile`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.profiler import record_function

PREFIX = "ctxrec."

_tracing = False


def set_tracing(on: bool) -> None:
    """Whether a trace is being taken: sections then wait for what they started on a GPU."""
    global _tracing
    _tracing = on


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Name what runs inside in a trace; the cost is negligible when no trace is taken."""
    with record_function(PREFIX + name):
        yield
        if _tracing and torch.cuda.is_available():
            torch.cuda.synchronize()  # what was started here ends here
