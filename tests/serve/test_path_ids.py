"""Ids in paths: any id reaches the call that was meant, percent-encoded, and a path that no call has says how to write it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxrec.client import _in_path
from serve import browse, deployment, trending
from serve.http import make_app
from serve.path_ids import HOW, _IdConvertor

ids = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.text(st.sampled_from("/?#%.& a2F+;"), min_size=1, max_size=8),
)


def routes_with_ids() -> list[Any]:
    routers = [route.original_router for route in deployment.app.routes if hasattr(route, "original_router")]
    assert browse.router in routers and trending.router in routers
    found = [route for router in routers for route in router.routes if "{" in route.path]
    return [route for route in found if route.path.startswith("/v1/")]


class Caller:
    """Calls an app as a server does: with the path as it was sent, and decoded once."""

    def __init__(self, app: Any):
        self._app = app

    def request(self, method: str, url: str) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, url)

        return asyncio.run(send())

    def get(self, url: str) -> httpx.Response:
        return self.request("GET", url)


@pytest.fixture(scope="module")
def client() -> Caller:
    """The service's own table of routes, each of which tells what it was asked."""
    app = make_app()

    def tells(path: str) -> Any:
        async def tell(request: Request) -> dict[str, Any]:
            return {"path": path, "ids": list(request.path_params.values())}

        return tell

    for route in routes_with_ids():
        app.add_api_route(route.path, tells(route.path), methods=list(route.methods))
    return Caller(app)


def test_every_parameter_of_a_path_is_an_id():
    routes = routes_with_ids()
    assert len(routes) >= 5
    for route in routes:
        assert all(isinstance(kind, _IdConvertor) for kind in route.param_convertors.values()), route.path


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(id_=ids)
@example(id_="a/history")
@example(id_="a/similar")
@example(id_="/similar")
@example(id_="a%2Fhistory")
@example(id_="a/history/history")
@example(id_=" padded ")
@example(id_="..")
@example(id_="üñ/漢字?x#y%z")
@example(id_="\x00/\n")
def test_an_encoded_id_reaches_the_call_that_was_meant(client, id_):
    for route in routes_with_ids():
        url = route.path_format.format(item_id=_in_path(id_), user_id=_in_path(id_))
        for method in route.methods:
            answer = client.request(method, url)
            assert answer.json() == {"path": route.path, "ids": [id_]}, (method, url)


def test_a_plain_slash_divides_the_path_and_is_read_where_no_call_has_it(client):
    assert client.get("/v1/users/a/history").json()["path"] == "/v1/users/{user_id:id}/history"
    assert client.get("/v1/users/a/b").json() == {"path": "/v1/users/{user_id:id}", "ids": ["a/b"]}


def test_a_path_that_no_call_has_says_how_ids_are_written(client):
    for method, url, status in (
        ("GET", "/v1/items/a?b/similar", 405),
        ("POST", "/v1/users/a", 405),
        ("GET", "/v1/items/a%2Fsimilar", 405),
    ):
        answer = client.request(method, url)
        assert answer.status_code == status and answer.json()["detail"].endswith(HOW), url
    (told,) = client.get("/v1/users/a?b/history").json()["detail"]
    assert told["loc"] == ["query", "b/history"] and told["msg"].endswith(f"If it is of the id: {HOW}")
    answer = client.get("/v1/users/a%FF")
    assert answer.status_code == 422 and "no UTF-8" in answer.json()["detail"]
    assert client.get("/v1/nothing").json() == {"detail": "Not Found"}
