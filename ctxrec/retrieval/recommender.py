"""A loaded bundle that scores requests: pure torch and numpy, the same for evaluation and serving.

Legend: N requests, I items, D width of vectors (the towers' width + 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch

from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.data.batching import Batcher
from ctxrec.data.events import Events, Histories
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.data.user_ids import UserIds
from ctxrec.encoder.text_table import TextTable
from ctxrec.memory.blend import STATIC, Blend, source_weights
from ctxrec.memory.calibration import Calibrations
from ctxrec.memory.live_sources import AddsNow, LiveWeights
from ctxrec.memory.request_words import word_queries
from ctxrec.memory.scoring import in_parts, score_all
from ctxrec.model.backbones.base import InBf16
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.two_tower import NoTowers, Towers
from ctxrec.retrieval.bundle_texts import BundleTexts
from ctxrec.retrieval.dislikes import lowered_memory, lowered_queries
from ctxrec.retrieval.history_cache import HistoryCache, Value, history_keys
from ctxrec.retrieval.live_catalogue import LiveCatalogue
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.request_maker import RequestMaker
from ctxrec.retrieval.request_reader import ContextReader
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
        calibration: Calibrations | None = None,
    ) -> None:
        self.config, self.spec, self.features, self.texts = config, spec, features, texts
        self.model_version, self.histories = model_version, histories
        self._towers, self.widths = towers, towers.widths
        vectors = item_vectors if blend is None else blend.vectors(item_vectors)
        self.catalogue = LiveCatalogue(items, spec.items, vectors, histories.events)
        self._blend, self._version = blend, self.catalogue.version
        self.cache: HistoryCache | None = None
        self.live_weights, self.calibration = live_weights, calibration
        self.live: AddsNow | None = None  # what happens now; None: the model knows its training alone
        none = torch.zeros(0, dtype=torch.int64)
        self._tensors = ItemTensors(
            id_rows_I=none, trained_I=torch.zeros(0), cat_IM={}, num_IF=torch.zeros(0, 0), pool=None, place_I=none
        )
        self.maker = RequestMaker(spec, features, histories, self.catalogue)
        self._batcher = Batcher(
            features,
            history=config.model.history,
            kinds=self.kinds,
            user_texts=None if texts is None else texts.user_texts,
        )

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
    def contexts(self) -> ContextReader:
        """Reads contexts of requests and events."""
        return self.maker.contexts

    @property
    def attributes(self) -> UserReader:
        """Reads attributes of users."""
        return self.maker.attributes

    @property
    def kinds(self) -> EventKinds:
        """What actions and values of events say."""
        return self.maker.kinds

    @property
    def user_row(self) -> Mapping[str, int]:
        """Rows of the bundle's users by id."""
        return self.maker.user_row

    @property
    def user_ids(self) -> UserIds:
        """Ids of the bundle's users, row by row."""
        return self.maker.user_ids

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
            return lowered_queries(self._queries, requests, fixed=0 if self.blend is None else len(STATIC))

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
            found = None if self.blend is None else lowered_memory(self._remembered, requests)
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
        """Requests as arrays, and which of them have no history to go by (bool [N]): `RequestMaker.make`."""
        return self.maker.make(raw, including_now=including_now)


def _without_items_from(history: Events, first: int) -> Events:
    """The events of items before `first`."""
    kept = history.items < first
    return history if kept.all() else history.keep(kept)
