"""`GET /v1/trending`: what has the most users now, by the live statistics that every request reads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import Response

from ctxrec.core.errors import UserError
from serve.api import MAX_FILTER_COLUMNS, ColumnRule, NumItems, Text
from serve.api_answers import ItemsResponse
from serve.browse import replica_of
from serve.engine import Answer, Engine, answer_json, column_rules
from serve.http import Utf8Json, user_error
from serve.keys import READ

router = APIRouter()

_MAX_FILTER = 4_000  # characters of a filter in a URL
_FILTER: TypeAdapter[dict[str, ColumnRule]] = TypeAdapter(
    Annotated[dict[Text, ColumnRule], Field(max_length=MAX_FILTER_COLUMNS)]
)
_ABOUT = 'Rules by item column as JSON, as `filter` of a recommendation has them: {"genres": ["Comedy"]}'


@router.get("/v1/trending", response_model=ItemsResponse, summary="The items with the most users now")
async def trending(
    request: Request,
    k: Annotated[NumItems, Query()] = 10,
    filter: Annotated[str, Query(max_length=_MAX_FILTER, description=_ABOUT)] = "",
) -> Response:
    """What has the most users now. A user counts once a day for an item, and half where the latest event is a day later."""
    rules = _rules(filter)
    try:
        answer = await replica_of(request, READ).look(lambda engine: find_trending(engine, k, rules))
    except UserError as error:
        return user_error(error, "filter")
    return Utf8Json(answer_json(answer))


def find_trending(engine: Engine, k: int, rules: dict[str, ColumnRule]) -> Answer:
    """The k items with the most users now, of those that pass the rules; fewer where fewer have events.

    Raises:
        UserError: a column is unknown, or a rule does not fit it.
    """
    engine.live.take()
    retriever = engine.retriever
    with retriever.catalogue.reading():
        allowed = retriever.compile_filter(column_rules(rules))
        positions, scores = engine.live.statistics.trending(k, allowed)
        return Answer(retriever.item_ids(positions), scores.tolist(), engine.model_version)


def _rules(text: str) -> dict[str, ColumnRule]:
    if not text:
        return {}
    try:
        return _FILTER.validate_json(text)
    except ValidationError as error:
        found = [{**e, "loc": ("query", "filter", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
