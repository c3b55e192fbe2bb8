"""Items that come after training: rows of the item file become search vectors, by content alone.

An item that the bundle has keeps its ID and its co-occurrences, and takes the content of its new row. An item that the
bundle lacks has no ID (`ItemTensors.trained_I` is 0), and takes the co-occurrences of the items of nearest text. The
inputs of the towers are made by the functions that training uses; what is here is the choice of the bundle's values.

Legend: n rows, I items of the bundle, H encoder width, C width of the text head, D width of the search vectors.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors.numpy import load_file as load_arrays

from ctxrec.bundle import format as bundle_format
from ctxrec.core import schema, storage
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.features import ItemFeatures, id_rows, item_features
from ctxrec.encoder.text_table import TextTable, has_text, make_text_table
from ctxrec.memory.blend import NEW, STATIC, join_vectors
from ctxrec.memory.text_similarity import nearest_known, on_axes
from ctxrec.model.inputs import ItemTensors, known_ids
from ctxrec.retrieval.live_catalogue import EncodedItems
from ctxrec.retrieval.recommender import Recommender


class ItemEncoder:
    """Makes search vectors of rows with the encoder and the towers of a bundle, whose hashes have been checked.

    Args:
        bundle: path or URI.
        recommender: loaded from it.
    """

    def __init__(self, bundle: str, recommender: Recommender):
        self._recommender = recommender
        folder = storage.fetch_dir(bundle, scratch=storage.temporary_folder())
        arrays = load_arrays(BundlePaths(folder).vectors)
        shape = bundle_format.read_about(folder).model_shape
        self._text_width = shape.text_width
        self._num_items = len(arrays["items"])
        self._id_rows = id_rows(recommender.item_ids[: self._num_items], shape.id_buckets)
        self._trained = known_ids(arrays["trained"] > 0)
        self._scale = {name: arrays[name] for name in ("mean", "scale", "centre", "axes") if name in arrays}
        self._widths = recommender.widths
        self._static = recommender.vectors.shape[1] - self._tower_width - self._text_head
        self._media = bundle_format.load_media(folder)

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
        if self._recommender.texts is not None:
            self._recommender.texts.load()

    def encode(self, table: pa.Table) -> EncodedItems:
        """Vectors of rows (`ctxrec.data.posted_rows.posted_table`).

        Raises:
            NoEncoder: a row has a text, and the encoder is not to be had.
        """
        position = self._recommender.catalogue.position
        known = np.array([position.get(item, -1) for item in table.column(schema.ITEM_ID).to_pylist()], np.int64)
        known[known >= self._num_items] = -1  # added before: it has no ID either
        table = self._with_triples(table, known)
        features = item_features(table, self._recommender.features)
        text, on_text_axes = self._texts(features.texts)
        towers = self._recommender.encode_items(self._tensors(features, known), text)
        proxy_weights = self._proxy_weights(on_text_axes, known)
        static_IS = self._vectors[:, self._vectors.shape[1] - self._static :]
        static = np.where(known[:, None] >= 0, static_IS[np.maximum(known, 0)], proxy_weights @ static_IS)
        if self._static:
            static[known < 0, STATIC.index(NEW)] = 1
        return EncodedItems(table, join_vectors(towers, on_text_axes, static), proxy_weights)

    def _with_triples(self, table: pa.Table, known: np.ndarray) -> pa.Table:
        """The rows with the graph's triples of the bundle's items. New items have no triples."""
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
            assert self._recommender.texts is not None
            vectors, present = self._recommender.texts.encode(texts)
        table = make_text_table(vectors, present, mean=self._scale["mean"], scale=self._scale["scale"])
        if not self._text_head or "axes" not in self._scale:
            return table, nothing
        return table, on_axes(vectors, present, self._scale["centre"], self._scale["axes"])

    def _tensors(self, features: ItemFeatures, known: np.ndarray) -> ItemTensors:
        bundled = np.maximum(known, 0)
        return ItemTensors.of_rows(
            features,
            id_rows=np.where(known >= 0, self._id_rows[bundled], 0),
            trained=(known >= 0) & self._trained[bundled],
            media={kind: self._media_of(kind, known) for kind in self._media},
            mean_rows=self._id_rows[self._trained],
        )

    def _media_of(self, kind: str, known: np.ndarray) -> np.ndarray:
        """Vectors of images or sounds from the bundle. New items have none, because a service opens no files that
        clients name."""
        vectors = self._media[kind]
        return np.where(known[:, None] >= 0, vectors[np.maximum(known, 0)], np.float16(0))

    def _proxy_weights(self, on_text_axes: np.ndarray, known: np.ndarray) -> sp.csr_array:
        """For each row that the bundle lacks, weights of the bundle's items that stand in for it (its proxies):
        float32 [n, I]."""
        start = self._tower_width
        texts_IC = self._vectors[:, start : start + self._text_head]
        asked = np.where(known[:, None] < 0, on_text_axes, np.float32(0))
        return nearest_known(asked, texts_IC, self._trained)
