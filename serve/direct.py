"""HTTP requests straight to a replica, which saves the hop through Serve's proxy.

Serve's proxy costs more time than the answer itself. All replicas of a machine therefore listen at one port, and the
kernel spreads new connections over them. A replica that is starting or stopping does not listen. Serve still checks the
health of the replicas. Requests at this port pass the same routes, keys, limits and counts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import ray
import ray.serve
import uvicorn
from starlette.types import Receive, Scope, Send

from ctxrec.core.errors import UserError
from serve import ports
from serve.keys import Keys
from serve.port_guard import Port, guarded

logger = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]

_GRACE_S = 10  # for requests in flight when the replica stops
_LOOK_S = 0.01
_REQUEST_ID = b"x-request-id"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are Ray's to handle


class DirectServer:
    """Serves `app` at a port from the event loop of its caller; logs a warning if the port is not available."""

    def __init__(self, app: App, host: str, port: int, keys: Keys):
        self._claim = _claim(port)
        self._task: asyncio.Task | None = None
        if self._claim is None:
            logger.warning("port %d belongs to another service: requests come through Serve's proxy alone", port)
            return
        try:
            listener = ports.listener(host, port, shared=True)
        except OSError as error:
            logger.warning("no requests straight to this replica at %s:%d: %s", host, port, error)
            self._claim.close()
            return
        options: dict[str, Any] = {
            "http": guarded(Port(keys=keys)),
            "lifespan": "off",
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "proxy_headers": False,
        }
        config = uvicorn.Config(
            _with_request_id(app), interface="asgi3", timeout_graceful_shutdown=_GRACE_S, server_header=False, **options
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        while ray.serve.get_replica_context().servable_object is None:  # routes find the replica by it
            await asyncio.sleep(_LOOK_S)
        await self._server.serve(sockets=[listener])

    async def stop(self) -> None:
        """Take no more connections and finish what is in flight."""
        if self._task is None or self._claim is None:
            return
        self._server.should_exit = True
        await self._task
        self._claim.close()


def _claim(port: int) -> IO[str] | None:
    """Claim the right to share a port with the other replicas of this application. It is held while the file is open."""
    owner = f"{ray.get_runtime_context().gcs_address} {ray.serve.get_replica_context().app_name}"
    try:
        return ports.claim(port, owner)
    except (OSError, UserError) as error:
        logger.warning("port %d cannot be claimed: %s", port, error)
        return None


def _with_request_id(app: App) -> App:
    """Wrap `app` so that each request without an X-Request-ID gets one, as Serve's proxy does."""

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not any(name == _REQUEST_ID for name, _ in scope["headers"]):
            scope["headers"] = [*scope["headers"], (_REQUEST_ID, uuid.uuid4().hex.encode())]
        await app(scope, receive, send)

    return named
