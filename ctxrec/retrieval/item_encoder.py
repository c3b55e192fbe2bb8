"""Items that come after training: rows of the item file become vectors, by content alone.

An item that the bundle has keeps its ID and what the log says of it, and takes the content of its new row. One
that it lacks has no ID (`ItemTensors.trained_I` is 0) and, in the memory, what the items of nearest text have.

Legend: n rows, I items of the bundle, H encoder width, C width of the text head, D width of the search vectors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch
from safetensors.numpy import load_file as load_arrays

from ctxrec.bundle import format as bundle_format
from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import DatasetSpec, ItemsSpec
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.features import ItemFeatures, hash_id, item_features
from ctxrec.data.item_rows import Entities, join_sentences, joined_text, numbers_or_null, value_lists
from ctxrec.data.parsing import value_line, value_words
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable, encode_catalogue, has_text, make_text_table
from ctxrec.memory.blend import NEW, STATIC
from ctxrec.memory.text_similarity import TEXT_SIMILARITY, nearest_texts, on_axes
from ctxrec.model.inputs import ItemTensors
from ctxrec.retrieval.live_catalogue import EncodedItems
from ctxrec.retrieval.recommender import Recommender

ITEM_ID = "item_id"


class BadRow(UserError):
    """A row with a column that is unknown or a value that does not fit; `place` is its number, `column` its name."""

    def __init__(self, message: str, place: int, column: str):
        super().__init__(message)
        self.place, self.column = place, column


class NoEncoder(UserError):
    """The bundle's text encoder cannot be had on this machine."""


def check_rows(rows: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> None:
    """Check rows with `item_id` and columns of the item file, which somebody has posted.

    Image and audio columns are accepted; the next training uses them (`ctxrec.live.item_files`).

    Raises:
        BadRow: a column is unknown or a value does not fit; names the row, the column, and what is valid.
    """
    section = spec.items or ItemsSpec(path="")
    for place, row in enumerate(rows):
        for name, value in row.items():
            _check(name, value, section, place)


def rows_to_table(rows: Sequence[Mapping[str, Any]], spec: DatasetSpec) -> pa.Table:
    """Checked rows (`check_rows`) as a table of `schema.items_schema`; a column that a row lacks is missing."""
    section = spec.items or ItemsSpec(path="")
    columns = {
        name: pa.array([value_words(r.get(name)) for r in rows], pa.list_(pa.string())) for name in section.categorical
    }
    texts = [pa.array([value_line(row.get(name)) for row in rows], pa.string()) for name in section.text]
    numbers = {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in section.numeric}
    raw = {f"text {n}": text for n, text in enumerate(texts)}
    raw |= {f"category {name}": lists for name, lists in columns.items()} | numbers
    given = Entities(ids=pa.array([row[ITEM_ID] for row in rows], pa.string()), tables=[pa.table(raw)])
    return _items_table(spec, section, given, len(rows))


def _check(name: str, value: Any, section: ItemsSpec, place: int) -> None:
    media = tuple(section.media.values())
    valid = (*section.text, *section.categorical, *section.numeric, *media)
    if name != ITEM_ID and name not in valid:
        known = ", ".join((ITEM_ID, *dict.fromkeys(valid)))
        raise BadRow(f"unknown column {name!r}; valid columns are {known}", place, name)
    if name in section.numeric and not _is_number(value):
        raise BadRow(f"{name} is {value!r}; expected a number", place, name)


def fitting(row: Mapping[str, Any], spec: DatasetSpec) -> dict[str, Any]:
    """A row that another version of the data set has accepted, without the columns that this one does not accept."""
    section, made = spec.items or ItemsSpec(path=""), {}
    for name, value in row.items():
        try:
            _check(name, value, section, 0)
        except BadRow:
            continue
        made[name] = value
    return made


def _items_table(spec: DatasetSpec, section: ItemsSpec, given: Entities, num_rows: int) -> pa.Table:
    texts = [given.column(f"text {n}", joined_text) for n in range(len(section.text))]
    empty = pa.array([""] * num_rows, pa.string())
    columns: dict[str, pa.Array] = {
        schema.ITEM_ID: given.ids,
        schema.ITEM_TITLE: texts[0].fill_null("") if texts else empty,
        schema.ITEM_TEXT: join_sentences(texts).fill_null("") if texts else empty,
        schema.ITEM_TRAIN_EVENTS: pa.array([0] * num_rows, pa.int64()),
    }
    for name in section.categorical:
        columns[schema.category_column(name)] = given.column(f"category {name}", value_lists)
    for name in section.numeric:
        columns[schema.numeric_column(name)] = given.column(name, numbers_or_null)
    if spec.graph is not None:
        columns[schema.category_column(schema.GRAPH)] = pa.array([[]] * num_rows, pa.list_(pa.string()))
    wanted = schema.items_schema(spec)
    return pa.Table.from_arrays([columns[name] for name in wanted.names], schema=wanted)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


class ItemEncoder:
    """Makes vectors of rows with the encoder and the towers of a bundle, whose hashes have been checked.

    Args:
        bundle: path or URI.
        recommender: loaded from it, and not grown yet: it is asked for the bundle's own items.
    """

    def __init__(self, bundle: str, recommender: Recommender):
        self._recommender = recommender
        folder = storage.fetch_dir(bundle, scratch=tempfile.gettempdir())
        arrays = load_arrays(BundlePaths(folder).vectors)
        about = storage.read_json(BundlePaths(folder).data)
        self._text_width: int = about["shape"]["text_width"]
        self._id_rows: int = about["shape"]["id_buckets"]
        self._num_items = len(arrays["items"])
        self._position = dict(recommender.item_position)
        trained = arrays["trained"] > 0
        self._trained = trained if trained.any() else np.ones_like(trained)
        self._scale = {name: arrays[name] for name in ("mean", "scale", "centre", "axes") if name in arrays}
        self._widths = recommender.widths
        self._static = recommender.vectors.shape[1] - self._tower_width - self._text_head
        self._media = bundle_format.load_media(folder)
        self._folder = folder
        self._encoder: TextEncoder | None = None
        self._encoder_path = ""

    @property
    def _vectors(self) -> np.ndarray:
        """Search vectors of the bundle's items."""
        return self._recommender.vectors[: self._num_items]

    @property
    def _tower_width(self) -> int:
        return sum(self._widths)

    @property
    def _text_head(self) -> int:
        blend = self._recommender.blend
        return 0 if blend is None or blend.text_IC is None else blend.text_IC.shape[1]

    def load(self) -> None:
        """Load the text encoder, so that the first item need not wait for it.

        Raises:
            NoEncoder: it is not to be had.
        """
        if self._encoder is not None or not self._text_width:
            return
        config = self._recommender.config
        try:
            path = resolve_encoder(config.encoder.name, storage.cache_dir())
        except UserError as error:
            raise NoEncoder(f"the bundle's text encoder is not to be had here: {error}") from error
        adapter = BundlePaths(self._folder).adapter
        if os.path.exists(adapter):
            self._encoder = bundle_format.load_encoder(config, path, adapter)
        else:  # it was not tuned
            self._encoder = TextEncoder(config.encoder, path, tune=False).eval()
        self._encoder_path = path

    def encode(self, table: pa.Table) -> EncodedItems:
        """Vectors of rows (`rows_to_table`).

        Raises:
            NoEncoder: a row has a text, and the encoder is not to be had.
        """
        known = np.array([self._position.get(item, -1) for item in table.column(0).to_pylist()], np.int64)
        table = self._with_triples(table, known)
        features = item_features(table, self._recommender.features)
        text, on_text_axes = self._texts(features.texts)
        towers = self._recommender.encode_items(self._tensors(features, known), text)
        self._fill_own_scores(towers, known)
        proxy_weights = self._proxy_weights(on_text_axes, known)
        static_IS = self._vectors[:, self._vectors.shape[1] - self._static :]
        static = np.where(known[:, None] >= 0, static_IS[np.maximum(known, 0)], proxy_weights @ static_IS)
        if self._static:
            static[known < 0, STATIC.index(NEW)] = 1
        vectors = np.concatenate([towers, on_text_axes, static], 1).astype(np.float32)
        return EncodedItems(table, vectors, proxy_weights)

    def _with_triples(self, table: pa.Table, known: np.ndarray) -> pa.Table:
        """Rows of the bundle's items with what the graph says of them; of new items it says nothing."""
        name = schema.category_column(schema.GRAPH)
        if name not in table.column_names:
            return table
        own = self._recommender.items.column(name).combine_chunks().take(pa.array(known, mask=known < 0))
        return table.set_column(table.schema.get_field_index(name), table.schema.field(name), own)

    def _texts(self, texts: list[str]) -> tuple[TextTable | None, np.ndarray]:
        """Text vectors for the towers, and those on the axes of the text head [n, C]."""
        nothing = np.zeros((len(texts), self._text_head), np.float32)
        if not self._text_width:
            return None, nothing
        vectors, present = np.zeros((len(texts), self._text_width), np.float32), has_text(texts)
        if present.any():
            self.load()
            assert self._encoder is not None
            vectors, present = encode_catalogue(
                self._encoder, self._encoder_path, texts, self._recommender.config.encoder
            )
        table = make_text_table(vectors, present, mean=self._scale["mean"], scale=self._scale["scale"])
        if not self._text_head or "axes" not in self._scale:
            return table, nothing
        return table, on_axes(vectors, present, self._scale["centre"], self._scale["axes"])

    def _tensors(self, features: ItemFeatures, known: np.ndarray) -> ItemTensors:
        own_row = self._num_items <= self._id_rows  # one row of the ID embedding for each item of the bundle
        hashed = [hash_id(item, self._id_rows) for item in features.ids]
        rows = np.where(known >= 0, known if own_row else hashed, 0)
        trained = np.where(known >= 0, self._trained[np.maximum(known, 0)], False)
        nothing = torch.zeros(len(rows), dtype=torch.int64)
        return ItemTensors(
            id_rows_I=torch.from_numpy(rows),
            trained_I=torch.from_numpy(trained.astype(np.float32)),
            cat_IM={name: torch.from_numpy(codes.astype(np.int64)) for name, codes in features.cat.items()},
            num_IF=torch.from_numpy(np.concatenate([features.num, features.num_present], 1)),
            pool=None,
            place_I=nothing,
            media_IV={kind: torch.from_numpy(self._media_of(kind, known)) for kind in self._media},
        )

    def _media_of(self, kind: str, known: np.ndarray) -> np.ndarray:
        """Images or sounds as the bundle knows them: none for new items, for a service opens no files of others."""
        vectors = self._media[kind]
        return np.where(known[:, None] >= 0, vectors[np.maximum(known, 0)], np.float16(0))

    def _fill_own_scores(self, towers: np.ndarray, known: np.ndarray) -> None:
        """The content head gives untrained items the mean of the others' own scores: those of the whole bundle."""
        if len(self._widths) < 2:
            return
        column = self._tower_width - 1
        scores = self._vectors[:, column]
        new = (known < 0) | ~self._trained[np.maximum(known, 0)]
        towers[new, column] = scores[self._trained].mean()

    def _proxy_weights(self, on_text_axes: np.ndarray, known: np.ndarray) -> sp.csr_array:
        shape = (len(known), self._num_items)
        start = self._tower_width
        texts_IC = self._vectors[:, start : start + self._text_head]
        answers = np.flatnonzero(self._trained & (np.abs(texts_IC).sum(1) > 0)) if self._text_head else []
        asked = np.flatnonzero((known < 0) & (np.abs(on_text_axes).sum(1) > 0))
        num = min(TEXT_SIMILARITY.num_proxies, len(answers))
        if not num or not len(asked):
            return sp.csr_array(shape, dtype=np.float32)
        nearest, weights = nearest_texts(on_text_axes[asked], texts_IC[answers], num)
        where = (np.repeat(asked, num), answers[nearest].ravel())
        return sp.csr_array(sp.coo_array((weights.ravel(), where), shape=shape), dtype=np.float32)
