"""What is to be said of a request that the model can read: parts of it that have no effect or leave nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.no_effect import MAX_NOTES, NO_SECOND_STAGE, Note, notes_of
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
        *_unknown_dislikes(retriever, body),
        *notes_of(retriever, rules, body.context.features(), body.user, rerank=body.rerank),
    )


def _not_reranked(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Whether a request asks for a second stage that the model lacks."""
    if body.rerank and retriever.reranker is None:
        yield Note(("rerank",), "no_second_stage", f"it has no effect: {NO_SECOND_STAGE}")


def _unknown_dislikes(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Disliked items that the catalogue lacks."""
    unknown = [n for n, item in enumerate(body.dislike) if not retriever.has_item(item)]
    for n in unknown[:MAX_NOTES]:
        text = f"{body.dislike[n]!r} is no item of the catalogue, so it has no effect"
        yield Note(("dislike", str(n)), "unknown_item", text)
