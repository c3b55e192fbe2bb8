"""Requests in a user's words as arrays: who asks, when, in which context, after which history.

Legend: N requests.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.clock import Clock
from ctxrec.data.events import US, Events, Histories, Users, concat_events
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.data.user_ids import UserIds, user_ids_of
from ctxrec.retrieval.live_catalogue import LiveCatalogue
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_reader import ContextReader, microseconds, queries_of
from ctxrec.retrieval.user_attributes import UserReader


class RequestMaker:
    """Makes the arrays of requests from what users ask, with what a bundle stores of them.

    Args:
        spec: the data set of the bundle.
        features: its features.
        histories: its users with their attributes and events.
        catalogue: its items, and those that came later.
    """

    def __init__(
        self, spec: DatasetSpec, features: FeatureMeta, histories: Histories, catalogue: LiveCatalogue
    ) -> None:
        self.histories, self.catalogue = histories, catalogue
        ids = histories.users.ids if isinstance(histories.users.ids, UserIds) else user_ids_of(histories.users.ids)
        self.user_ids, self.user_row = ids, ids.rows
        self.contexts = ContextReader(features, Clock.of(spec, features))
        self.attributes = UserReader(features)
        self.kinds = EventKinds.of(spec.events, features.actions, features.graded)

    def make(self, raw: Sequence[RawRequest], *, including_now: bool = False) -> tuple[Requests, np.ndarray]:
        """Requests as arrays, and which of them have no history to go by (bool [N], "fallback").

        Unknown users and items are fine: an unknown item of a history is left out.

        Args:
            raw: N requests.
            including_now: whether a stored history includes events at the very time of the request. The service says
                yes, because what happened there is known. A row of a requests file may stand for an event of the log,
                which must not be known to it.

        Raises:
            UserError: a context key or a user attribute is unknown, or a value has the wrong type; names the key.
        """
        now_us = round(time.time() * US)
        asked = [r.context.get("timestamp") if r.timestamp is None else r.timestamp for r in raw]
        times = np.array([microseconds(at, now_us) for at in asked], np.int64)
        rows = [self.user_row.get(r.user_id, -1) if r.user_id is not None else -1 for r in raw]
        requests = Requests(
            users=self._users(raw, np.array(rows, np.int64)),
            history=self._histories(raw, rows, times + 1 if including_now else times, times),
            times=times,
            context=self.contexts.read_requests([r.context for r in raw], times),
            query=queries_of([r.query for r in raw]),
            disliked=self._disliked(raw),
        )
        return requests, requests.history.lengths == 0

    def _disliked(self, raw: Sequence[RawRequest]) -> np.ndarray | None:
        """Positions of the items that each request dislikes, without those that the catalogue lacks; None where there are none."""
        if not any(r.dislike for r in raw):
            return None
        made = np.empty(len(raw), object)
        for n, request in enumerate(raw):
            made[n] = np.unique(self.catalogue.positions(request.dislike)).astype(np.int32)
        return made if any(map(len, made)) else None

    def _histories(self, raw: Sequence[RawRequest], rows: Sequence[int], ends: np.ndarray, times: np.ndarray) -> Events:
        """The history of each request before its end time. Histories of the bundle are cut all at once, others are
        made one by one."""
        own = {n for n, r in enumerate(raw) if r.history is not None or r.recent}
        spans = [(0, 0) if n in own else self._span(row, int(ends[n])) for n, row in enumerate(rows)]
        starts, stops = np.array(spans, np.int64).reshape(-1, 2).T
        stored = self.histories.events.cut(starts, stops)
        if not own:
            return stored
        pool = concat_events(
            [stored, *(self._own_history(raw[n], rows[n], int(ends[n]), int(times[n])) for n in sorted(own))]
        )
        places = np.arange(len(raw))
        places[sorted(own)] = len(raw) + np.arange(len(own))
        return pool.cut(pool.offsets[places], pool.offsets[places + 1])

    def _own_history(self, request: RawRequest, row: int, before_us: int, asked_us: int) -> Events:
        """The history that a request brings along, or the stored one with what happened since."""
        if request.history is not None:
            return self._given(request.history, asked_us)
        return self._known(row, before_us, request.recent)

    def _known(self, row: int, before_us: int, recent: Sequence[RawEvent]) -> Events:
        """The bundle's history of a user and what happened since, each event once, in the order of time."""
        stored = self._stored(row, before_us)
        if not recent:
            return stored
        since = self._given(recent, before_us)
        both = concat_events([stored, since])
        ends = int(stored.times[-1]) if len(stored.times) else -1
        if len(since.times) == 0 or ends < since.times[0]:
            order = np.arange(len(both.items))
        else:  # a bundle trained on the store's own events holds some of them already
            keys = zip(both.times.tolist(), both.items.tolist(), both.actions.tolist(), strict=True)
            first = np.array(list({key: n for n, key in reversed(list(enumerate(keys)))}.values()), np.int64)
            first.sort()
            order = first[np.argsort(both.times[first], kind="stable")]
        return Events(
            offsets=np.array([0, len(order)]),
            items=both.items[order],
            times=both.times[order],
            actions=both.actions[order],
            context=both.context.take(order),
        )

    def _stored(self, row: int, before_us: int) -> Events:
        if row < 0:
            return self._empty()
        start, stop = self._span(row, before_us)
        return self.histories.events.cut(np.array([start]), np.array([stop]))

    def _span(self, row: int, before_us: int) -> tuple[int, int]:
        """Start and stop of a user's events before a time, as positions among the bundle's events; an empty range
        for row -1."""
        if row < 0:
            return 0, 0
        events = self.histories.events
        span = events.row(row)
        return span.start, span.start + int(np.searchsorted(events.times[span], before_us, side="left"))

    def _given(self, history: Sequence[RawEvent], asked_us: int) -> Events:
        known = [event for event in history if event.item_id in self.catalogue.position]
        times = np.array([microseconds(e.timestamp, asked_us) for e in known], np.int64)
        return Events(
            offsets=np.array([0, len(known)]),
            items=np.array([self.catalogue.position[e.item_id] for e in known], np.int32),
            times=times,
            actions=self.kinds.codes(
                np.array([self.kinds.actions.get(e.action or "", 0) for e in known], np.int16),
                np.array([np.nan if e.value is None else e.value for e in known], np.float32),
            ),
            context=self.contexts.read([e.context for e in known], times),
        )

    def _users(self, raw: Sequence[RawRequest], rows: np.ndarray) -> Users:
        users, known = self.histories.users, rows >= 0
        safe = np.where(known, rows, 0)

        ids = np.array([r.user_id for r in raw], object)
        if len(users.ids) == 0:
            return self.attributes.replaced(self.attributes.unknown(ids), [r.user for r in raw])
        stored = dataclasses.replace(users.take(safe), ids=ids)
        for values, missing in self._missing(stored):
            values[~known] = missing
        return self.attributes.replaced(stored, [r.user for r in raw])

    @staticmethod
    def _missing(users: Users) -> Iterator[tuple[np.ndarray, Any]]:
        """Each attribute of users, and what stands there where it is not known."""
        kinds = ((users.cat, schema.MISSING), (users.num, np.nan), (users.lists, schema.MISSING), (users.text, None))
        for arrays, missing in kinds:
            yield from ((values, missing) for values in arrays.values())

    def _empty(self) -> Events:
        """One row without events."""
        return dataclasses.replace(self._no_rows(), offsets=np.array([0, 0]))

    def _no_rows(self) -> Events:
        none = np.zeros(0, np.int64)
        return Events(
            offsets=np.array([0]),
            items=none.astype(np.int32),
            times=none,
            actions=none.astype(np.int16),
            context=self.contexts.read([], none),
        )
