"""The HTTP API's bodies and its errors: what a request may hold, and the one shape of every refusal."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ctxrec.errors import UserError
from ctxrec.events import EARLIEST_S, LATEST_S

MAX_BODY_BYTES = 1 << 20
_READ_ON_BYTES = 16 << 20
MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 8192
MAX_K = 1000
MAX_HISTORY = 1000
MAX_EXCLUDE = 10_000
MAX_FILTER_VALUES = 1000


def _at_most(num_bytes: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text.encode()) > num_bytes:
            raise ValueError(f"found {len(text.encode())} bytes; expected at most {num_bytes}")
        return text

    return check


Id = Annotated[str, Field(min_length=1), AfterValidator(_at_most(MAX_ID_BYTES))]
Text = Annotated[str, AfterValidator(_at_most(MAX_TEXT_BYTES))]
Timestamp = Annotated[
    float,
    Field(
        strict=True,
        ge=EARLIEST_S,
        le=LATEST_S,
        allow_inf_nan=False,
        description="Epoch seconds, UTC; without it, the moment of the request.",
    ),
]
ContextValue = Text | bool | int | Annotated[float, Field(allow_inf_nan=False)] | None
NumItems = Annotated[int, Field(ge=1, le=MAX_K, description="How many items to return.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Context(BaseModel):
    """The moment of asking: `timestamp` and the context features of the data set, each by its own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ContextValue]

    timestamp: Timestamp | None = None

    def features(self) -> dict[str, Any]:
        return self.__pydantic_extra__


class HistoryEvent(_Body):
    """One thing the user did."""

    item_id: Id
    action: Text | None = None
    timestamp: Timestamp | None = None
    context: dict[str, ContextValue] = Field(default_factory=dict)


class RecommendRequest(_Body):
    """Who asks for what; all but `user_id` or `history` is optional."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "196", "k": 10, "context": {"timestamp": 893286638}},
                {"history": [{"item_id": "242"}, {"item_id": "50"}], "exclude": ["302"]},
            ]
        },
    )

    user_id: Id | None = None
    k: Annotated[NumItems, Field(strict=True)] = 10
    context: Context = Field(default_factory=Context)
    history: Annotated[list[HistoryEvent], Field(max_length=MAX_HISTORY)] | None = Field(
        default=None, description="Events, oldest first; replaces the stored history of the user."
    )
    exclude: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDE, description="Items not to return.")
    filter: dict[str, Annotated[list[str], Field(max_length=MAX_FILTER_VALUES)]] = Field(
        default_factory=dict,
        description="Values of categorical item columns: any of the values of a column, and every column.",
    )
    explain: bool = False

    @model_validator(mode="after")
    def _somebody_asks(self) -> RecommendRequest:
        if self.user_id is None and self.history is None:
            raise ValueError("user_id or history is required")
        return self

    @field_validator("explain")
    @classmethod
    def _no_explanations(cls, value: bool) -> bool:
        if value:
            raise ValueError("explanations are not supported yet; leave explain out or set it to false")
        return value


class ScoredItem(BaseModel):
    """An item and its score; higher is better, and scores of one answer compare with each other only."""

    item_id: str
    score: float


class ItemsResponse(BaseModel):
    """Items, best first; `fallback` says that nothing was known about who asked."""

    items: list[ScoredItem]
    model_version: str
    fallback: bool


class ErrorResponse(BaseModel):
    """What every refusal looks like: a sentence, or a list of fields with what is wrong with each."""

    detail: str | list[dict[str, Any]]


class AsciiJson(Response):
    """JSON in plain ASCII, so that a lone surrogate sent by a client cannot break the answer to it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def user_error_response(error: UserError) -> AsciiJson:
    """422 for what only the model knows to be wrong, such as an unknown context key."""
    return AsciiJson({"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]}, status_code=422)


def make_app() -> FastAPI:
    """The FastAPI app without its routes: title, body limit, and errors as `{"detail": ...}`."""
    app = FastAPI(
        title="ctxrec",
        description="Context-aware recommendations.",
        responses={422: {"model": ErrorResponse}, 413: {"model": ErrorResponse}, 503: {"model": ErrorResponse}},
    )
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Without the rejected input itself: it may be large, private, or not valid in JSON (NaN).
        detail = [{"loc": list(e["loc"]), "msg": _message(e), "type": e["type"]} for e in error.errors()]
        return AsciiJson({"detail": detail}, status_code=422)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return AsciiJson({"detail": error.detail}, status_code=error.status_code, headers=error.headers)

    return app


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"malformed JSON at character {error['loc'][-1]}: {error.get('ctx', {}).get('error', '')}"
    if error["type"] in ("model_attributes_type", "model_type", "dict_type") and error["loc"] == ("body",):
        return "expected a JSON object with Content-Type: application/json"
    return error["msg"].removeprefix("Value error, ")


class BodyLimit:
    """ASGI middleware that answers 413 to bodies over `max_bytes`, with or without a Content-Length."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        # Read on for a while past the limit: a client that is still sending may never see an early answer.
        parts, size, more = [], 0, True
        while more and size <= _READ_ON_BYTES:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size <= self._max_bytes:
                parts.append(message.get("body", b""))
            else:
                parts.clear()
        if size > self._max_bytes:
            detail = f"the body has {size} bytes{' or more' if more else ''}; expected at most {self._max_bytes}"
            await AsciiJson({"detail": detail}, status_code=413)(scope, receive, send)
            return
        await self._app(scope, _replay(b"".join(parts), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
