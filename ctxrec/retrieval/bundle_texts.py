"""The text encoder of a bundle in a running process: loaded when it is first needed, for posted items and for words of requests.

Legend: n texts, H encoder width, C width of the text head.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from ctxrec.bundle.format import USER_MEAN, USER_SCALE, load_encoder
from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.batching import UserTexts
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_reader import TextReader, TextReaderParams
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
        scale: its arrays with "centre" [H] and "axes" [H, C] of the text head; it may have no such head. `USER_MEAN` and
            `USER_SCALE` [H] are of the texts of users; without them, these are not read.
        tuned: False reads with the encoder as it was before it was tuned.
    """

    def __init__(self, folder: str, config: Config, scale: dict[str, np.ndarray], *, tuned: bool = True) -> None:
        self.folder, self._config = folder, config
        kept = ("centre", "axes", USER_MEAN, USER_SCALE)
        self._scale: dict[str, np.ndarray] = {name: scale[name] for name in kept if name in scale}
        self._of_users: Callable[[Sequence[str]], np.ndarray] | None = None
        self._tuned: bool = tuned and os.path.exists(BundlePaths(folder).adapter)
        self._plain = self.untuned() if self._tuned else self  # reads the texts of users
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

    @property
    def user_texts(self) -> UserTexts | None:
        """Reads the free texts of users as the towers were trained to; None: the model reads none.

        An encoder that is not to be had gives vectors of zeros, as if the users had no text.
        """
        if USER_MEAN not in self._scale:
            return None
        return UserTexts(len(self._scale[USER_MEAN]), self._read_users)

    def _read_users(self, texts: Sequence[str]) -> np.ndarray:
        try:
            if self._of_users is None:
                # By the encoder before it was tuned, and cut as texts of items are.
                encoder, path, _ = self._plain._parts()
                params = TextReaderParams(max_tokens=self._config.encoder.max_tokens)
                self._of_users = TextReader(encoder, path, self._config.encoder, on_disk=True, params=params).read
        except NoEncoder:
            return np.zeros((len(texts), len(self._scale[USER_MEAN])), np.float32)
        made: np.ndarray = (self._of_users(texts) - self._scale[USER_MEAN]) / self._scale[USER_SCALE]
        return made

    @property
    def users_unread(self) -> str | None:
        """Why free texts of users are not read; None: they are."""
        if USER_MEAN not in self._scale:
            return "the model was trained without texts of users"
        return None if self._plain._missing is None else "the text encoder is not to be had where the model runs"

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
