"""What the store holds of the users who ask: their posted events and attributes, read once for a whole batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ctxrec.data.events import US
from ctxrec.live.store import HistoryStore, LoggedEvent, StoreError
from ctxrec.retrieval.raw_request import RawEvent
from ctxrec.retrieval.recommender import Recommender
from serve.api import RecommendRequest

HISTORY, USER = "history", "user"  # what an answer had to do without
_SKEW_S = 300  # a client's clock may be so far ahead; its events count at once all the same
_Found = TypeVar("_Found")
_PAUSE_S = 1.0  # a store that did not answer is left alone for so long


class StoreReader:
    """Reads a store for the requests of a batch. A store that does not answer is left alone for a second.

    Args:
        recommender: that is asked; says which contexts and attributes can be read.
        store: None: there is nothing but what the bundle has.
    """

    def __init__(self, recommender: Recommender, store: HistoryStore | None) -> None:
        self._recommender, self._store = recommender, store
        self._pause_until = 0.0

    def recent(
        self, bodies: Sequence[RecommendRequest], asked: Sequence[float]
    ) -> tuple[list[Sequence[RawEvent]], list[str | None]]:
        """Posted events of the user of each request that brings no history, and what could not be read.

        Args:
            bodies: N requests.
            asked: their times, epoch seconds.
        """
        recent: list[Sequence[RawEvent]] = [()] * len(bodies)
        which = [n for n, body in enumerate(bodies) if body.user_id is not None and body.history is None]
        until = [asked[n] + (_SKEW_S if bodies[n].context.timestamp is None else 0) for n in which]
        asked_for = [(bodies[n].user_id or "", round(at * US)) for n, at in zip(which, until, strict=True)]
        pairs = list(dict.fromkeys(asked_for))  # a list may ask many times for one user
        if self._store is None or not which:
            return recent, [None] * len(bodies)
        store = self._store
        found = self._read(lambda: store.latest([user for user, _ in pairs], [at for _, at in pairs]))
        if found is None:
            return recent, [HISTORY if body.history is None else None for body in bodies]
        read = {pair: self._logged(events) for pair, events in zip(pairs, found, strict=True)}
        for n, pair in zip(which, asked_for, strict=True):
            recent[n] = read[pair]
        return recent, [None] * len(bodies)

    def attributes(self, bodies: Sequence[RecommendRequest]) -> tuple[list[Mapping[str, Any] | None], list[str | None]]:
        """What each request says of its user, over what was posted of the user; and what could not be read.

        A posted row stands for the whole row of the user file: attributes that it lacks are not known.
        """
        said: list[Mapping[str, Any] | None] = [body.user or None for body in bodies]
        nothing: list[str | None] = [None] * len(bodies)
        reader = self._recommender.attributes
        names = list(dict.fromkeys(body.user_id for body in bodies if body.user_id is not None))
        if self._store is None or not names or not reader.names:
            return said, nothing
        store = self._store
        posted = self._read(lambda: store.posted_rows("users", names))
        if posted is None:
            return said, [None if body.user_id is None else USER for body in bodies]
        if not posted:
            return said, nothing
        unknown = dict.fromkeys(reader.names)
        rows = {name: unknown | reader.usable(row or {}) for name, row in posted.items()}
        return [
            made if body.user_id not in rows else {**rows[body.user_id], **body.user}
            for body, made in zip(bodies, said, strict=True)
        ], nothing

    def _read(self, ask: Callable[[], _Found]) -> _Found | None:
        """What the store answers; None where it does not, and for a while after that."""
        if time.monotonic() < self._pause_until:
            return None
        try:
            return ask()
        except StoreError:  # `StoreFailures` has logged it
            self._pause_until = time.monotonic() + _PAUSE_S
            return None

    def _logged(self, events: Sequence[LoggedEvent]) -> list[RawEvent]:
        """Stored events, without the context features that this version of the model does not know."""
        contexts = self._recommender.contexts.all_usable([event.context for event in events])
        return [
            RawEvent(event.item_id, event.action, event.time_us / US, context, event.value)
            for event, context in zip(events, contexts, strict=True)
        ]
