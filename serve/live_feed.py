"""Posted events of all users on their way from the store to the live statistics of a replica's model."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from ctxrec.data.events import US
from ctxrec.live.store import HistoryStore, LoggedEvent, StoreError
from ctxrec.retrieval.live_statistics import LiveStatistics, Seen

logger = logging.getLogger(__name__)

_AT_ONCE = 5_000  # events of one read of the store


class LiveFeed:
    """Reads what was posted to any replica, also before this one started, and counts it.

    `pull` reads the store, from any thread. `take` counts what was read, and is for the thread that computes, between two
    requests. Nothing is lost where the store does not answer: the next pull goes on after the last event that was read.

    Args:
        statistics: of a version of the model.
        store: that all replicas share; None: there are no posted events.
    """

    def __init__(self, statistics: LiveStatistics, store: HistoryStore | None) -> None:
        self.statistics, self._store = statistics, store
        self._mark: Any = None
        self._waiting: deque[list[Seen]] = deque()
        self._pulling = threading.Lock()

    def pull(self) -> None:
        """Read what came since the last time."""
        if self._store is None:
            return
        with self._pulling:
            try:
                while True:
                    events, self._mark = self._store.events_since(self._mark, _AT_ONCE)
                    if events:
                        self._waiting.append([self._seen(event) for event in events])
                    if len(events) < _AT_ONCE:
                        return
            except StoreError:  # `StoreFailures` has logged it
                return

    def _seen(self, event: LoggedEvent) -> Seen:
        codes = self.statistics.codes(event.context)
        return Seen(event.user_id, event.item_id, event.time_us, event.action, event.value, codes)

    def take(self) -> None:
        """Count what was read."""
        while self._waiting:
            self.statistics.add(self._waiting.popleft(), now_us=round(time.time() * US))
