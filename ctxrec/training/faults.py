"""Faults of a training: what its driver and its workers tell each other through files in the run folder.

checkpoints/mistake.json   the message of a user's mistake that a worker found; the driver reports it
checkpoints/stop           the driver was asked to end; the workers save a checkpoint and return
checkpoints/skipped.json   steps that are left out because their loss was not finite ([phase, step])
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator

from ctxrec.core import storage
from ctxrec.core.errors import UserError

_MISTAKE, _STOP, _SKIPPED = "mistake.json", "stop", "skipped.json"
_LOOK_EVERY_S = 1.0
_DISK_FULL = re.compile(r"No space left on device|ENOSPC|Disk quota exceeded")
# Messages of gloo, NCCL and Ray Train about a worker that does not answer.
_STUCK = re.compile(
    r"Timed out waiting \d+ms|Watchdog caught collective operation timeout|health check has been hanging|"
    r"CollectiveTimeoutError"
)


def clear(checkpoints: str) -> None:
    """Delete the mistake and the stop file of earlier attempts; skipped steps stay skipped."""
    for name in (_MISTAKE, _STOP):
        storage.delete(storage.join(checkpoints, name))


def record_mistake(checkpoints: str, error: UserError) -> None:
    """Keep a user's mistake for the driver."""
    storage.write_json(storage.join(checkpoints, _MISTAKE), {"message": str(error)})


def mistake(checkpoints: str) -> UserError | None:
    """The mistake that a worker has recorded; None where there is none."""
    path = storage.join(checkpoints, _MISTAKE)
    return UserError(storage.read_json(path)["message"]) if storage.exists(path) else None


def skipped(checkpoints: str) -> set[tuple[str, int]]:
    """Phase and step of each step that is left out."""
    path = storage.join(checkpoints, _SKIPPED)
    return {(phase, step) for phase, step in storage.read_json(path)} if storage.exists(path) else set()


def skip(checkpoints: str, phase: str, step: int) -> None:
    """Leave a step out from now on."""
    storage.write_json(storage.join(checkpoints, _SKIPPED), sorted(skipped(checkpoints) | {(phase, step)}))


def explain(failure: str, out: str, timeout_s: int) -> str | None:
    """One line about a failure that a user can remedy; None for any other failure."""
    if _DISK_FULL.search(failure):
        return f"no space is left for {out}; free some, then the same command goes on from the last checkpoint"
    if _STUCK.search(failure):
        return (
            f"a worker did not answer for train.timeout_s = {timeout_s} s: its machine is stuck, or a step takes longer "
            "than that; the same command goes on from the last checkpoint"
        )
    return None


@contextlib.contextmanager
def stop_on_sigterm(checkpoints: str) -> Iterator[None]:
    """In this context SIGTERM asks the workers to save and return. Outside of the main thread it has no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_args: object) -> None:
        storage.write_text(storage.join(checkpoints, _STOP), "")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_asked(checkpoints: str) -> bool:
    """Whether the training was asked to end."""
    return storage.exists(storage.join(checkpoints, _STOP))


class StopWatch:
    """Checks once a second at most whether the training was asked to end."""

    def __init__(self, checkpoints: str) -> None:
        self._checkpoints, self._next, self.asked = checkpoints, 0.0, False

    def look(self) -> bool:
        """Whether the training was asked to end, as far as is known."""
        if not self.asked and time.monotonic() >= self._next:
            self.asked = stop_asked(self._checkpoints)
            self._next = time.monotonic() + _LOOK_EVERY_S
        return self.asked
