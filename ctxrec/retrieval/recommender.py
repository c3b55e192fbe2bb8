"""A loaded bundle that scores requests: pure torch and numpy, the same for evaluation and serving.

Legend: N requests, I items, D width of vectors (the towers' width + 1).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch

from ctxrec.core import schema
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.batching import Batcher
from ctxrec.data.events import EARLIEST_S, LATEST_S, US, Events, Histories, Users, concat_events
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.encoder.text_table import TextTable
from ctxrec.index.exact import ByColumn
from ctxrec.memory.blend import Blend
from ctxrec.model.backbones.base import InBf16
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.two_tower import Towers
from ctxrec.retrieval.history_cache import HistoryCache, Value, history_keys
from ctxrec.retrieval.request_reader import ContextReader

BATCH_SIZE = 256


@dataclass(frozen=True)
class RawEvent:
    """One event of a history that a request brings along. `timestamp`: epoch seconds, UTC."""

    item_id: str
    action: str | None = None
    timestamp: float | None = None
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawRequest:
    """A request as users write it. `timestamp`: epoch seconds, UTC, None = now; a `history` replaces
    the stored one; `recent` are events that a store holds besides, all before the request, oldest first."""

    user_id: str | None = None
    timestamp: float | None = None
    context: dict[str, Any] = field(default_factory=dict)
    history: Sequence[RawEvent] | None = None
    recent: Sequence[RawEvent] = ()


class Recommender:
    """Scores requests with the towers of a bundle. Made by `ctxrec.retrieval.load`."""

    def __init__(
        self,
        *,
        config: Config,
        spec: DatasetSpec,
        features: FeatureMeta,
        towers: Towers,
        items: pa.Table,
        item_vectors: np.ndarray,
        histories: Histories,
        model_version: str,
        blend: Blend | None = None,
    ) -> None:
        self.config, self.spec, self.features = config, spec, features
        self.items, self.item_vectors, self.model_version = items, item_vectors, model_version
        self.item_ids: list[str] = items.column(schema.ITEM_ID).to_pylist()
        self.item_position = {item: n for n, item in enumerate(self.item_ids)}
        self.histories = histories
        self.user_row = {user: n for n, user in enumerate(histories.users.ids)}
        self._towers, self.widths = towers, towers.widths
        self.blend = blend
        self.vectors = item_vectors if blend is None else blend.vectors(item_vectors)  # what queries are for
        self._spoken_for: sp.csr_array | None = None
        self.cache: HistoryCache | None = None
        self._by_column: ByColumn | None = None
        none = torch.zeros(0, dtype=torch.int64)
        self._tensors = ItemTensors(
            id_rows_I=none, trained_I=torch.zeros(0), cat_IM={}, num_IF=torch.zeros(0, 0), pool=None, place_I=none
        )
        self._vectors = torch.from_numpy(item_vectors)
        self._batcher = Batcher(features, history=config.model.history, action_weights=spec.events.actions)
        self._action_codes = {action: code for code, action in enumerate(features.actions, 1)}
        self.contexts = ContextReader(features)

    def keep_histories(self, max_bytes: int) -> None:
        """Keep what is made of histories, in so many bytes, for the next requests with the same; 0: keep nothing.

        For one thread: queries may not be asked for by several at once.
        """
        self.cache = HistoryCache(max_bytes) if max_bytes else None

    @property
    def search_vectors(self) -> np.ndarray:
        """`vectors` as an exact search wants them: a copy, made when it is first asked for."""
        if self._by_column is None:
            self._by_column = ByColumn(self.vectors)
        return self._by_column.vectors

    def lighten(self, precision: str) -> None:
        """Read histories in "bf16"; "fp32" is the precision of the training.

        bf16 is for CPUs that multiply it in hardware (AVX512-BF16, AMX). Other CPUs are many times slower with it.
        """
        if precision == "bf16":
            self._towers.user.backbone = InBf16(self._towers.user.backbone)

    def queries(self, requests: Requests) -> np.ndarray:
        """Query vectors of requests, for `vectors`: float32 [N, D]."""
        parts = []
        for start in range(0, len(requests), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(requests))
            part = requests if stop - start == len(requests) else requests.take(np.arange(start, stop))
            with torch.inference_mode():
                parts.append(self._tower_queries(part).numpy())
        found = np.concatenate(parts) if parts else np.zeros((0, self.item_vectors.shape[1]), np.float32)
        return found if self.blend is None else self.blend.queries(found, requests.history)

    def _tower_queries(self, requests: Requests) -> torch.Tensor:
        if self.cache is None or self._towers.user.backbone.reads_time:
            batch = self._batcher.requests(requests)
            return self._towers(self._tensors, None, batch, item_vectors=self._vectors, last=True)[1]

        def read(rows: np.ndarray) -> list[Value]:
            batch = self._batcher.requests(requests.take(rows))
            return [(row.copy(),) for row in self._towers.read(batch, self._vectors).numpy()]

        known = self.cache.of([b"read" + key for key in history_keys(requests)], read)
        states = torch.from_numpy(np.stack([state for (state,) in known]))
        return self._towers.ask(states, self._batcher.asking(requests))

    def remembered(self, requests: Requests) -> sp.csr_array | None:
        """What the item memory adds to the products of queries and vectors: 0 or more, float32 [N, I]."""
        if self.blend is None:
            return None
        if self.cache is None or not len(requests):
            return self._remember(requests.history)

        def remember(rows: np.ndarray) -> list[Value]:
            found = self._remember(
                requests.history.cut(requests.history.offsets[rows], requests.history.offsets[rows + 1])
            )
            spans = zip(found.indptr[:-1], found.indptr[1:], strict=True)
            return [(found.indices[a:b].astype(np.int32), found.data[a:b].copy()) for a, b in spans]

        known = self.cache.of([b"memory" + key for key in history_keys(requests)], remember)
        offsets = np.cumsum([0, *(len(columns) for columns, _ in known)])
        columns, values = (np.concatenate([value[n] for value in known]) for n in (0, 1))
        return sp.csr_array((values, columns, offsets), shape=(len(known), len(self.vectors)))

    def _remember(self, history: Events) -> sp.csr_array:
        assert self.blend is not None
        if self._spoken_for is None:
            return self.blend.remembered(history)
        history = _without_items_from(history, self._spoken_for.shape[1])
        remembered = pairs = self.blend.remembered(history)
        if self.blend.memory.own:  # what the user had says nothing of items with a like text
            pairs = dataclasses.replace(self.blend, memory=dataclasses.replace(self.blend.memory, own=False))
            pairs = pairs.remembered(history)
        return sp.csr_array(sp.hstack([remembered, pairs @ self._spoken_for.T]))

    def grow(self, vectors: np.ndarray, spoken_for: sp.csr_array, *, changed: np.ndarray) -> None:
        """Take over a catalogue with items behind those of the bundle (`ctxrec.retrieval.item_encoder`).

        Args:
            vectors: float32 [I + J, D], as `vectors`.
            spoken_for: float32 [J, I], what the memory holds of the bundle's items that speak for the new ones.
            changed: int64, which items are new or have another vector than before.
        """
        width = self.item_vectors.shape[1]
        self.vectors, self.item_vectors = vectors, vectors[:, :width]
        self._vectors, self._spoken_for = torch.from_numpy(vectors)[:, :width], spoken_for
        if self.blend is not None and self.blend.text_IC is not None:
            text = vectors[:, width : width + self.blend.text_IC.shape[1]]
            self.blend = dataclasses.replace(self.blend, text_IC=text)
        if self.cache is not None:
            self.cache.clear()
        if self._by_column is not None:
            self._by_column.put(vectors, changed)

    def encode_items(self, items: ItemTensors, text: TextTable | None) -> np.ndarray:
        """The towers' vectors of items: float32 [n, W]."""
        with torch.inference_mode():
            return self._towers(items, text)[0].numpy()

    def scores(self, requests: Requests) -> np.ndarray:
        """Scores of all items: float32 [N, I]."""
        scores = self.queries(requests) @ self.vectors.T
        remembered = self.remembered(requests)
        return scores if remembered is None else scores + remembered.toarray()

    def make_requests(self, raw: Sequence[RawRequest]) -> tuple[Requests, np.ndarray]:
        """Requests as arrays, and which of them have no history to go by (bool [N], "fallback").

        Unknown users and items are fine: an unknown item of a history is left out.

        Raises:
            UserError: a context key is unknown, or a value has the wrong type; names the key.
        """
        now_us = round(time.time() * US)
        asked = [r.context.get("timestamp") if r.timestamp is None else r.timestamp for r in raw]
        times = np.array([_microseconds(at, now_us) for at in asked], np.int64)
        rows = [self.user_row.get(r.user_id, -1) if r.user_id is not None else -1 for r in raw]
        requests = Requests(
            users=self._users(raw, np.array(rows, np.int64)),
            history=self._histories(raw, rows, times),
            times=times,
            context=self.contexts.read([{k: v for k, v in r.context.items() if k != "timestamp"} for r in raw], times),
        )
        return requests, requests.history.lengths == 0

    def _histories(self, raw: Sequence[RawRequest], rows: Sequence[int], times: np.ndarray) -> Events:
        """What each request goes by: histories of the bundle all at once, others one by one."""
        own = {n for n, r in enumerate(raw) if r.history is not None or r.recent}
        spans = [(0, 0) if n in own else self._span(row, int(times[n])) for n, row in enumerate(rows)]
        starts, stops = np.array(spans, np.int64).reshape(-1, 2).T
        stored = self.histories.events.cut(starts, stops)
        if not own:
            return stored
        pool = concat_events([stored, *(self._own_history(raw[n], rows[n], times[n]) for n in sorted(own))])
        places = np.arange(len(raw))
        places[sorted(own)] = len(raw) + np.arange(len(own))
        return pool.cut(pool.offsets[places], pool.offsets[places + 1])

    def _own_history(self, request: RawRequest, row: int, asked_us: int) -> Events:
        """The history that a request brings along, or the stored one with what happened since."""
        if request.history is not None:
            return self._given(request.history, int(asked_us))
        return self._known(row, int(asked_us), request.recent)

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
        """Where the events of a user before a time lie among those of the bundle; nowhere for row -1."""
        if row < 0:
            return 0, 0
        events = self.histories.events
        span = events.row(row)
        return span.start, span.start + int(np.searchsorted(events.times[span], before_us, side="left"))

    def _given(self, history: Sequence[RawEvent], asked_us: int) -> Events:
        known = [event for event in history if event.item_id in self.item_position]
        times = np.array([_microseconds(e.timestamp, asked_us) for e in known], np.int64)
        return Events(
            offsets=np.array([0, len(known)]),
            items=np.array([self.item_position[e.item_id] for e in known], np.int32),
            times=times,
            actions=np.array([self._action_codes.get(e.action or "", 0) for e in known], np.int16),
            context=self.contexts.read([e.context for e in known], times),
        )

    def _users(self, raw: Sequence[RawRequest], rows: np.ndarray) -> Users:
        users, known = self.histories.users, rows >= 0
        safe = np.where(known, rows, 0)

        def pick(values: np.ndarray, missing: float) -> np.ndarray:
            if len(values) == 0:
                return np.full(len(rows), missing, values.dtype)
            return np.where(known, values[safe], missing).astype(values.dtype)

        return Users(
            ids=np.array([r.user_id for r in raw], object),
            cat={name: pick(values, schema.MISSING) for name, values in users.cat.items()},
            num={name: pick(values, np.nan) for name, values in users.num.items()},
        )

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


def _without_items_from(history: Events, first: int) -> Events:
    """The events of items before `first`."""
    kept = history.items < first
    return history if kept.all() else history.keep(kept)


def _microseconds(seconds: Any, default: int) -> int:
    if seconds is None:
        return default
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, np.number)):
        raise UserError(f"timestamp is {seconds!r}; expected epoch seconds, UTC")
    if not EARLIEST_S <= seconds <= LATEST_S:
        raise UserError(f"timestamp is {seconds!r}; expected epoch seconds, UTC, within the years 1 to 9999")
    return round(float(seconds) * US)
