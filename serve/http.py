"""The HTTP layer: the app, its OpenAPI document, the body limit, parsing, and the one shape of errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ctxrec.core.errors import UserError
from serve.agents import Agents
from serve.api import MAX_BODY_BYTES
from serve.api_answers import ErrorResponse
from serve.bodies import MAX_ERRORS, MAX_NAME, Body, places_of, shortened, validated
from serve.edge import Edge, path_within
from serve.path_ids import API, HOW, RawPaths

DESCRIPTION = (
    "Context-aware recommendations. The retriever (a bundle with its index) finds candidates; the second stage "
    "(`ctxrec rerank`, a cross-encoder) puts the best of them in a new order, where the model has one and the request or "
    "the service asks for it; diversity and rules make the list. Scores of one request may differ by up to 1e-5 (relative) "
    "between batches."
)
_NO_CALL = ("Not Found", "Method Not Allowed")  # what the router says of a path that no call has
_WITH_IDS = ("/v1/items/", "/v1/users/")  # paths that go on with an id
_READ_ON_BYTES = 16 << 20
Result = TypeVar("Result")
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
    app.add_middleware(RawPaths)
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
    if not route.path.startswith(API):
        return
    known = [parameter.alias for parameter in route.dependant.query_params]
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        expected = f"expected {', '.join(known)}" if known else "this call has none"
        told = f"unknown parameter of the URL; {expected}" + (
            f". If it is of the id: {HOW}" if "{" in route.path else ""
        )
        raise RequestValidationError(
            [
                {"loc": ("query", name[:MAX_NAME]), "msg": told, "type": "extra_forbidden"}
                for name in unknown[:MAX_ERRORS]
            ]
        )


async def _invalid(request: Request, error: Exception) -> Response:
    # Without the rejected input itself: it may be large, private, or not valid in JSON (NaN).
    assert isinstance(error, RequestValidationError)
    return Utf8Json({"detail": places_of(error)}, status_code=422)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.detail in _NO_CALL and path_within(request.scope).startswith(_WITH_IDS):
        error.detail = f"{error.detail}; {HOW}"
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
    return await validated(model, body)


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
    return Utf8Json({"detail": [shortened([part, *where, *error.field], str(error), "value_error")]}, status_code=422)


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
