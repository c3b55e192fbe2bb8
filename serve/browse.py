"""The calls behind the page: rows of the catalogue, users and their histories, the page itself, and the documentation.

These are plain functions, not methods of the deployment: what they ask lies in this module, which Serve imports in
each replica, while it copies the app.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import fastapi_offline
import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ctxrec.core import schema
from ctxrec.data.events import EARLIEST_S, LATEST_S, US, Events
from ctxrec.live.store import StoreError
from ctxrec.retrieval.recommender import Recommender
from serve.api import MAX_ITEMS, Id
from serve.api_answers import ErrorResponse, UserResponse
from serve.browse_api import CatalogueResponse, HistoryResponse, ItemRows, UsersResponse
from serve.engine import Engine
from serve.http import Utf8Json
from serve.keys import ADMIN, READ, Keys
from serve.replica import Replica
from serve.store_failures import store_unavailable

router = APIRouter()

_PAGE = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_FILES = {path.name: path for path in _PAGE.glob("*.*") if path.stem != "docs"}
_POLICY = "; ".join(
    ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"]
    + ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
)  # fmt: skip
# Swagger UI sets styles of elements one by one.
_DOCS_POLICY = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
_SWAGGER = Path(fastapi_offline.__file__).parent / "static"
_DOCS = {
    path.name: path for path in (_SWAGGER / "swagger-ui-bundle.js", _SWAGGER / "swagger-ui.css", _PAGE / "docs.js")
}
_VALUES = 300  # of a categorical column or feature that are listed, by frequency

_state: tuple[Replica, Keys, bool] | None = None


def install(replica: Replica, keys: Keys, *, page: bool) -> None:
    """Let this process answer these calls. Without `page` it does not serve the page itself."""
    global _state
    _state = replica, keys, page


def replica_of(request: Request, scope: str) -> Replica:
    """The replica of this process, for a caller whose key has the scope."""
    assert _state is not None, "a replica installs itself before it takes requests"
    replica, keys, _ = _state
    keys.check(request.headers, scope)
    return replica


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page that shows lists to people."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A script or style sheet of the page."""
    return _file(name)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The OpenAPI document as a page, with scripts and styles of this service alone."""
    return _answer(_PAGE / "docs.html", _DOCS_POLICY)


@router.get("/docs/{name}", include_in_schema=False)
async def docs_file(name: str) -> Response:
    """A script or style sheet of the documentation."""
    if name not in _DOCS:
        raise HTTPException(404)
    return _answer(_DOCS[name], _DOCS_POLICY)


def _file(name: str) -> Response:
    if _state is None or not _state[2] or name not in _FILES:
        raise HTTPException(404)
    return _answer(_FILES[name], _POLICY)


def _answer(path: Path, policy: str) -> Response:
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=_KINDS[path.suffix])


@router.get(
    "/v1/catalogue", response_model=CatalogueResponse, summary="The catalogue: columns, context features, actions"
)
async def catalogue(request: Request) -> Response:
    """The size, the columns and the values of what is served."""
    return Utf8Json(await replica_of(request, READ).look(about))


@router.get("/v1/items", response_model=ItemRows, summary="Rows of the catalogue; unknown ids are left out")
async def items(request: Request, id: Annotated[list[Id], Query(min_length=1, max_length=MAX_ITEMS)]) -> Response:
    """Rows of the catalogue by id, new items too."""
    return Utf8Json({"items": await replica_of(request, READ).look(lambda engine: item_rows(engine, id))})


@router.get("/v1/users", response_model=UsersResponse, summary="Users of the log whose ids begin with the prefix")
async def users(
    request: Request,
    prefix: Annotated[str, Query(max_length=1024)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Users of the log whose ids begin with a prefix."""
    return Utf8Json({"users": await replica_of(request, ADMIN).look(lambda engine: find_users(engine, prefix, limit))})


@router.get(
    "/v1/users/{user_id:id}/history", response_model=HistoryResponse, summary="The history of a user, newest first"
)
async def history(
    request: Request,
    user_id: Id,
    before: Annotated[float | None, Query(ge=EARLIEST_S, le=LATEST_S, description="Epoch seconds, UTC")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """What a user did before a time, of the log and of the store."""
    return Utf8Json(await replica_of(request, ADMIN).look(lambda engine: user_history(engine, user_id, before, limit)))


@router.get(
    "/v1/users/{user_id:id}",
    response_model=UserResponse,
    responses={404: {"model": ErrorResponse}},
    summary="What is known of a user: the posted attributes, or those of the user file",
)
async def user(request: Request, user_id: Id) -> Response:
    """The attributes of a user that requests read."""
    try:
        known = await replica_of(request, ADMIN).about_users(lambda rows, retriever: rows.known(user_id, retriever))
    except StoreError as error:
        raise store_unavailable(error) from None
    if known is None:
        raise HTTPException(404, f"user_id: nothing is known of a user {user_id[:100]!r}")
    return Utf8Json(known)


def about(engine: Engine) -> dict[str, Any]:
    """Name, size, columns and values of what is served."""
    retriever, recommender = engine.retriever, engine.retriever.recommender
    features, spec, times = recommender.features, recommender.spec, recommender.histories.events.times
    numbers = {name: recommender.items.column(schema.numeric_column(name)) for name in features.item_numbers}
    columns = () if spec.items is None else spec.items.categorical
    return {
        "name": spec.name,
        "model_version": recommender.model_version,
        "num_items": retriever.num_items,
        "num_users": len(recommender.user_row),
        "latest_event": int(times.max()) / US if len(times) else None,
        "timezone": spec.events.timezone,
        "clock": features.clock,
        "repeats": spec.split.repeats,
        "actions": list(recommender.kinds.actions),
        "item_columns": {
            "categorical": {name: features.item_categories[name][:_VALUES] for name in columns},
            "numeric": {name: pc.min_max(column).as_py() for name, column in numbers.items()},
        },
        "context": {
            "categorical": {name: values[:_VALUES] for name, values in features.context_categories.items()},
            "numeric": list(features.context_numbers),
            "text": list(features.context_texts),
        },
    }


def item_rows(engine: Engine, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the items that the catalogue has, in the order of `ids`."""
    retriever = engine.retriever
    known = [retriever.recommender.item_position[item] for item in ids if retriever.has_item(item)]
    return retriever.catalogue.cards(known)


def find_users(engine: Engine, prefix: str, limit: int) -> list[dict[str, Any]]:
    """The first users in the order of their ids that begin with the prefix."""
    recommender = engine.retriever.recommender
    found = recommender.user_ids.beginning_with(prefix, limit)
    lengths = recommender.histories.events.lengths
    return [{"user_id": name, "events": int(lengths[recommender.user_row[name]])} for name in found]


def user_history(engine: Engine, user_id: str, before: float | None, limit: int) -> dict[str, Any]:
    """The latest events of a user before a time, of the bundle and of the store."""
    recommender = engine.retriever.recommender
    events, degraded = engine.history(user_id, before)
    told = _told(recommender, events, limit)
    cards = engine.retriever.catalogue.cards([recommender.item_position[event["item_id"]] for event in told])
    for event, card in zip(told, cards, strict=True):
        event["title"] = card["title"]
    answer = {"user_id": user_id, "known": len(events.items) > 0, "events": told}
    return answer if degraded is None else {**answer, "degraded": degraded}


def _told(recommender: Recommender, events: Events, limit: int) -> list[dict[str, Any]]:
    """The latest events in words, the latest first."""
    features, made = recommender.features, []
    for n in range(len(events.items) - 1, max(len(events.items) - 1 - limit, -1), -1):
        context: dict[str, Any] = {
            name: values[code - schema.FIRST_CODE]
            for name, values in features.context_categories.items()
            if (code := int(events.context.cat[name][n])) >= schema.FIRST_CODE
        }
        numbers = {name: float(events.context.num[name][n]) for name in features.context_numbers}
        context |= {name: round(value, 6) for name, value in numbers.items() if np.isfinite(value)}
        context |= {name: text for name in features.context_texts if (text := events.context.text[name][n])}
        action = int(events.actions[n])
        made.append(
            {
                "item_id": recommender.item_ids[int(events.items[n])],
                "action": features.actions[action - 1] if action else None,
                "timestamp": int(events.times[n]) / US,
                "context": context,
            }
        )
    return made
