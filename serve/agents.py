"""MCP at `/mcp`: agents call the same API, through the same routes and on the same ports.

The official SDK speaks the protocol (streamable HTTP). Every call is a POST that is answered with JSON, and nothing is
kept between two of them, so any replica answers any call. A tool call goes as an HTTP request to the routes below this
middleware, with the headers of the caller: keys, scopes, checks, limits and counts are those of HTTP.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

from fastapi.exceptions import RequestValidationError
from starlette.types import Message, Receive, Scope, Send

from ctxrec.core.version import VERSION
from serve.agent_tools import TOOLS, HttpCall
from serve.bodies import places_of, validated
from serve.edge import path_within
from serve.refusal import refuse

App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/mcp"
NOT_INSTALLED = "MCP needs the package mcp, which is not installed where the service runs: pip install 'ctxrec[mcp]'"
_INSTRUCTIONS = (
    "Recommendations from a catalogue. Start with catalogue, which names the columns of items for filters and the features of a "
    "context. recommend, search, similar and trending answer with item ids and scores; item_details has titles."
)


class Agents:
    """ASGI middleware that answers calls of `/mcp`; all others go on to `app`."""

    def __init__(self, app: App):
        self._app = app
        self._server: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_within(scope) != PATH:
            await self._app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=PATH)  # what is counted goes by it
        if scope["method"] != "POST":  # a GET would stay open for messages of the server, which sends none
            await refuse(
                send, 405, f"{PATH} takes POST alone; it keeps no sessions and sends no events", (b"allow", b"POST")
            )
            return
        try:
            from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
        except ImportError:
            await refuse(send, 501, NOT_INSTALLED)
            return
        if self._server is None:
            self._server = _server(self._app)
        # One manager a call: it holds the tasks of this call alone, and all of them end with it.
        manager = StreamableHTTPSessionManager(self._server, json_response=True, stateless=True)
        async with manager.run():
            await manager.handle_request(scope, receive, send)


def _server(app: App) -> Any:
    """The SDK's server, whose tools call `app`."""
    from mcp.server.lowlevel.server import Server
    from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, ToolAnnotations
    from mcp_types import Tool as McpTool

    logging.getLogger("mcp").setLevel(logging.WARNING)  # it tells of each call
    schemas = {tool.name: tool.arguments.model_json_schema() for tool in TOOLS.values()}
    tools = [
        McpTool(
            name=tool.name,
            title=tool.title,
            description=tool.description,
            input_schema=schemas[tool.name],
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
        for tool in TOOLS.values()
    ]

    async def list_tools(_context: Any, _params: Any) -> ListToolsResult:
        return ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        status, answer = await _answer(app, context.request, params.name, params.arguments or {})
        text = TextContent(type="text", text=json.dumps(answer))
        if status >= 400:
            return CallToolResult(content=[text], is_error=True)
        return CallToolResult(content=[text], structured_content=answer)

    return Server(
        "ctxrec",
        version=VERSION,
        title="ctxrec",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=schemas.get,
    )


async def _answer(app: App, request: Any, name: str, arguments: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of the call that a tool makes; of a mistake in its arguments, those that HTTP would give."""
    tool = TOOLS.get(name)
    if tool is None:
        return 404, {"detail": f"no tool is called {name[:100]!r}; expected one of {', '.join(TOOLS)}"}
    if tool.checked:
        try:
            await validated(tool.arguments, json.dumps(arguments).encode("ascii"), "arguments")
        except RequestValidationError as error:
            return 422, {"detail": places_of(error)}
    status, answer = await _ask(app, request.scope, request.receive, tool.call(arguments))
    _place_in_arguments(answer)
    refusal = tool.refusal(arguments, answer) if status < 400 else None
    return (status, answer) if refusal is None else (404, {"detail": refusal})


def _place_in_arguments(answer: Any) -> None:
    """Let mistakes and warnings of an answer lie in the arguments of the tool, and not in the call that it made of them."""
    told = [answer.get(part) for part in ("detail", "warnings")] if isinstance(answer, dict) else []
    for one in (one for part in told if isinstance(part, list) for one in part):
        if one["loc"][:1] and one["loc"][0] in ("body", "query", "path"):
            one["loc"][0] = "arguments"


async def _ask(app: App, outer: Scope, outer_receive: Receive, call: HttpCall) -> tuple[int, Any]:
    """Send a call to the routes as if the caller had sent it over HTTP; its status and its body, read as JSON."""
    body = b"" if call.body is None else json.dumps(call.body).encode("ascii")
    kept = [(n, v) for n, v in outer["headers"] if n not in (b"content-length", b"content-type", b"transfer-encoding")]
    root = outer.get("root_path", "")
    scope = {
        **outer,
        "method": call.method,
        "path": root + unquote(call.path),
        "raw_path": (quote(root) + call.path).encode(),
        "query_string": call.query.encode(),
        "headers": [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "state": {},
    }
    for ours in ("route", "endpoint", "path_params", "app", "router"):
        scope.pop(ours, None)
    sent, status, parts = False, 500, []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return await outer_receive()  # what comes next is the end of the caller's connection
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, take)
    return status, json.loads(b"".join(parts) or b"null")
