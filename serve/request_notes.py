"""What is to be said of a request that the model can read: parts of it that have no effect or leave nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.item_probabilities import NO_CALIBRATION
from ctxrec.retrieval.no_effect import NO_SECOND_STAGE, Note, notes_of, notes_of_ids, unread_values
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever
from serve.api import RecommendRequest


def request_notes(
    retriever: Retriever[Recommender], body: RecommendRequest, rules: Mapping[str, ColumnRule]
) -> tuple[Note, ...]:
    """The notes of a request, a few dictionary lookups.

    Args:
        retriever: that is asked.
        body: the request.
        rules: its filter, by item column.
    """
    return (
        *_not_reranked(retriever, body),
        *_not_probable(retriever, body),
        *notes_of_ids(retriever, history=body.history, allow=body.allow, exclude=body.exclude, dislike=body.dislike),
        *unread_values(retriever.recommender, body.history or ()),
        *notes_of(retriever, rules, body.context.features(), body.user, rerank=body.rerank),
    )


def _not_reranked(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Whether a request asks for a second stage that the model lacks."""
    if body.rerank and retriever.reranker is None:
        yield Note(("rerank",), "no_second_stage", f"it has no effect: {NO_SECOND_STAGE}")


def _not_probable(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Whether a request asks for probabilities that the model does not tell."""
    if body.probability and retriever.recommender.calibration is None:
        yield Note(("probability",), "no_probability", f"it has no effect: {NO_CALIBRATION}")
