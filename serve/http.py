"""The HTTP layer: the app, its OpenAPI document, the body limit, parsing, and the one shape of errors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ctxrec.core.errors import UserError
from serve.agents import Agents
from serve.api import MAX_BODY_BYTES
from serve.api_answers import ErrorResponse
from serve.edge import Edge, path_within
from serve.mistakes import told

DESCRIPTION = (
    "Context-aware recommendations. The retriever (a bundle with its index) finds candidates; the second stage "
    "(`ctxrec rerank`, a cross-encoder) puts the best of them in a new order, where the model has one and the request or "
    "the service asks for it; diversity and rules make the list. Scores of one request may differ by up to 1e-5 (relative) "
    "between batches."
)
MAX_ERRORS = 20  # that an answer lists
MAX_KEYS = 1000  # of an object of a large body
MAX_PARTS = 100_000  # lists and objects of a body
MAX_MESSAGE = 500  # characters of one error, which may name what a client sent
MAX_NAME = 100  # characters of a name in an error's place
_API = "/v1/"
_LARGE_BYTES = 64 << 10
_MOST_LISTED = 200  # errors that are made into a list, of which the first are shown
_READ_ON_BYTES = 16 << 20
_large_bodies = ThreadPoolExecutor(1, "large bodies")
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)
One = TypeVar("One", bound=BaseModel)
Many = TypeVar("Many", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


class Utf8Json(Response):
    """JSON in UTF-8, which a terminal shows as it is. A lone surrogate that a client sent is written as its escape, so that
    it cannot break the answer to it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            errors="backslashreplace"
        )


class App(FastAPI):
    """FastAPI whose routes parse their own bodies (half the time of a small request would go into FastAPI's
    parsing) and are documented all the same, by `body_of`."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._bodies: dict[type[BaseModel], None] = {}

    def body_of(self, *models: type[BaseModel]) -> dict[str, Any]:
        """`openapi_extra` of a route whose body is one of these."""
        self._bodies |= dict.fromkeys(models)
        refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            made = super().openapi()
            template = "#/components/schemas/{model}"
            _, schemas = models_json_schema([(m, "validation") for m in self._bodies], ref_template=template)
            components = made.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas.get("$defs", {}))
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            made["security"] = [{}, {"bearer": []}, {"key": []}]  # none is asked for where no keys are set
        assert self.openapi_schema is not None
        return self.openapi_schema


def make_app() -> App:
    """The app without its routes: title, body limit, and errors as `{"detail": ...}`."""
    refusals = {status: {"model": ErrorResponse} for status in (401, 403, 413, 421, 422, 429, 503)}
    # `serve.browse` has the documentation; a path with a slash too many is a 404, as a redirect would name the Host header.
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    checked = [Depends(only_known_parameters)]
    app = App(title="ctxrec", description=DESCRIPTION, responses=refusals, dependencies=checked, **options)
    app.add_middleware(Shortcut)
    app.add_middleware(Agents)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(Head)
    app.add_middleware(Edge)

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    return app


async def only_known_parameters(request: Request) -> None:
    """Refuse a parameter of the URL that the route of the API would ignore, such as `limit` where it is `k`.

    Probes and pages take any, as some monitors and browsers add one of their own.
    """
    route = request.scope["route"]
    if not route.path.startswith(_API):
        return
    known = [parameter.alias for parameter in route.dependant.query_params]
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        expected = f"expected {', '.join(known)}" if known else "this call has none"
        told = f"unknown parameter of the URL; {expected}"
        raise RequestValidationError(
            [
                {"loc": ("query", name[:MAX_NAME]), "msg": told, "type": "extra_forbidden"}
                for name in unknown[:MAX_ERRORS]
            ]
        )


async def _invalid(request: Request, error: Exception) -> Response:
    # Without the rejected input itself: it may be large, private, or not valid in JSON (NaN).
    assert isinstance(error, RequestValidationError)
    return _unprocessable([(e["loc"], _message(e), e["type"]) for e in error.errors()[:MAX_ERRORS]])


def _unprocessable(errors: Sequence[tuple[Sequence[str | int], str, str]]) -> Utf8Json:
    """422 with these places, messages and types, each cut to a length that can be read."""
    detail = [
        {
            "loc": [cut(part, MAX_NAME) if isinstance(part, str) else part for part in loc],
            "msg": cut(msg, MAX_MESSAGE),
            "type": kind,
        }
        for loc, msg, kind in errors
    ]
    return Utf8Json({"detail": detail}, status_code=422)


def cut(text: str, length: int) -> str:
    """A text without what goes beyond a length."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Utf8Json({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def parse(request: Request, model: type[Body]) -> Body:
    """The body as `model`.

    Raises:
        RequestValidationError: it is no JSON object, or breaks a rule of the model; names the field.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestValidationError([{"type": "model_type", "loc": ("body",), "msg": ""}])
    if len(body) <= _LARGE_BYTES:
        return _validated(model, body)
    # A large body takes some tenths of a second. The event loop gets a turn between two of them.
    return await asyncio.get_running_loop().run_in_executor(_large_bodies, _validated_large, model, body)


def _validated(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"]), "msg": told(e, model)} for e in _first(error, model, body)]
        raise RequestValidationError(found) from None


def _validated_large(model: type[Body], body: bytes) -> Body:
    _check_size(body)
    return _validated(model, body)


def _check_size(body: bytes) -> None:
    """Refuse a large body with very many parts, or with an object of very many keys: each may be a mistake of its own."""
    parts = body.count(b"[") + body.count(b"{")
    if parts > MAX_PARTS:
        message = f"the body has {parts} brackets that open; expected at most {MAX_PARTS}"
        raise RequestValidationError([{"type": "value_error", "loc": ("body",), "msg": message}])

    def count(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > MAX_KEYS:
            message = f"an object has {len(pairs)} keys; expected at most {MAX_KEYS}"
            raise RequestValidationError([{"type": "value_error", "loc": ("body",), "msg": message}])

    with contextlib.suppress(ValueError, RecursionError):  # malformed JSON is refused by what follows
        json.loads(body, object_pairs_hook=count)


def _first(error: ValidationError, model: type[BaseModel], body: bytes) -> list[Any]:
    """The first mistakes of a body, without making a list of all of them: 1 MB of mistakes would take seconds."""
    few: dict[str, bool] = {"include_url": False, "include_context": False, "include_input": False}
    if error.error_count() <= _MOST_LISTED:
        return error.errors(**few)[:MAX_ERRORS]
    with contextlib.suppress(ValueError, RecursionError):
        try:
            model.model_validate(_beginning(json.loads(body)))
        except ValidationError as beginning:
            return beginning.errors(**few)[:MAX_ERRORS]
    return [{"type": "value_error", "loc": (), "msg": f"the body has {error.error_count()} mistakes"}]


def _beginning(value: Any) -> Any:
    """A JSON value without what follows the first parts of its lists and objects."""
    if isinstance(value, list):
        return [_beginning(part) for part in value[:3]]
    if isinstance(value, dict):
        return {key: _beginning(part) for key, part in itertools.islice(value.items(), MAX_ERRORS)}
    return value


async def parse_one_or_many(request: Request, one: type[One], many: type[Many], *, key: str) -> One | Many:
    """The body as `one`, or as `many` where it is a list of them under `key`; it is parsed once.

    A body that has the key somewhere inside only, for example as an id, is parsed a second time.

    Raises:
        RequestValidationError: as for `parse`.
    """
    if f'"{key}"'.encode() not in await request.body():
        return await parse(request, one)
    try:
        return await parse(request, many)
    except RequestValidationError as error:
        if not any(e["type"] == "missing" and tuple(e["loc"]) == ("body", key) for e in error.errors()):
            raise
    return await parse(request, one)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; where the client hangs up before that, `work` is cancelled.

    Args:
        receive: of a request whose body was read, so that what comes next is the end of the connection.
        work: what the client waits for.

    Raises:
        ClientDisconnect: the client has gone.
    """
    me = asyncio.current_task()
    assert me is not None

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def stop(_: asyncio.Future) -> None:
        me.cancel()

    gone = asyncio.ensure_future(hang_up())
    gone.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done() or me.uncancel():  # somebody else cancels too
            raise
        raise ClientDisconnect from None
    finally:
        gone.remove_done_callback(stop)
        gone.cancel()


def user_error(error: UserError, *where: str | int, part: str = "body") -> Utf8Json:
    """422 for what only the model knows to be wrong, such as an unknown context key; `where` it lies, to its own field."""
    return _unprocessable([([part, *where, *error.field], str(error), "value_error")])


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"malformed JSON: {error['msg'].removeprefix('Invalid JSON: ')}"
    if error["type"] in ("model_attributes_type", "model_type", "dict_type") and tuple(error["loc"]) == ("body",):
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
            await Utf8Json({"detail": detail}, status_code=413)(scope, receive, send)
            return
        await self._app(scope, _replay(b"".join(parts), receive), send)


class Head:
    """ASGI middleware that answers HEAD as GET, without the body."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}  # a copy, as the server looks at its own while it sends
        try:
            await self._app(asked, receive, without_body)
        finally:
            scope.update(asked, method="HEAD")  # the router leaves the route there, for what is counted


_shortcuts: dict[str, Endpoint] = {}


def install_shortcuts(endpoints: Mapping[str, Endpoint]) -> None:
    """Let POST calls of these paths go straight to their functions, in this process."""
    _shortcuts.update(endpoints)


class Shortcut:
    """ASGI middleware that leaves out FastAPI's way to the busiest routes, which would cost more than the routes do.

    They stand in FastAPI's table all the same, for its document and where no shortcut is installed.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        path = path_within(scope) if is_post else ""
        endpoint = _shortcuts.get(path)
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=path)  # what is counted goes by it
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except RequestValidationError as error:
            response = await _invalid(request, error)
        except HTTPException as error:
            response = await _refused(request, error)
        await response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
