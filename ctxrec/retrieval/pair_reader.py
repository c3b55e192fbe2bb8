"""Tokens of pairs of a request and a candidate, as a cross-encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctxrec.encoder.encode_plan import Tokens

_CHARACTERS = 16  # of a text that count for each token of the budget, so that no text is cut for nothing


class PairReader:
    """Turns requests and candidates into tokens of their pairs: request first, candidate last.

    Args:
        encoder_path: folder with the encoder's tokenizer.
        max_tokens: of a pair, with the special tokens.
    """

    def __init__(self, encoder_path: str, *, max_tokens: int):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(encoder_path, trust_remote_code=False)
        self.max_tokens = max_tokens
        self._before, self._between, self._behind = self._special_tokens()
        pad = self._tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else self._tokenizer.eos_token_id or 0)

    def plain(self, texts: Sequence[str], limit: int) -> Tokens:
        """Tokens of texts without special ones, at most `limit` each."""
        cut = [text[: limit * _CHARACTERS] for text in texts]
        options: dict[str, Any] = {"add_special_tokens": False, "truncation": True, "max_length": limit}
        rows = self._tokenizer(cut, padding=False, **options)["input_ids"] if cut else []
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        ids = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
        return Tokens(ids=ids, offsets=offsets, pad_id=self._pad_id)

    def pairs(self, asked: Tokens, items: Tokens, row_P: np.ndarray, item_P: np.ndarray) -> Tokens:
        """Tokens of pairs (request row_P[p], item item_P[p]); the request's are cut where both are too long."""
        room = self.max_tokens - len(self._before) - len(self._between) - len(self._behind)
        parts, lengths = [], np.zeros(len(row_P), np.int64)
        for p, (row, item) in enumerate(zip(row_P.tolist(), item_P.tolist(), strict=True)):
            candidate = items.ids[items.offsets[item] : items.offsets[item + 1]][: max(room, 0)]
            request = asked.ids[asked.offsets[row] : asked.offsets[row + 1]][: max(room - len(candidate), 0)]
            pair = [self._before, request, self._between, candidate, self._behind]
            parts += pair
            lengths[p] = sum(map(len, pair))
        return Tokens(
            ids=np.concatenate(parts) if parts else np.zeros(0, np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pad_id=self._pad_id,
        )

    def save(self, folder: str) -> None:
        self._tokenizer.save_pretrained(folder)

    def _special_tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the tokenizer puts before, between and behind two texts; between, at least one separator."""
        probe = self._tokenizer("a", add_special_tokens=False, padding=False)["input_ids"]
        whole = self._tokenizer("a", "a", padding=False)["input_ids"]
        first = whole.index(probe[0])
        last = len(whole) - whole[::-1].index(probe[-1]) - len(probe)
        separator = self._tokenizer.sep_token_id or self._tokenizer.eos_token_id
        between = whole[first + len(probe) : last] or ([] if separator is None else [separator])
        parts = whole[:first], between, whole[last + len(probe) :]
        before, middle, behind = (np.array(part, np.int32) for part in parts)
        return before, middle, behind
