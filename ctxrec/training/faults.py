"""What a training's driver and its workers tell each other through the run folder when something is wrong.

checkpoints/mistake.json   a worker found a user's mistake: its message, for the driver to report
checkpoints/stop           the driver was asked to end: the workers save and return
checkpoints/skipped.json   steps that are left out, as their loss was not finite ([phase, step])
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
# What gloo, NCCL and Ray Train say of a worker that others wait for in vain.
_STUCK = re.compile(
    r"Timed out waiting \d+ms|Watchdog caught collective operation timeout|health check has been hanging|"
    r"CollectiveTimeoutError"
)


def clear(checkpoints: str) -> None:
    """Forget what earlier attempts said of themselves; skipped steps stay skipped."""
    for name in (_MISTAKE, _STOP):
        storage.delete(storage.join(checkpoints, name))


def record_mistake(checkpoints: str, error: UserError) -> None:
    storage.write_json(storage.join(checkpoints, _MISTAKE), {"message": str(error)})


def mistake(checkpoints: str) -> UserError | None:
    """What a worker has recorded."""
    path = storage.join(checkpoints, _MISTAKE)
    return UserError(storage.read_json(path)["message"]) if storage.exists(path) else None


def skipped(checkpoints: str) -> set[tuple[str, int]]:
    """Phase and step of what is left out."""
    path = storage.join(checkpoints, _SKIPPED)
    return {(phase, step) for phase, step in storage.read_json(path)} if storage.exists(path) else set()


def skip(checkpoints: str, phase: str, step: int) -> None:
    """Leave a step out from now on."""
    storage.write_json(storage.join(checkpoints, _SKIPPED), sorted(skipped(checkpoints) | {(phase, step)}))


def explain(failure: str, out: str, timeout_s: int) -> str | None:
    """In one line what a failure's text says, where it is one that a user can do something about."""
    if _DISK_FULL.search(failure):
        return f"no space is left for {out}; make some, then the same command goes on from the last checkpoint"
    if _STUCK.search(failure):
        return (
            f"a worker did not answer for train.timeout_s = {timeout_s} s: its machine is stuck, or a step takes longer "
            "than that; the same command goes on from the last checkpoint"
        )
    return None


@contextlib.contextmanager
def stop_on_sigterm(checkpoints: str) -> Iterator[None]:
    """While this is open, SIGTERM asks the workers to save and return. Does nothing outside of the main thread."""
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
    return storage.exists(storage.join(checkpoints, _STOP))


class StopWatch:
    """Looks from time to time whether the training was asked to end."""

    def __init__(self, checkpoints: str) -> None:
        self._checkpoints, self._next, self.asked = checkpoints, 0.0, False

    def look(self) -> bool:
        if not self.asked and time.monotonic() >= self._next:
            self.asked = stop_asked(self._checkpoints)
            self._next = time.monotonic() + _LOOK_EVERY_S
        return self.asked
