"""The client against a server on a real socket that fails as it is told; `test_serve.py` has it against the service."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from ctxrec import client as module
from ctxrec.client import ApiError, AsyncClient, Client, NoService, Recommendations, ScoredItem, request

ANSWER = {"items": [{"item_id": "a/b", "score": 1.5}], "model_version": "v", "fallback": False}


class Flaky:
    """A server that gives the prepared answers one after the other, and keeps what it was asked."""

    def __init__(self):
        self.answers: list[tuple[int | None, object, dict]] = []
        self.asked: list[tuple[str, str, object, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.command, self.path, json.loads(body) if body else None, dict(self.headers)))
                status, answer, headers = outer.answers.pop(0)
                if status is None:  # the connection breaks
                    self.close_connection = True
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *args) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def flaky(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
    server = Flaky()
    yield server
    server.stop()


def call(kind: str, url: str, method: str, *args, **fields):
    """A method of either client, with its last word."""
    options = {"key": "secret", "retries": 3}
    if kind == "sync":
        with Client(url, **options) as client:
            return getattr(client, method)(*args, **fields)

    async def run():
        async with AsyncClient(url, **options) as client:
            return await getattr(client, method)(*args, **fields)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_fails_for_a_while_is_repeated(flaky, kind):
    flaky.answers = [(503, {}, {"Retry-After": "1"}), (None, None, {}), (429, b"busy", {}), (200, ANSWER, {})]
    start = time.monotonic()
    found = call(kind, flaky.url, "recommend", "u", k=3, context={"device": "tv"}, exclude=("x",), filter={"c": ["y"]})
    assert found == Recommendations((ScoredItem("a/b", 1.5),), "v", False)
    assert time.monotonic() - start >= 1, "as long as the service asked for"
    body = {"user_id": "u", "k": 3, "context": {"device": "tv"}, "exclude": ["x"], "filter": {"c": ["y"]}}
    assert [asked[:3] for asked in flaky.asked] == [("POST", "/v1/recommend", body)] * 4
    assert flaky.asked[0][3]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_fails_for_good_is_not(flaky, kind):
    flaky.answers = [(422, {"detail": [{"loc": ["body", "k"]}]}, {})]
    with pytest.raises(ApiError) as caught:
        call(kind, flaky.url, "recommend", "u")
    assert caught.value.status == 422 and caught.value.detail == [{"loc": ["body", "k"]}]
    flaky.answers = [(503, {"detail": "busy"}, {})] * 4
    with pytest.raises(ApiError, match="503: busy"):
        call(kind, flaky.url, "model_version")
    flaky.answers = [(500, b"<html>", {})]
    with pytest.raises(ApiError, match="500: <html>"):
        call(kind, flaky.url, "model_version")
    assert len(flaky.asked) == 6
    flaky.stop()
    with pytest.raises(httpx.TransportError) as gone:
        call(kind, flaky.url, "model_version")
    assert isinstance(gone.value, NoService)
    assert str(gone.value).startswith(f"no service answers at {flaky.url} (tried 4 times: ")
    assert str(gone.value).endswith("start one with `serve run serve.app:build_app run=RUN`, or correct the address")


def test_repeated_events_say_the_same(flaky):
    began = time.time()
    flaky.answers = [(None, None, {}), (200, {"accepted": 2}, {})]
    assert (
        call(
            "sync",
            flaky.url,
            "add_events",
            [{"user_id": "u", "item_id": "i"}, {"user_id": "u", "item_id": "j", "timestamp": 5}],
        )
        == 2
    )
    first, second = (asked[2]["events"] for asked in flaky.asked)
    assert first == second and began - 1 <= first[0]["timestamp"] <= time.time() + 1 and first[1]["timestamp"] == 5


def test_what_the_service_warns_of_is_logged(flaky, caplog):
    warning = {"loc": ["body", "events", 0, "action"], "msg": "'veiw' is no action", "type": "unknown_action"}
    flaky.answers = [(200, {"accepted": 1, "warnings": [warning]}, {})]
    event = {"user_id": "u", "item_id": "i", "action": "veiw"}
    assert call("async", flaky.url, "add_events", [event]) == 1
    assert [record.getMessage() for record in caplog.records if record.name == "ctxrec.client"] == [
        "events.0.action: 'veiw' is no action"
    ]


def test_what_had_no_effect_is_part_of_the_answer(flaky):
    warning = {"loc": ["body", "query"], "msg": "it has no effect: no encoder", "type": "words_not_read"}
    answer = {"items": [{"item_id": "i", "score": 1.5}], "model_version": "v", "fallback": False}
    flaky.answers = [(200, {**answer, "warnings": [warning]}, {}), (200, answer, {})]
    assert call("sync", flaky.url, "recommend", "u", query="red").warnings == ("query: it has no effect: no encoder",)
    assert call("async", flaky.url, "recommend", "u").warnings == ()
    assert flaky.asked[0][2] == {"user_id": "u", "k": 10, "query": "red"}


def test_an_item_gone_at_the_second_try_was_removed_by_the_first(flaky):
    flaky.answers = [(None, None, {}), (404, {"detail": "no item"}, {}), (404, {"detail": "no item"}, {})]
    assert call("sync", flaky.url, "remove_item", "a/b") is True
    assert call("sync", flaky.url, "remove_item", "a/b") is False
    assert [asked[:2] for asked in flaky.asked] == [("DELETE", "/v1/items/a%2Fb")] * 3


def test_users_are_stored_told_and_taken_away(flaky, caplog):
    warning = {"loc": ["body", "users", 0, "gender"], "msg": "'X' is no value", "type": "unknown_value"}
    flaky.answers = [
        (200, {"accepted": 1, "warnings": [warning]}, {}),
        (200, {"user_id": "a/b", "attributes": {"gender": "X"}, "posted": True}, {}),
        (404, {"detail": "nothing is known"}, {}),
        (200, {"accepted": 1}, {}),
        (404, {"detail": "nothing is known"}, {}),
    ]
    assert call("sync", flaky.url, "put_users", [{"user_id": "a/b", "gender": "X"}]) == 1
    assert "users.0.gender: 'X' is no value" in caplog.text
    assert call("async", flaky.url, "user", "a/b") == {"gender": "X"}
    assert call("sync", flaky.url, "user", "a/b") is None
    assert call("async", flaky.url, "remove_user", "a/b") is True
    assert call("sync", flaky.url, "remove_user", "a/b") is False
    assert [asked[:2] for asked in flaky.asked] == [
        ("POST", "/v1/users"), *[("GET", "/v1/users/a%2Fb")] * 2, *[("DELETE", "/v1/users/a%2Fb")] * 2,
    ]  # fmt: skip


def test_a_request_holds_what_was_given():
    assert request("u") == {"user_id": "u", "k": 10}
    assert request("u", query="quiet sci-fi") == {"user_id": "u", "k": 10, "query": "quiet sci-fi"}
    assert request(history=[], allow=[]) == {"history": [], "allow": [], "k": 10}
