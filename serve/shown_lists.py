"""Whether users take what they were shown: the first event of a user after a list, by the version that made the list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ctxrec.data.feedback import EventKinds
from ctxrec.live.store import LoggedEvent
from serve.arms import Call
from serve.engine import Answer, Reply

_MOST_USERS = 20_000  # whose last list is remembered
_MOST_ITEMS = 50  # of a list
_KEPT_S = 1_800.0  # an event later than that is no answer to the list


class ShownLists:
    """The last list of each user, until the user's next event, in this replica.

    With several replicas an event may reach another one than its list did, and then counts nowhere. That is so for the
    lists of all versions alike.

    Args:
        count: takes a version, and whether its list had the item.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, count: Callable[[str, bool], None], *, now: Callable[[], float] = time.monotonic) -> None:
        self._count, self._now = count, now
        self._lists: dict[str, tuple[float, str, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def add(self, calls: Sequence[Call], replies: Sequence[Reply]) -> None:
        """Remember what was answered."""
        at = self._now()
        with self._lock:
            for (requests, _), reply in zip(calls, replies, strict=True):
                for body, answer in zip(requests, reply.answers, strict=True):
                    if isinstance(answer, Answer) and body.user_id is not None:
                        self._lists.pop(body.user_id, None)  # so that the latest one is the last
                        self._lists[body.user_id] = (at, answer.model_version, tuple(answer.item_ids[:_MOST_ITEMS]))
            while len(self._lists) > _MOST_USERS:
                del self._lists[next(iter(self._lists))]

    def credit(self, events: Sequence[LoggedEvent], kinds: EventKinds) -> None:
        """Count each event whose user had a list, and forget the list.

        Args:
            events: that were stored.
            kinds: say which events are negative feedback, which does not count.
        """
        at = self._now()
        for event in events:
            if kinds.is_negative(event.action, event.value):
                continue
            with self._lock:
                shown = self._lists.pop(event.user_id, None)
            if shown is not None and at - shown[0] <= _KEPT_S:
                self._count(shown[1], event.item_id in shown[2])
