"""MCP through the real service: the SDK's own client, at Serve's proxy and at the direct port, beside HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp import Client

from serve.agent_tools import TOOLS

NOW = 1_700_000_000


def ask(url: str, tool: str, arguments: dict[str, Any], *, mode: str = "auto") -> Any:
    async def run() -> Any:
        async with Client(f"{url}/mcp", mode=mode) as client:
            assert {found.name for found in (await client.list_tools()).tools} == set(TOOLS)
            return await client.call_tool(tool, arguments)

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("direct", [False, True])
def test_an_agent_gets_what_http_gets(client, direct_port, direct, mode):
    url = f"http://127.0.0.1:{direct_port}" if direct else str(client.base_url).rstrip("/")
    body = {"user_id": "u1", "k": 3, "context": {"timestamp": NOW, "device": "tv"}}
    told = ask(url, "recommend", body, mode=mode)
    assert not told.is_error and told.structured_content == client.ask(**body)


def test_all_tools_answer(client):
    url = str(client.base_url).rstrip("/")
    arguments = {
        "recommend": {"history": ["i3"], "k": 2},
        "search": {"query": "red shoe", "k": 2},
        "similar": {"item_id": "i3", "k": 2},
        "explain": {"history": ["i3"], "item_id": "i7"},
        "item_details": {"item_ids": ["i3"]},
        "trending": {"k": 2},
        "catalogue": {},
    }
    assert arguments.keys() == TOOLS.keys()
    for tool, asked in arguments.items():
        told = ask(url, tool, asked)
        assert not told.is_error and told.structured_content, tool


def test_mistakes_and_many_agents_at_once_harm_nobody(client):
    url = str(client.base_url).rstrip("/")

    async def one(number: int) -> bool:
        async with Client(f"{url}/mcp") as agent:
            good = await agent.call_tool("recommend", {"user_id": f"u{number}", "k": 2})
            bad = await agent.call_tool("recommend", {"user_id": f"u{number}", "k": 0})
            return not good.is_error and bad.is_error and "greater_than_equal" in bad.content[0].text

    async def run() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    assert all(asyncio.run(run()))
    counts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("ctxrec_requests_total")]
    assert any('route="/mcp",status="200"' in line for line in counts)
    assert not any('status="500"' in line for line in counts)
    client.ask(user_id="u1")
