"""The text encoder of a bundle in a running process: loaded when it is first needed, for posted items and for words of requests.

Legend: n texts, H encoder width, C width of the text head.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from ctxrec.bundle.format import load_encoder
from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_reader import TextReader
from ctxrec.encoder.text_table import encode_catalogue
from ctxrec.memory.text_similarity import on_axes

logger = logging.getLogger(__name__)

_AGAIN_S = 60.0  # an encoder that is not to be had is looked for again after so long


class NoEncoder(UserError):
    """The bundle's text encoder cannot be had on this machine."""


class BundleTexts:
    """Reads texts as the bundle's item texts were read; for any threads.

    Args:
        folder: of a checked local bundle with text vectors.
        config: its options.
        scale: its arrays with "centre" [H] and "axes" [H, C] of the text head; it may have no such head.
        tuned: False reads with the encoder as it was before it was tuned.
    """

    def __init__(self, folder: str, config: Config, scale: dict[str, np.ndarray], *, tuned: bool = True) -> None:
        self.folder, self._config = folder, config
        self._scale: dict[str, np.ndarray] = {name: scale[name] for name in ("centre", "axes") if name in scale}
        self._tuned = tuned and os.path.exists(BundlePaths(folder).adapter)
        self._loaded: tuple[TextEncoder, str, TextReader] | None = None
        self._missing: NoEncoder | None = None
        self._try_at = 0.0
        self._lock = threading.Lock()

    def untuned(self) -> BundleTexts:
        """The same texts by the encoder as it was before it was tuned, on the same axes."""
        return BundleTexts(self.folder, self._config, self._scale, tuned=False)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Centre [H] and axes [H, C] of the text head, with which words of requests are compared; None: there is none."""
        return (self._scale["centre"], self._scale["axes"]) if "axes" in self._scale else None

    def load(self) -> None:
        """Load the encoder, so that the first text need not wait for it.

        Raises:
            NoEncoder: it is not to be had.
        """
        self._parts()

    def _parts(self) -> tuple[TextEncoder, str, TextReader]:
        with self._lock:
            if self._loaded is None:
                if self._missing is not None and time.monotonic() < self._try_at:
                    raise self._missing
                try:
                    path = resolve_encoder(self._config.encoder.name, storage.cache_dir())
                    encoder = self._encoder(path)
                    reader = TextReader(encoder, path, self._config.encoder, on_disk=not self._tuned)
                except UserError as error:
                    self._missing = NoEncoder(f"the bundle's text encoder is not to be had here: {error}")
                    self._try_at = time.monotonic() + _AGAIN_S
                    logger.warning("%s", self._missing)
                    raise self._missing from error
                self._loaded = encoder, path, reader
            return self._loaded

    def _encoder(self, path: str) -> TextEncoder:
        """The pretrained encoder at `path`, with the adapter of the bundle if it was tuned."""
        if self._tuned:
            return load_encoder(self._config, path, BundlePaths(self.folder).adapter)
        return TextEncoder(self._config.encoder, path, tune=False).eval()

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of item texts [n, H], 0 where there is no text, and which rows have one, bool [n].

        Raises:
            NoEncoder: the encoder is not to be had.
        """
        encoder, path, _ = self._parts()
        return encode_catalogue(encoder, path, texts, self._config.encoder)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of words of requests on the axes of the text head, of unit length: float32 [n, C].

        Raises:
            NoEncoder: the encoder is not to be had.
        """
        _, _, reader = self._parts()
        vectors = reader.read(texts)
        assert self.axes is not None
        return on_axes(vectors, np.ones(len(vectors), bool), *self.axes)

    def read_if_there(self, texts: Sequence[str]) -> np.ndarray:
        """`read`, float32 [n, C], or zeros where the encoder is not to be had."""
        try:
            return self.read(texts)
        except NoEncoder:
            return np.zeros((len(texts), self._scale["axes"].shape[1]), np.float32)
