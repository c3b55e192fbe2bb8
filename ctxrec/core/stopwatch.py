"""How long the stages of a piece of work take."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds the time since the last lap to the stage that has just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
