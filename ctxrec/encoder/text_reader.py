"""Vectors of texts that come a few at a time, such as the words of requests; the latest are kept.

Legend: n texts, H width of the encoder.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core.config import EncoderConfig
from ctxrec.encoder.cache import item_keys, vector_store
from ctxrec.encoder.encode_plan import load_tokenizer, tokenise_by
from ctxrec.encoder.hub import max_positions
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import encode_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextReaderParams:
    """Limits of a reader.

    Attributes:
        max_tokens: a text is cut to this number of tokens, or to as many as the encoder reads. It is not the limit of item
            texts (`encoder.max_tokens`), because a request has one text, and its words were chosen for it.
        kept: number of the latest vectors that are kept in memory.
    """

    max_tokens: int = 256
    kept: int = 20_000


TEXT_READER = TextReaderParams()


class TextReader:
    """Reads texts with one encoder; for any threads.

    Args:
        encoder: of all layers; it is put into evaluation mode.
        path: local folder of its checkpoint, which has the tokenizer.
        config: options of the encoder.
        on_disk: whether vectors are taken from the machine's disk, where the trainings of the machine keep those of their
            logs. That is for an encoder that was not tuned.
        params: limits.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        path: str,
        config: EncoderConfig,
        *,
        on_disk: bool,
        params: TextReaderParams = TEXT_READER,
    ) -> None:
        self._encoder, self._config, self._params = encoder.eval(), config, params
        self._width = encoder.width
        self._tokenizer = load_tokenizer(path)
        self._max_tokens = min(params.max_tokens, max_positions(path))
        self._store = vector_store(path, config, encoder.width) if on_disk else None
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, texts: Sequence[str], *, write: bool = False) -> np.ndarray:
        """Vectors of texts: float32 [n, H].

        Args:
            texts: none of them empty.
            write: keep what is new on the machine's disk, for later trainings.
        """
        with self._lock:
            missing = list(dict.fromkeys(text for text in texts if text not in self._kept))
            found = dict(zip(missing, self._encode(missing, write=write), strict=True))
            rows = [found[text] if text in found else self._kept[text] for text in texts]
            for text, row in zip(texts, rows, strict=True):
                self._kept[text] = row
                self._kept.move_to_end(text)
            while len(self._kept) > self._params.kept:
                self._kept.popitem(last=False)
        return np.stack(rows) if rows else np.zeros((0, self._width), np.float32)

    def _encode(self, texts: list[str], *, write: bool) -> np.ndarray:
        made = np.zeros((len(texts), self._width), np.float32)
        if not texts:
            return made
        # A lone surrogate, which no tokenizer takes, becomes a question mark.
        tokens = tokenise_by(self._tokenizer, [_whole(text) for text in texts], max_tokens=self._max_tokens)
        keys, new = item_keys(tokens), np.arange(len(texts))
        if self._store is not None:
            known = np.array([key in self._store for key in keys])
            for n in np.flatnonzero(known).tolist():
                made[n] = self._store.read(keys[n])[0]
            new = np.flatnonzero(~known)
        if len(new):
            made[new] = encode_tokens(self._encoder, tokens, new, budget=self._config.token_budget)
            if write and self._store is not None:
                try:
                    self._store.write({keys[n]: made[n : n + 1] for n in new.tolist()})
                except OSError as error:  # the disk is full: they are encoded again next time
                    logger.warning("vectors of %d texts are not kept for later trainings: %s", len(new), error)
        return made


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
