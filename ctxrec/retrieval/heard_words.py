"""Whether a model reads the words of requests, and why not."""

from __future__ import annotations

from ctxrec.memory.request_words import CONTEXT_TEXT, QUERY
from ctxrec.retrieval.bundle_texts import NoEncoder
from ctxrec.retrieval.recommender import Recommender


def why_unheard(model: Recommender, source: str = QUERY) -> str | None:
    """Why words of requests have no effect; None where they have one. The encoder is loaded.

    Args:
        model: that is asked.
        source: `QUERY` or `CONTEXT_TEXT`. A model without weight for the texts of contexts was trained so: they have the
            effect that it learnt.
    """
    if model.blend is None or source not in model.blend.heard:
        return None if source == CONTEXT_TEXT else _NO_TEXTS
    if model.texts is None or model.texts.axes is None:
        return _NO_TEXTS
    try:
        model.texts.load()
    except NoEncoder as error:
        return str(error)
    return None


def check_context_texts(model: Recommender) -> None:
    """Check that the texts of contexts are read as in training, where the log has some.

    Raises:
        NoEncoder: the text encoder is not to be had.
    """
    if model.features.context_texts and (reason := why_unheard(model, CONTEXT_TEXT)) is not None:
        raise NoEncoder(reason)


_NO_TEXTS = (
    "the model compares no texts, because it was trained without a text encoder, without item texts, with "
    "model.content_dim = 0 or without the memory in model.sources"
)
