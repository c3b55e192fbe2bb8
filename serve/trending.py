"""`GET /v1/trending`: what has the most users now, by the live statistics that every request reads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import Response

from ctxrec.core.errors import UserError
from ctxrec.retrieval.no_effect import notes_of, notes_of_nothing, unknown_in_context
from serve.api import MAX_FILTER_COLUMNS, ColumnRule, ContextValue, NumItems, Text
from serve.api_answers import ItemsResponse
from serve.browse import replica_of
from serve.engine import Answer, Engine, answer_json
from serve.http import Utf8Json, user_error
from serve.keys import READ
from serve.request_notes import column_rules

router = APIRouter()

_MAX_TEXT = 4_000  # characters of JSON in a URL
_FILTER: TypeAdapter[dict[str, ColumnRule]] = TypeAdapter(
    Annotated[dict[Text, ColumnRule], Field(max_length=MAX_FILTER_COLUMNS)]
)
_CONTEXT: TypeAdapter[dict[str, Any]] = TypeAdapter(
    Annotated[dict[Text, ContextValue], Field(max_length=MAX_FILTER_COLUMNS)]
)
_RULES = 'Rules by item column as JSON, as `filter` of a recommendation has them: {"genres": ["Comedy"]}'
_WHERE = (
    'Values of categorical features of a context as JSON; users count whose context has all of them: {"device": "tv"}'
)


@router.get("/v1/trending", response_model=ItemsResponse, summary="The items with the most users now")
async def trending(
    request: Request,
    k: Annotated[NumItems, Query()] = 10,
    filter: Annotated[str, Query(max_length=_MAX_TEXT, description=_RULES)] = "",
    context: Annotated[str, Query(max_length=_MAX_TEXT, description=_WHERE)] = "",
) -> Response:
    """What has the most users now, of all or of those in a context. A user counts once a day for an item, and half where the
    latest event is a day later."""
    rules, values = _json_of("filter", filter, _FILTER), _json_of("context", context, _CONTEXT)
    try:
        answer = await replica_of(request, READ).look(lambda engine: find_trending(engine, k, rules, values))
    except UserError as error:
        return user_error(error, part="query")
    return Utf8Json(answer_json(answer, part="query"))


def find_trending(engine: Engine, k: int, rules: dict[str, ColumnRule], context: dict[str, Any]) -> Answer:
    """The k items with the most users now in a context, of those that pass the rules; fewer where fewer have events.

    Raises:
        UserError: a column or a feature is unknown, or a rule or a value does not fit it; its field begins with "filter"
            or "context".
    """
    engine.live.take()
    retriever = engine.retriever
    with retriever.catalogue.reading():
        allowed = retriever.compile_filter(column_rules(rules))
        try:
            positions, scores = engine.live.statistics.trending(k, allowed, context)
        except UserError as error:
            raise error.at("context") from None
        notes = tuple(notes_of(retriever, column_rules(rules), {}))
        notes += tuple(notes_of_nothing(context, "context"))
        notes += tuple(unknown_in_context(retriever.recommender.contexts, context))
        return Answer(retriever.item_ids(positions), scores.tolist(), engine.model_version, notes=notes)


def _json_of(parameter: str, text: str, kind: TypeAdapter[dict[str, Any]]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        found = [{**e, "loc": ("query", parameter, *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
