"""A loaded bundle that scores requests: pure torch and numpy, the same for evaluation and serving.

Legend: N requests, I items, D width of vectors (the towers' width + 1).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch

from ctxrec.core import schema
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.batching import Batcher
from ctxrec.data.clock import Clock
from ctxrec.data.events import US, Events, Histories, Users, concat_events
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.encoder.text_table import TextTable
from ctxrec.memory.blend import STATIC, Blend, source_weights
from ctxrec.memory.live_sources import AddsNow, LiveWeights
from ctxrec.memory.request_words import word_queries
from ctxrec.memory.scoring import in_parts, score_all
from ctxrec.model.backbones.base import InBf16
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.two_tower import NoTowers, Towers
from ctxrec.retrieval.bundle_texts import BundleTexts
from ctxrec.retrieval.history_cache import HistoryCache, Value, history_keys
from ctxrec.retrieval.live_catalogue import LiveCatalogue
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_reader import ContextReader, microseconds, queries_of
from ctxrec.retrieval.user_attributes import UserReader

BATCH_SIZE = 256


class Recommender:
    """Scores requests with the towers of a bundle; a `ctxrec.memory.scoring.Scorer`. Made by `ctxrec.retrieval.load`."""

    def __init__(
        self,
        *,
        config: Config,
        spec: DatasetSpec,
        features: FeatureMeta,
        towers: Towers | NoTowers,
        items: pa.Table,
        item_vectors: np.ndarray,
        histories: Histories,
        model_version: str,
        blend: Blend | None = None,
        texts: BundleTexts | None = None,
        live_weights: LiveWeights | None = None,
    ) -> None:
        self.config, self.spec, self.features, self.texts = config, spec, features, texts
        self.model_version, self.histories = model_version, histories
        self.user_row = {user: n for n, user in enumerate(histories.users.ids)}
        self._towers, self.widths = towers, towers.widths
        vectors = item_vectors if blend is None else blend.vectors(item_vectors)
        self.catalogue = LiveCatalogue(items, spec.items, vectors, histories.events)
        self._blend, self._version = blend, self.catalogue.version
        self.cache: HistoryCache | None = None
        self.live_weights = live_weights
        self.live: AddsNow | None = None  # what happens now; None: the model knows its training alone
        none = torch.zeros(0, dtype=torch.int64)
        self._tensors = ItemTensors(
            id_rows_I=none, trained_I=torch.zeros(0), cat_IM={}, num_IF=torch.zeros(0, 0), pool=None, place_I=none
        )
        self._batcher = Batcher(features, history=config.model.history, action_weights=spec.events.actions)
        self._action_codes = {action: code for code, action in enumerate(features.actions, 1)}
        self.contexts = ContextReader(features, Clock.of(spec, features))
        self.attributes = UserReader(features)

    def keep_histories(self, max_bytes: int) -> None:
        """Keep what is made of histories, in so many bytes, for the next requests with the same; 0: keep nothing.

        For one thread: queries may not be asked for by several at once.
        """
        self.cache = HistoryCache(max_bytes) if max_bytes else None

    @property
    def towers(self) -> Towers | NoTowers:
        """The towers, ready to score, or what stands in their place."""
        return self._towers

    @property
    def items(self) -> pa.Table:
        """The bundle's item table."""
        return self.catalogue.bundled

    @property
    def item_ids(self) -> list[str]:
        """Ids of all items by position."""
        return self.catalogue.ids

    @property
    def item_position(self) -> dict[str, int]:
        """Positions of all items by id."""
        return self.catalogue.position

    @property
    def vectors(self) -> np.ndarray:
        """What `queries` are multiplied with: float32 [I, D]."""
        return self.catalogue.vectors

    @property
    def item_vectors(self) -> np.ndarray:
        """The towers' part of `vectors`: float32 [I, W]."""
        return self.catalogue.vectors[:, : sum(self.widths)]

    @property
    def repeats(self) -> bool:
        """Whether an item of the history may be recommended again."""
        return self.spec.split.repeats

    def content_vectors(self, items: np.ndarray) -> np.ndarray:
        """Vectors that similarity compares: the items' text vectors. A model without text compares the vectors of its
        towers, each head scaled so that all together have length 1. float32 [..., C]; any numbers for `NO_ITEM`."""
        blend, width = self.blend, sum(self.widths)
        if blend is not None and blend.text_IC is not None:
            return self.vectors[:, width : width + blend.text_IC.shape[1]][items]
        towers = self.vectors[:, :width][items] / np.float32(np.sqrt(max(len(self.widths), 1)))
        towers[..., np.cumsum(self.widths, dtype=np.int64) - 1] = 0  # the items' own scores say nothing of similarity
        return towers

    def similar_query(self, item: int) -> tuple[np.ndarray, sp.csr_array | None]:
        """What finds items like one (a position): a query, float32 [1, D], and what is added to its products, [1, I].

        The scores are mean cosines of the towers' vectors. Those of a model without towers are what the blend gives
        somebody who had this item alone, without popularity.
        """
        if not self.widths:
            # At a time of which nothing live is known: likeness does not change with what happens now.
            asked, _ = self.make_requests([RawRequest(timestamp=0, history=[RawEvent(self.item_ids[item])])])
            query = self._queries(asked)
            query[:, -len(STATIC) :] = 0
            return query, None if self.blend is None else self._remembered(asked)
        query = np.zeros((1, self.vectors.shape[1]), np.float32)
        query[0, : sum(self.widths)] = self.item_vectors[item] / len(self.widths)
        query[0, np.cumsum(self.widths) - 1] = 0
        return query, None

    @property
    def blend(self) -> Blend | None:
        """The weights of all sources, with the text vectors of the catalogue as it is now."""
        self._follow_catalogue()
        return self._blend

    def set_precision(self, precision: str) -> None:
        """Read histories in "bf16"; "fp32" is the precision of the training.

        bf16 is for CPUs that multiply it in hardware (AVX512-BF16, AMX). Other CPUs are many times slower with it.
        """
        if precision == "bf16" and isinstance(self._towers, Towers):
            self._towers.user.backbone = InBf16(self._towers.user.backbone)

    def queries(self, requests: Requests) -> np.ndarray:
        """Query vectors of requests, for `vectors`: float32 [N, D]."""
        with self.catalogue.reading():
            return self._queries(requests)

    def _queries(self, requests: Requests) -> np.ndarray:
        blend = self.blend
        with torch.inference_mode():
            found = in_parts(requests, BATCH_SIZE, self._tower_queries, width=sum(self.widths))
        if blend is None:
            return found
        read = None if self.texts is None or self.texts.axes is None else self.texts.read_if_there
        words = word_queries(requests, read, blend.heard)
        return blend.queries(found, requests.history, words, self._weights(blend, requests))

    def _tower_queries(self, requests: Requests) -> np.ndarray:
        towers, vectors = self._towers, torch.from_numpy(self.item_vectors)
        if isinstance(towers, NoTowers):
            return np.zeros((len(requests), 0), np.float32)
        if self.cache is None or towers.user.backbone.reads_time:
            batch = self._batcher.requests(requests)
            return towers(self._tensors, None, batch, item_vectors=vectors, last=True)[1].numpy()

        def read(rows: np.ndarray) -> list[Value]:
            batch = self._batcher.requests(requests.take(rows))
            return [(row.copy(),) for row in towers.read(batch, vectors).numpy()]

        known = self.cache.of([b"read" + key for key in history_keys(requests)], read)
        states = torch.from_numpy(np.stack([state for (state,) in known]))
        return towers.ask(states, self._batcher.asking(requests)).numpy()

    def _weights(self, blend: Blend, requests: Requests) -> np.ndarray:
        """Weights of the blend's sources for each request: float32 [N, K]. Those that know what happens now have others."""
        weights_NK = source_weights(blend.weights_2K, requests.history.lengths)
        if self.live is None or self.live_weights is None:
            return weights_NK
        with_live_NK = source_weights(self.live_weights.blend_2K, requests.history.lengths)
        return np.where(self.live.are_current(requests.times)[:, None], with_live_NK, weights_NK)

    def remembered(self, requests: Requests) -> sp.csr_array | None:
        """What the item memory and the live sources add to the products of queries and vectors: 0 or more, float32 [N, I]."""
        with self.catalogue.reading():
            found = None if self.blend is None else self._remembered(requests)
            if self.live is None:
                return found
            now = self.live.scores(requests, len(self.vectors))
            return now if found is None else sp.csr_array(found + now)

    def _remembered(self, requests: Requests) -> sp.csr_array:
        blend = self.blend
        assert blend is not None
        weights_NK = self._weights(blend, requests)
        if self.cache is None or not len(requests):
            return self._remember(blend, requests.history, weights_NK)

        def remember(rows: np.ndarray) -> list[Value]:
            history = requests.history
            history = history.cut(history.offsets[rows], history.offsets[rows + 1])
            found = self._remember(blend, history, weights_NK[rows])
            spans = zip(found.indptr[:-1], found.indptr[1:], strict=True)
            return [(found.indices[a:b].astype(np.int32), found.data[a:b].copy()) for a, b in spans]

        # The same history has other weights where a request knows what happens now.
        current = np.zeros(len(requests), bool) if self.live is None else self.live.are_current(requests.times)
        marks = [b"memory now" if now else b"memory" for now in current.tolist()]
        keys = [mark + key for mark, key in zip(marks, history_keys(requests), strict=True)]
        known = self.cache.of(keys, remember)
        offsets = np.cumsum([0, *(len(columns) for columns, _ in known)])
        columns, values = (np.concatenate([value[n] for value in known]) for n in (0, 1))
        return sp.csr_array((values, columns, offsets), shape=(len(known), len(self.vectors)))

    def _remember(self, blend: Blend, history: Events, weights_NK: np.ndarray) -> sp.csr_array:
        catalogue = self.catalogue
        if not catalogue.num_added:
            return blend.remembered(history, weights_NK)
        history = _without_items_from(history, catalogue.num_bundled)
        remembered = pairs = blend.remembered(history, weights_NK)
        if blend.memory.repeats:  # that a user had an item says nothing of added items with a similar text
            pairs = dataclasses.replace(blend, memory=dataclasses.replace(blend.memory, repeats=False))
            pairs = pairs.remembered(history, weights_NK)
        return sp.csr_array(sp.hstack([remembered, pairs @ catalogue.proxy_weights.T]))

    def _follow_catalogue(self) -> None:
        """Drop what was computed from the catalogue as it was before its last change."""
        if self._version == self.catalogue.version:
            return
        if self._blend is not None and self._blend.text_IC is not None:
            start = sum(self.widths)
            text = self.vectors[:, start : start + self._blend.text_IC.shape[1]]
            self._blend = dataclasses.replace(self._blend, text_IC=text)
        if self.cache is not None:
            self.cache.clear()
        self._version = self.catalogue.version

    def encode_items(self, items: ItemTensors, text: TextTable | None) -> np.ndarray:
        """The towers' vectors of items: float32 [n, W]."""
        with torch.inference_mode():
            return self._towers(items, text)[0].numpy()

    def scores(self, requests: Requests) -> np.ndarray:
        """Scores of all items: float32 [N, I]."""
        with self.catalogue.reading():
            return score_all(self, requests)

    def make_requests(self, raw: Sequence[RawRequest], *, including_now: bool = False) -> tuple[Requests, np.ndarray]:
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
        )
        return requests, requests.history.lengths == 0

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
        known = [event for event in history if event.item_id in self.item_position]
        times = np.array([microseconds(e.timestamp, asked_us) for e in known], np.int64)
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

        stored = Users(
            ids=np.array([r.user_id for r in raw], object),
            cat={name: pick(values, schema.MISSING) for name, values in users.cat.items()},
            num={name: pick(values, np.nan) for name, values in users.num.items()},
        )
        return self.attributes.replaced(stored, [r.user for r in raw])

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
