"""The table of text vectors of a catalogue.

Legend: I items, H encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ctxrec.core.config import EncoderConfig
from ctxrec.encoder.encode_plan import Tokens, encode_share, plan_encoding, tokenise
from ctxrec.encoder.text_encoder import TextEncoder


def has_text(texts: list[str]) -> np.ndarray:
    """Which items have a text: bool [I]."""
    return np.array([bool(text.strip()) for text in texts], bool)


def make_text_table(
    vectors: np.ndarray, present: np.ndarray, *, mean: np.ndarray | None = None, scale: np.ndarray | None = None
) -> TextTable:
    """A table of vectors with their centre and scale.

    The scale is the standard deviation times sqrt(H), so the expected length of a scaled vector is 1.

    Args:
        vectors: [I, H].
        present: bool [I], which items have a text.
        mean: [H], the centre; None takes that of the items with text.
        scale: [H]; None takes that of the items with text.
    """
    if mean is None or scale is None:
        shown = vectors[present.astype(bool)]
        if not len(shown):
            shown = np.zeros((1, vectors.shape[1]), np.float32)
        mean = shown.mean(0)
        scale = np.maximum(shown.std(0), 1e-6) * vectors.shape[1] ** 0.5
    return TextTable(
        vectors_IH=torch.from_numpy(np.ascontiguousarray(vectors)),
        present_I=torch.from_numpy(present.astype(np.float32)),
        mean_H=torch.from_numpy(np.asarray(mean, np.float32)),
        scale_H=torch.from_numpy(np.asarray(scale, np.float32)),
    )


def encode_catalogue(
    encoder: TextEncoder, encoder_path: str, texts: list[str], config: EncoderConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Encode all texts in this process.

    Returns:
        Vectors [I, H], 0 where there is no text, and which items have a text, bool [I].
    """
    present = has_text(texts)
    vectors = np.zeros((len(texts), encoder.width), np.float32)
    which = np.flatnonzero(present)
    if len(which):
        tokens = tokenise(encoder_path, texts, max_tokens=config.max_tokens)
        vectors[which] = encode_tokens(encoder, tokens, which, budget=config.token_budget)
    return vectors, present


def encode_tokens(encoder: TextEncoder, tokens: Tokens, which: np.ndarray, *, budget: int) -> np.ndarray:
    """Vectors of some texts, float32 [len(which), H] in the order of `which`, made in this process.

    Args:
        encoder: of all layers.
        tokens: of all texts.
        which: numbers of at least one text, each once.
        budget: tokens of a forward pass at most.
    """
    plan = plan_encoding(which, tokens.lengths, budget=budget, world=1)
    place = np.empty(int(which.max()) + 1, np.int64)
    place[which] = np.arange(len(which))
    vectors = np.empty((len(which), encoder.width), np.float32)
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        vectors[place[plan.order]] = encode_share(encoder, tokens, plan, 0, device).float().cpu().numpy()
    return vectors


@dataclass
class TextTable:
    """Text vectors of the catalogue, with the centre and scale of the vectors that the towers began with.

    Raw vectors of language models share one direction (arXiv 2402.10602), so a tower reads them centred and scaled.
    """

    vectors_IH: torch.Tensor  # float32
    present_I: torch.Tensor  # float32, 0 where an item has no text
    mean_H: torch.Tensor
    scale_H: torch.Tensor

    def to(self, device: torch.device) -> TextTable:
        """The table on a device."""
        return TextTable(*(value.to(device) for value in vars(self).values()))

    def take(self, which_n: torch.Tensor) -> TextTable:
        """The texts of these items alone, in this order."""
        return TextTable(self.vectors_IH[which_n], self.present_I[which_n], self.mean_H, self.scale_H)
