"""The texts of contexts, as the weights of the blend are fitted to them: by the encoder of the catalogue's texts.

Legend: n texts, H encoder width, C width of the text head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_reader import TextReader
from ctxrec.encoder.text_table import TextTable
from ctxrec.memory.request_words import ReadTexts
from ctxrec.memory.text_similarity import on_axes, text_axes
from ctxrec.training.phase_setup import Setup


def axes_of(setup: Setup, text: TextTable) -> tuple[np.ndarray, np.ndarray]:
    """Centre [H] and axes [H, C] of the text head for these text vectors of the catalogue."""
    return text_axes(text.vectors_IH.cpu().numpy(), text.present_I.cpu().numpy(), setup.config.model.content_dim)


def context_reader(setup: Setup, text: TextTable | None, encoder: TextEncoder | None) -> ReadTexts | None:
    """What reads the texts of contexts; None where the log has none, or the model has no text head or no context.

    Vectors of the encoder before it is tuned are kept on the machine's disk, for later trainings and evaluations.

    Args:
        setup: what all phases share.
        text: text vectors of the catalogue.
        encoder: that gave them; None: the pretrained one.
    """
    model, texts = setup.config.model, setup.catalogue.texts
    if text is None or texts is None or not model.content_dim or "context" not in model.sources:
        return None
    if not setup.log.data.features.context_texts:
        return None
    centre, axes = axes_of(setup, text)
    untuned = encoder is None
    if encoder is None:
        encoder = TextEncoder(setup.config.encoder, texts.encoder_path, tune=False).to(setup.worker.device)
    reader = TextReader(encoder, texts.encoder_path, setup.config.encoder, on_disk=untuned)

    def read(found: Sequence[str]) -> np.ndarray:
        vectors = reader.read(found, write=untuned)
        return on_axes(vectors, np.ones(len(vectors), bool), centre, axes)

    return read
