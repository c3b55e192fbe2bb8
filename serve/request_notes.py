"""What is to be said of a request that the model can read: parts of it that have no effect or leave nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.item_probabilities import NO_CALIBRATION
from ctxrec.retrieval.no_effect import (
    MAX_NOTES,
    NO_SECOND_STAGE,
    Note,
    not_calibrated,
    notes_of,
    notes_of_events,
    notes_of_ids,
    unread_values,
)
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever
from serve.api import Context, RecommendRequest


def request_notes(
    retriever: Retriever[Recommender], body: RecommendRequest, rules: Mapping[str, ColumnRule]
) -> tuple[Note, ...]:
    """The first `MAX_NOTES` notes of a request, a few dictionary lookups.

    Args:
        retriever: that is asked.
        body: the request.
        rules: its filter, by item column.
    """
    model, history = retriever.recommender, body.history or ()
    notes = itertools.chain(
        _not_reranked(retriever, body),
        _not_probable(retriever, body),
        not_calibrated(retriever, body.query, body.dislike) if body.probability else (),
        notes_of_ids(retriever, history=history, allow=body.allow, exclude=body.exclude, dislike=body.dislike),
        unread_values(model, history),
        notes_of_events(model, history),
        notes_of(retriever, rules, _said(body.context), body.user, query=body.query, rerank=body.rerank),
    )
    return tuple(itertools.islice(notes, MAX_NOTES))


def _said(context: Context) -> dict[str, Any]:
    """All that a body says of its context, a time of null too."""
    no_time = context.timestamp is None and "timestamp" in context.model_fields_set
    return {"timestamp": None, **context.features()} if no_time else context.features()


def _not_reranked(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Whether a request asks for a second stage that the model lacks."""
    if body.rerank and retriever.reranker is None:
        yield Note(("rerank",), "no_second_stage", f"it has no effect: {NO_SECOND_STAGE}")


def _not_probable(retriever: Retriever[Recommender], body: RecommendRequest) -> Iterator[Note]:
    """Whether a request asks for probabilities that the model does not tell."""
    if body.probability and retriever.recommender.calibration is None:
        yield Note(("probability",), "no_probability", f"it has no effect: {NO_CALIBRATION}")


def column_rules(filter_: Mapping[str, Any]) -> dict[str, ColumnRule]:
    """Rules by item column for the model, of those that `serve.api.ColumnRule` checked."""
    return {
        name: ColumnRule(any=rule.any, none=rule.none, min=rule.min, max=rule.max) for name, rule in filter_.items()
    }
