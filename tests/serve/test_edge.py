"""Limits, access log and keys of files, without a service."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client import values
from ray.exceptions import TaskCancelledError

from ctxrec.core.errors import UserError
from serve import edge
from serve.access_log import AccessLog, request_id
from serve.arguments import AppArgs
from serve.hosts import Hosts
from serve.http import BodyLimit, Head
from serve.keys import ADMIN, READ, WRITE, Keys, keys_from_environment, parse_keys
from serve.limits import RateLimiter, address_of
from serve.service_metrics import Metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_at_its_rate_up_to_its_burst():
    clock = Clock()
    limiter = RateLimiter(2, 3, clock=clock)
    assert [limiter.take("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.take("a") == pytest.approx(0.5) and limiter.take("a") == pytest.approx(0.5), (
        "a refusal costs nothing"
    )
    assert limiter.take("b") == 0, "each caller has a bucket"
    clock.now += 0.5
    assert limiter.take("a") == 0 and limiter.take("a") == pytest.approx(0.5)
    clock.now += 1000
    assert [bool(limiter.take("a")) for _ in range(4)] == [False, False, False, True]


def test_what_a_list_costs_is_waited_for_afterwards():
    clock = Clock()
    limiter = RateLimiter(10, 5, clock=clock)
    assert limiter.take("a") == 0
    limiter.charge("a", 104)  # 105 in all, of which 5 were there
    assert limiter.take("a") == pytest.approx(10.1)
    clock.now += 10.1
    assert limiter.take("a") == 0


def test_a_crowd_of_callers_takes_bounded_memory():
    clock = Clock()
    limiter = RateLimiter(1, 1, clock=clock)
    limiter.charge("greedy", 10_000)
    for n in range(120_000):
        limiter.take(f"address {n}")
        clock.now += 1e-6
    assert len(limiter._full_at) <= 50_001
    assert limiter.take("greedy") > 9000, "those that have asked most are remembered"


@pytest.mark.parametrize(
    ("forwarded", "proxies", "wanted"),
    [
        ([], 0, "10.0.0.1"), ([], 1, "10.0.0.1"), ([b"1.1.1.1"], 0, "10.0.0.1"),
        ([b"1.1.1.1, 2.2.2.2"], 1, "2.2.2.2"), ([b"1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        ([b"1.1.1.1", b"2.2.2.2"], 1, "2.2.2.2"), ([b"1.1.1.1"], 3, "1.1.1.1"), ([b" , "], 1, "10.0.0.1"),
    ],
)  # fmt: skip
def test_addresses_behind_proxies(forwarded, proxies, wanted):
    scope = {"client": ("10.0.0.1", 5), "headers": [(b"x-forwarded-for", value) for value in forwarded]}
    assert address_of(scope, proxies) == wanted


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("localhost:8000", True), ("app.localhost:1", True), ("127.0.0.1:8000", True),
        ("127.9.9.9", True), ("[::1]:8000", True), ("::1", True), ("shop.example:8000", True), ("10.1.2.3:80", True),
        ("evil.example", False), ("localhost.evil.example", False), ("evil.example:8000", False), ("127.0.0.1.evil.example", False),
        ("10.1.2.4", False), ("[2001:db8::1]:80", False), ("", False), (":8000", False), ("127.0.0.1@evil.example", False),
        ("localhost:x", False), ("notlocalhost", False), ("[::1].evil.example", False), ("[::1", True), ("127.1", False),
    ],
)  # fmt: skip
def test_names_that_are_answered_without_keys(host, wanted):
    assert Hosts("Shop.example , 10.1.2.3").has(host) is wanted
    assert Hosts("*").has(host)


def test_log_lines_are_whole_and_ids_are_fit_to_print(tmp_path):
    path = tmp_path / "deep" / "access.jsonl"
    for part in range(2):
        log = AccessLog(str(path))
        for n in range(100):
            log.add({"time": 1_700_000_000.25, "n": 100 * part + n})
        log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(200))
    assert lines[0]["time"] == "2023-11-14T22:13:20.250+00:00"
    for sent, wanted in ((b"a-b_c:1", "a-b_c:1"), (b'x"y', None), (b"x" * 129, None), (b"\xff", None), (b"a b", None)):
        assert request_id({"headers": [(b"x-request-id", sent)]}) == wanted
    assert request_id({"headers": []}) is None


def test_keys_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("# of the shop\nread@one   # the web site\nadmin@two\n")
    monkeypatch.setenv("CTXREC_API_KEYS_FILE", str(path))
    monkeypatch.setenv("CTXREC_API_KEYS", "write@one")
    scopes = keys_from_environment()
    keys = Keys(scopes)
    assert keys.are_asked_for and sorted(map(sorted, scopes.values())) == [[ADMIN, READ, WRITE], [READ, WRITE]]
    assert keys.valid({"x-api-key": "two"}) and not keys.valid({"x-api-key": "web"}) and not keys.valid({})
    path.write_text("# nothing yet\n")
    with pytest.raises(UserError, match="has no key"):
        keys_from_environment()
    path.write_text("reed@secret")
    with pytest.raises(UserError, match=r"entry 1 of .*keys is no key") as caught:
        keys_from_environment()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("CTXREC_API_KEYS_FILE", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="cannot be read"):
        keys_from_environment()


@pytest.fixture
def metered(tmp_path, monkeypatch):
    """An installed edge without keys; its counts."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(edge, "_current", None)
    metrics = Metrics(str(tmp_path))
    edge.install(AppArgs(run="r"), Keys(parse_keys("")), metrics)
    yield metrics
    metrics.close()


@pytest.mark.parametrize(
    ("headers", "status"), [([], 401), ([(b"x-api-key", b"wrong")], 401), ([(b"x-api-key", b"right")], 204)]
)
def test_a_call_without_a_valid_key_is_refused_before_its_body_is_read(tmp_path, monkeypatch, headers, status):
    """Bodies of callers without a key were read, and 400 unfinished ones kept 405 MB."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(edge, "_current", None)
    metrics = Metrics(str(tmp_path))
    edge.install(AppArgs(run="r"), Keys(parse_keys("right")), metrics)
    read, sent = [], []

    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> dict:
        read.append(1)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/events", "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(edge.Edge(app)(scope, receive, send))
    metrics.close()
    assert sent[0]["status"] == status and len(read) == (status == 204)


def test_a_request_that_serves_proxy_takes_back_is_a_hang_up(metered):
    """Where Ray cancels the call that fetches the body before the request itself, `receive` raises Ray's error."""

    async def receive() -> dict:
        raise TaskCancelledError

    app = BodyLimit(None, max_bytes=10)
    scope = {"type": "http", "method": "POST", "path": "/v1/events", "headers": [(b"host", b"localhost")]}
    asyncio.run(edge.Edge(app)(scope, receive, None))
    [sample] = [one for one in metered.requests.collect()[0].samples if one.name.endswith("_total")]
    assert sample.labels["status"] == str(edge.HUNG_UP) and sample.value == 1


def test_head_is_answered_as_get_and_the_server_still_sees_head():
    """Uvicorn looks at its own scope while it sends: with GET there it would miss the body that HEAD leaves out."""
    scope = {"type": "http", "method": "HEAD"}
    sent = []

    async def app(asked, receive, send):
        assert asked["method"] == "GET"
        asked["route"] = "/healthz"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message):
        sent.append((scope["method"], message))

    asyncio.run(Head(app)(scope, None, send))
    assert [method for method, _ in sent] == ["HEAD", "HEAD"]
    assert sent[0][1]["headers"] == [(b"content-length", b"2")] and sent[1][1]["body"] == b""
    assert scope == {"type": "http", "method": "HEAD", "route": "/healthz"}
