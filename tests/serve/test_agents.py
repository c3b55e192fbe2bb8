"""MCP in process: the SDK's own client against the routes with a real replica behind them, without Ray Serve."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from prometheus_client import values
from starlette.types import Receive, Scope, Send

from serve import browse, edge, http, trending
from serve.agent_tools import BEYOND_SEARCH, OF_THE_LIST, TOOLS
from serve.agents import NOT_INSTALLED
from serve.api import RecommendRequest
from serve.arguments import AppArgs
from serve.deployment import Service
from serve.http import App, install_shortcuts, make_app
from serve.keys import Keys, parse_keys
from serve.replica import Replica
from serve.service_metrics import Metrics

NOW = 1_700_000_000
HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture(scope="module")
def made(told_run, tmp_path_factory) -> Iterator[tuple[AppArgs, Metrics, Replica]]:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("agents")
    patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder / "metrics"))  # what a process of its own would keep
    patch.setattr(values, "ValueClass", values.ValueClass)
    args = AppArgs(run=told_run, store=str(folder / "live"), load_encoder=False).resolved()
    metrics = Metrics(str(folder / "metrics"))
    replica = Replica(args, metrics, num_threads=1)
    yield args, metrics, replica
    replica.close()
    metrics.close()
    patch.undo()


@pytest.fixture
def app(made, monkeypatch) -> Callable[..., App]:
    """The app of a service with these keys and arguments."""

    def build(keys: str = "", **more: Any) -> App:
        args, metrics, replica = made
        own = Keys(parse_keys(keys))
        monkeypatch.setattr(edge, "_current", None)
        monkeypatch.setattr(browse, "_state", None)
        monkeypatch.setattr(http, "_shortcuts", {})
        edge.install(args.model_copy(update=more), own, metrics)
        browse.install(replica, own, page=False)
        service: Any = object.__new__(Service.func_or_class)
        service._keys, service._replica = own, replica
        install_shortcuts({"/v1/recommend": service.recommend})
        built = make_app()
        built.include_router(browse.router)
        built.include_router(trending.router)
        built.add_api_route("/v1/items/{item_id:id}/similar", service.similar)
        return built

    return build


def over(app: Any, use: Callable[[Client], Awaitable[Any]], *, mode: str = "auto", **headers: str) -> Any:
    """What a use of the SDK's client gives."""

    async def run() -> Any:
        transport = httpx2.ASGITransport(app)
        async with (
            httpx2.AsyncClient(transport=transport, headers=headers) as http_client,
            Client(streamable_http_client("http://localhost/mcp", http_client=http_client), mode=mode) as client,
        ):
            return await use(client)

    return asyncio.run(run())


def send(app: Any, method: str, path: str, **options: Any) -> httpx2.Response:
    async def run() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def call(app: Any, tool: str, arguments: dict[str, Any] | None = None, **headers: str) -> Any:
    return over(app, lambda client: client.call_tool(tool, arguments), **headers)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_of_either_age_finds_the_tools_and_calls_them(app, mode):
    async def use(client: Client) -> tuple[Any, Any]:
        return await client.list_tools(), await client.call_tool("recommend", {"user_id": "u1", "k": 3})

    listed, answer = over(app(), use, mode=mode)
    assert {tool.name for tool in listed.tools} == set(TOOLS)
    assert all(tool.annotations.read_only_hint and tool.input_schema["type"] == "object" for tool in listed.tools)
    assert not answer.is_error and len(answer.structured_content["items"]) == 3
    assert json.loads(answer.content[0].text) == answer.structured_content


def test_each_tool_answers_as_http_does(app):
    context = {"timestamp": NOW, "device": "tv"}
    body = {"user_id": "u1", "k": 4, "context": context, "exclude": ["i3"], "probability": True, "explain": True}
    searched = {"query": "red shoe", "k": 5, "filter": {"category": ["group1"]}}
    http_calls = {
        "recommend": (body, "POST", "/v1/recommend", body),
        "search": (searched, "POST", "/v1/recommend", searched | {"history": []}),
        "similar": ({"item_id": "i3", "k": 2}, "GET", "/v1/items/i3/similar?k=2", None),
        "explain": (
            {"history": ["i4", "i8"], "item_id": "i12", "context": context},
            "POST",
            "/v1/recommend",
            {"history": ["i4", "i8"], "context": context, "allow": ["i12"], "k": 1, "explain": True},
        ),
        "item_details": ({"item_ids": ["i3", "no such item", "i5"]}, "GET", "/v1/items?id=i3&id=no+such+item&id=i5", None),
        "trending": (
            {"k": 2, "filter": {"category": ["group1"]}, "context": {"device": "tv"}},
            "GET",
            '/v1/trending?k=2&filter={"category":["group1"]}&context={"device":"tv"}',
            None,
        ),
        "catalogue": ({}, "GET", "/v1/catalogue", None),
    }  # fmt: skip
    assert http_calls.keys() == TOOLS.keys(), "a new tool needs a case here"
    served = app()
    for tool, (arguments, method, path, sent) in http_calls.items():
        expected = send(served, method, path, json=sent)
        assert expected.status_code == 200, (tool, expected.text)
        told = call(served, tool, arguments)
        assert not told.is_error and told.structured_content == expected.json(), tool
    (item,) = call(served, "explain", http_calls["explain"][0]).structured_content["items"]
    assert item["item_id"] == "i12" and item["why"]["sources"]


def test_arguments_are_the_fields_of_a_request():
    """A new field of a request is one of `recommend` and `explain` by itself, and is put to `search` or beyond it here."""
    fields = RecommendRequest.model_fields
    assert TOOLS["recommend"].arguments is RecommendRequest
    assert set(OF_THE_LIST) <= fields.keys() and set(BEYOND_SEARCH) <= fields.keys()
    assert TOOLS["explain"].arguments.model_fields.keys() == fields.keys() - set(OF_THE_LIST) | {"item_id"}
    in_search = {"query", "user_id", "k", "context", "exclude", "allow", "filter", "diversity"}
    assert TOOLS["search"].arguments.model_fields.keys() == in_search == fields.keys() - set(BEYOND_SEARCH)
    for tool in ("explain", "search"):
        own = TOOLS[tool].arguments.model_json_schema()["properties"]
        whole = RecommendRequest.model_json_schema()["properties"]
        changed = {"item_id", "query", "user_id"} if tool == "search" else {"item_id"}
        assert {n: own[n] for n in own if n not in changed} == {n: whole[n] for n in own if n not in changed}


def test_every_field_of_an_explanation_does_something(app):
    served, plain = app(), {"history": ["i4", "i8"], "item_id": "i12", "context": {"timestamp": NOW}}
    before = call(served, "explain", plain).structured_content
    others = {
        "item_id": "i13",
        "user_id": "u1",
        "history": ["i4"],
        "context": {"timestamp": NOW, "device": "tv"},
        "dislike": ["i13"],
        "user": {"gender": "F"},
        "query": "red shoe",
        "probability": True,
    }
    assert others.keys() == TOOLS["explain"].arguments.model_fields.keys(), "a new field needs a case here"
    for name, value in others.items():
        asked = {n: v for n, v in (plain | {name: value}).items() if (name, n) != ("user_id", "history")}
        assert call(served, "explain", asked).structured_content != before, name


def test_words_and_taste_change_what_is_found(app):
    served = app()
    lists = [
        [item["item_id"] for item in call(served, "search", asked).structured_content["items"]]
        for asked in ({"query": "red shoe"}, {"query": "blue lamp"}, {"query": "red shoe", "user_id": "u1"})
    ]
    assert lists[0] != lists[1] and lists[0] != lists[2]


@pytest.mark.parametrize(
    ("tool", "arguments", "status", "says"),
    [
        ("recommend", {"user_id": "u1", "K": 3}, "extra_forbidden", "unknown field; expected user_id, k, context"),
        ("recommend", {}, "value_error", "user_id or history is required"),
        ("recommend", {"user_id": "u1", "filter": {"colour": ["red"]}}, "value_error", "colour"),
        ("search", {"query": ""}, "string_too_short", "query"),
        ("search", {"query": "x" * 2000}, "string_too_long", "query"),
        ("search", {"words": "red"}, "extra_forbidden", "unknown field; expected query, user_id, k, context"),
        ("similar", {"item_id": "no such item"}, "no item", "no such item"),
        ("similar", {"item_id": "i3/../../healthz", "k": 1}, "no item", "i3/../../healthz"),
        ("similar", {"item_id": "i3", "k": 0}, "greater_than_equal", "k"),
        ("similar", {"item_id": "i3/similar?k=1#%2F"}, "no item", "i3/similar?k=1#%2F"),
        ("explain", {"user_id": "u1"}, "missing", "item_id"),
        ("explain", {"user_id": "u1", "item_id": "no such item"}, "no item", "no such item"),
        ("explain", {"user_id": "u1", "item_id": "x" * 2000}, "value_error", "item_id"),
        ("item_details", {"item_ids": []}, "too_short", "item_ids"),
        ("trending", {"filter": {"category": {}}}, "value_error", "empty rule"),
        ("trending", {"filter": {"category": "x"}}, "value_error", '"expected a list of values'),
        ("catalogue", {"id": "i3"}, "extra_forbidden", "unknown field; expected none"),
        ("delete_everything", {}, "no tool is called", "recommend, search"),
    ],
)
def test_a_mistake_is_told_to_the_agent(app, tool, arguments, status, says):
    told = call(app(), tool, arguments)
    assert told.is_error and told.structured_content is None
    assert status in told.content[0].text and says in told.content[0].text


@pytest.mark.parametrize(
    ("tool", "arguments", "place"),
    [
        ("recommend", {"user_id": "u1", "k": 0}, ["k"]),
        ("recommend", {"user_id": "u1", "context": {"mood": 1}}, ["context", "mood"]),
        ("search", {"query": "red", "filter": {"colour": ["red"]}}, ["filter", "colour"]),
        ("explain", {"user_id": "u1", "item_id": "i12", "context": {"mood": 1}}, ["context", "mood"]),
        ("explain", {"user_id": "u1", "item_id": ""}, ["item_id"]),
        ("trending", {"filter": {"colour": ["red"]}}, ["filter", "colour"]),
    ],
)
def test_a_mistake_lies_in_the_arguments(app, tool, arguments, place):
    (mistake,) = json.loads(call(app(), tool, arguments).content[0].text)["detail"]
    assert mistake["loc"] == ["arguments", *place]


def test_a_warning_lies_in_the_arguments(app):
    asked = {"user_id": "u1", "item_id": "i12", "dislike": ["no such item"]}
    (warning,) = call(app(), "explain", asked).structured_content["warnings"]
    assert warning["loc"] == ["arguments", "dislike"] and warning["type"] == "unknown_item"


def test_keys_have_the_scopes_of_http(app):
    served = app("read@reader write@writer")
    assert not call(served, "recommend", {"user_id": "u1"}, authorization="Bearer reader").is_error
    assert not call(served, "item_details", {"item_ids": ["i3"]}, **{"x-api-key": "reader"}).is_error
    refused = call(served, "recommend", {"user_id": "u1"}, authorization="Bearer writer")
    assert refused.is_error and "this API key may not read" in refused.content[0].text
    assert send(served, "POST", "/mcp", json=PING, headers=HEADERS).status_code == 401
    with pytest.raises((MCPError, ExceptionGroup)):
        call(served, "recommend", {"user_id": "u1"}, authorization="Bearer wrong")


def test_a_foreign_host_is_refused(app):
    answer = send(app(), "POST", "/mcp", json=PING, headers={**HEADERS, "host": "evil.example"})
    assert answer.status_code == 421


def test_a_caller_that_asks_too_fast_waits(app):
    served = app(rate_limit=1, rate_burst=3)
    found = [send(served, "POST", "/mcp", json=PING, headers=HEADERS).status_code for _ in range(5)]
    assert found == [200, 200, 200, 429, 429]


def test_calls_are_counted(app, made):
    served, metrics = app(), made[1]
    before = metrics.render().decode()
    call(served, "recommend", {"user_id": "u1"})
    after = metrics.render().decode()
    assert 'ctxrec_requests_total{route="/mcp",status="200"}' in after
    assert after != before and 'stage="tower"' in after


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "HEAD"])
def test_nothing_stays_open(app, method):
    answer = send(app(), method, "/mcp", headers=HEADERS)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"[" * 20_000, b'{"a":' * 20_000, b"\xff\xfe", b"1" * 5_000, b'{"jsonrpc": "2.0"}',
        b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 3}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "recommend", "arguments": [1]}}',
        b'{"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "no/such/method"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": {}}',
        b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "recommend", "arguments": {"user_id": "\\ud800"}}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [None, "2025-11-25", "2026-07-28", "tomorrow"])
def test_whatever_comes_is_answered_and_the_next_call_too(app, body, version):
    served = app()
    headers = HEADERS | ({} if version is None else {"mcp-protocol-version": version})
    answer = send(served, "POST", "/mcp", content=body, headers=headers)
    assert answer.status_code in (200, 202, 400, 404, 406, 415), answer.text
    assert len(answer.content) < 50_000
    assert send(served, "POST", "/mcp", json=PING, headers=HEADERS).json()["result"] is not None


def test_a_large_body_is_refused(app):
    arguments = {"name": "recommend", "arguments": {"user_id": "x" * (1 << 20)}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
    assert send(app(), "POST", "/mcp", json=body, headers=HEADERS).status_code == 413


_MANY = {f"k{n}": 5 for n in range(60_000)}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("recommend", {"history": [5] * 300_000}),
        ("explain", {"item_id": "i3", "history": [5] * 300_000}),
        ("explain", {"item_id": "i3", "history": ["i4"] * 100_000}),
        ("explain", {"item_id": "i3", "user_id": "u1", "user": _MANY}),
        ("search", {"query": "red", "filter": _MANY}),
        ("similar", {"item_id": "i3", **_MANY}),
        ("similar", {"item_id": "i3", "k" * 900_000: 5}),
        ("trending", {"context": _MANY}),
        ("item_details", {"item_ids": [5] * 300_000}),
        ("catalogue", _MANY),
    ],
)
def test_large_wrong_arguments_cost_little_and_their_answer_is_short(app, tool, arguments):
    served, body = app(), {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body["params"] = {"name": tool, "arguments": arguments}
    start = time.process_time()
    answer = send(served, "POST", "/mcp", json=body, headers=HEADERS)
    assert time.process_time() - start < 2.0  # without bounds some of these took 6 s
    assert answer.json()["result"]["isError"] and len(answer.content) < 20_000


def test_a_client_that_hangs_up_takes_its_work_back(app):
    """The route learns that the agent's connection has ended, as it does over HTTP."""
    served, started, ended = app(), asyncio.Event(), []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        started.set()
        ended.append((await receive())["type"])

    async def run() -> None:
        from serve.agents import Agents

        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "catalogue"}}).encode()
        messages: asyncio.Queue = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {"type": "http", "method": "POST", "path": "/mcp", "query_string": b"",
                 "headers": [(n.encode(), v.encode()) for n, v in HEADERS.items()]}  # fmt: skip

        async def nowhere(_: Any) -> None:
            pass

        asked = asyncio.create_task(Agents(slow)(scope, messages.get, nowhere))
        await asyncio.wait_for(started.wait(), 10)
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(asked, 10)

    assert served is not None
    asyncio.run(run())
    assert ended == ["http.disconnect"]


def test_without_the_package_the_answer_says_what_to_install(app, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("mcp", "mcp_types")]:
        monkeypatch.setitem(sys.modules, name, None)
    answer = send(app(), "POST", "/mcp", json=PING, headers=HEADERS)
    assert answer.status_code == 501 and answer.json() == {"detail": NOT_INSTALLED}
