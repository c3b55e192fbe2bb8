"""Connections that ask for nothing: a real uvicorn with the guarded protocol, attacked through real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn

from serve.keys import Keys, parse_keys
from serve.port_guard import PROXY_ENVIRONMENT, Port, PortLimits, ProxyProtocol, guarded

pytestmark = pytest.mark.attack

SMALL = PortLimits(
    connections=8,
    head_bytes=4096,
    body_bytes=10_000,
    read_on_bytes=100_000,
    unfinished_bytes=25_000,
    head_s=60,
    body_s=60,
)
PATIENCE_S = 60


class Served:
    """A port, and what its application has seen."""

    def __init__(self, port: Port, number: int):
        self.port, self.number = port, number
        self.bodies: list[bytes] = []
        self.answer = b"{}"

    async def app(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if scope["path"] == "/early":
                more = False
        self.bodies.append(body)
        headers = [(b"content-length", str(len(self.answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.answer})

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.number)

    async def ask(self, sent: bytes) -> bytes:
        """All that comes back until the connection ends."""
        reader, writer = await self.open()
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await writer.drain()
        found = await ended(reader)
        writer.close()
        return found

    async def is_open_to_others(self) -> None:
        assert b"200 OK" in await self.ask(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            while part := await reader.read(65_536):
                found += part
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(limits: PortLimits = SMALL, keys: Keys | None = None) -> AsyncIterator[Served]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    served = Served(Port(limits, keys), listener.getsockname()[1])
    config = uvicorn.Config(
        served.app,
        http=guarded(served.port),
        interface="asgi3",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=PATIENCE_S,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        yield served
    finally:
        server.should_exit = True
        await running
        assert served.port.unfinished_bytes == 0 and not served.port._connections and not served.port._until


def head(length: int, path: str = "/", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def test_bodies_arrive_as_they_were_sent():
    async def run() -> None:
        async with serving() as served:
            whole = bytes(range(256)) * 39
            assert b"200 OK" in await served.ask(head(len(whole)) + whole)
            chunked = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            pieces = b"".join(
                b"%x\r\n%b\r\n" % (len(whole[n : n + 7]), whole[n : n + 7]) for n in range(0, len(whole), 7)
            )
            assert b"200 OK" in await served.ask(chunked + pieces + b"0\r\nTrailer: x\r\n\r\n")
            assert b"200 OK" in await served.ask(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            two = head(2).replace(b"Connection: close\r\n", b"") + b"ab" + head(3) + b"cde"
            assert (await served.ask(two)).count(b"200 OK") == 2
            reader, writer = await served.open()
            writer.write(head(4, more="Expect: 100-continue\r\n"))
            assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"wxyz")
            assert b"200 OK" in await ended(reader)
            assert served.bodies == [whole, whole, b"", b"ab", b"cde", b"wxyz"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 20_000,
        b"GET /" + b"a" * 200_000,
        b"\r\n" * 100_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"e" * 200_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: " + b"a" * 200_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"X-Y: z\r\n" * 20_000,
    ],
    ids=["header", "headers", "path", "empty lines", "chunk extension", "trailer", "trailers"],
)
def test_what_does_not_end_is_cut_off(sent):
    """One connection kept 500 MB of a header without an end; now at most 64 KiB and what one read brings."""

    async def run() -> None:
        async with serving() as served:
            reader, writer = await served.open()
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(sent), 2000):
                    writer.write(sent[start : start + 2000])
                    await writer.drain()
                    await asyncio.sleep(0)
            found = await ended(reader)
            assert not found or found.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), found
            await until(lambda: not served.port._connections)
            assert served.bodies == []
            await served.is_open_to_others()

    asyncio.run(run())


def test_bodies_beyond_the_limit_are_handed_on_as_one_byte_too_many():
    async def run() -> None:
        async with serving() as served:
            for size in (10_001, 90_000):  # read to the end, so that the sender sees the answer
                assert b"200 OK" in await served.ask(head(size) + b"x" * size)
            chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
            endless = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 100
            await served.ask(endless)
            await until(lambda: len(served.bodies) == 3)
            assert [len(body) for body in served.bodies] == [10_001] * 3

    asyncio.run(run())


def test_unfinished_bodies_reach_no_application_and_take_bounded_memory():
    """400 unfinished bodies took 405 MB, which were not given back."""

    async def run() -> None:
        async with serving() as served:
            opened = []
            for _ in range(6):
                opened.append(await served.open())
                writer = opened[-1][1]
                writer.write(head(9_000) + b"x" * 8_000)
                await writer.drain()
                await asyncio.sleep(0.05)
                assert served.port.unfinished_bytes <= SMALL.unfinished_bytes
            await until(lambda: len(served.port._connections) == 3)  # those that there is room for
            assert served.bodies == []
            assert b"200 OK" in await served.ask(head(9_000) + b"y" * 9_000)
            assert served.bodies == [b"y" * 9_000]

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Le", head(10) + b"x"])
def test_connections_that_wait_make_way_for_new_ones_and_end_at_their_deadline(sent):
    """4,000 half heads stayed open for ever."""

    async def run() -> None:
        async with serving() as served:
            opened = []
            for _ in range(40):
                opened.append(await served.open())
                writer = opened[-1][1]
                writer.write(sent)
                await writer.drain()
                await served.is_open_to_others()
                assert len(served.port._connections) <= SMALL.connections
        slow = dataclasses.replace(SMALL, head_s=0.2, body_s=0.2)
        async with serving(slow) as served:
            reader, writer = await served.open()
            writer.write(sent)
            found = await ended(reader)
            assert found.startswith(b"HTTP/1.1 408") if sent else not found
            assert not found or json.loads(found.partition(b"\r\n\r\n")[2])["detail"]

    asyncio.run(run())


def test_a_client_that_does_not_read_its_answer_is_cut_off():
    async def run() -> None:
        async with serving(dataclasses.replace(SMALL, unread_bytes=50_000_000, body_s=0.5, head_s=0.5)) as served:
            served.answer = b"x" * 20_000_000
            readers = [await served.open() for _ in range(5)]
            for _, writer in readers:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: len(served.bodies) == 5)
            await until(lambda: not served.port._connections)
            served.answer = b"{}"
            await served.is_open_to_others()

    asyncio.run(run())


def test_the_body_of_a_call_without_a_key_is_not_waited_for():
    async def run() -> None:
        async with serving(keys=Keys(parse_keys("secret"))) as served:
            reader, writer = await served.open()
            writer.write(head(9_000, "/early") + b"x")
            assert b"200 OK" in await ended(reader)  # this application answers without the rest
            reader, writer = await served.open()
            writer.write(head(9_000, more="X-API-Key: secret\r\n") + b"x" * 8_999)
            await until(lambda: served.port.unfinished_bytes == 8_999)
            assert len(served.bodies) == 1
            writer.write(b"x")
            assert b"200 OK" in await ended(reader)

    asyncio.run(run())


def test_a_proxy_of_ray_serve_gets_the_guard_where_its_environment_says_so(monkeypatch):
    from ray.serve._private.utils import call_function_from_import_path  # how a proxy calls it

    monkeypatch.setenv("CTXREC_API_KEYS", "secret")
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(ProxyProtocol, "port", ProxyProtocol.port)
    assert call_function_from_import_path(*PROXY_ENVIRONMENT.values()) == []
    config = uvicorn.Config(Served(ProxyProtocol.port, 0).app, log_config=None)
    config.load()
    assert config.http_protocol_class is ProxyProtocol
    assert ProxyProtocol.port.may_send([(b"x-api-key", b"secret")]) and not ProxyProtocol.port.may_send(
        [(b"x-api-key", b"x")]
    )
