"""One attempt at a training, by Ray's workers or in this process: what comes before it and after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ctxrec.core.errors import Stopped
from ctxrec.core.run_paths import RunPaths
from ctxrec.training import checkpoint, faults


@contextlib.contextmanager
def attempt(run: str, *, keep: int) -> Iterator[None]:
    """Train inside this context: SIGTERM asks to stop, a user's mistake is told, and old checkpoints are deleted.

    Args:
        run: path or URI of the run.
        keep: number of the newest checkpoints that stay.

    Raises:
        UserError: the training recorded a user's mistake.
        Stopped: SIGTERM came, and a checkpoint is saved.
    """
    checkpoints = RunPaths(run).checkpoints
    faults.clear(checkpoints)
    checkpoint.tidy(checkpoints, keep)
    with faults.stop_on_sigterm(checkpoints):
        try:
            yield
        finally:
            if (mistake := faults.mistake(checkpoints)) is not None:
                raise mistake
    checkpoint.tidy(checkpoints, keep)
    if faults.stop_asked(checkpoints):
        raise Stopped(f"stopped as asked, and saved; the same command goes on with {run}")
