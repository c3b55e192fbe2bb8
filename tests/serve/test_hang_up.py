"""A call whose sender has gone is not computed: a real uvicorn, a real client that closes its connection."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import uvicorn
from starlette.requests import ClientDisconnect

from serve.http import while_connected
from serve.keys import Keys
from serve.micro_batching import MicroBatcher
from serve.port_guard import Port, guarded

PATIENCE_S = 60


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.attack
def test_what_nobody_waits_for_is_not_computed():
    """Three senders who had hung up made the next plain request wait 158 s, because their calls were computed first."""
    computed, gone, may_go_on = [], [], threading.Event()

    def compute(items: list[str]) -> list[str]:
        may_go_on.wait(PATIENCE_S)
        computed.extend(items)
        return items

    async def run() -> None:
        batches = MicroBatcher(compute, ThreadPoolExecutor(1), max_size=1)

        async def app(scope, receive, send) -> None:
            await receive()
            try:
                await while_connected(receive, batches.submit(scope["path"]))
            except ClientDisconnect:
                gone.append(scope["path"])
                return
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        config = uvicorn.Config(
            app, port=0, http=guarded(Port(keys=Keys({}))), interface="asgi3", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        server.capture_signals = nullcontext  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]

        async def ask(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            return reader, writer

        first = await ask("/first")  # it is being computed while the others come
        await until(lambda: batches._worker is not None and not batches._queue)
        heavy = [await ask(f"/heavy{n}") for n in range(3)]
        await until(lambda: len(batches._queue) == 3)
        plain = await ask("/plain")
        await until(lambda: len(batches._queue) == 4)
        for _, writer in heavy:
            writer.close()
        await until(lambda: len(gone) == 3)
        may_go_on.set()
        for reader, _ in (first, plain):
            assert b"200 OK" in await reader.read()
        assert computed == ["/first", "/plain"] and len(gone) == 3
        server.should_exit = True
        await serving

    asyncio.run(run())


def test_who_stays_is_answered_and_who_is_cancelled_is_cancelled():
    async def never() -> dict:
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def run() -> None:
        assert await while_connected(never, work()) == 7
        waiting = asyncio.ensure_future(while_connected(never, asyncio.sleep(PATIENCE_S)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 1, "nothing is left waiting for the client"

    asyncio.run(run())
