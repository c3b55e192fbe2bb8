"""What a connection may take of a port before it has asked for anything: bounds of bytes, of time and of number.

uvicorn waits for ever for the rest of a head or a body, reads heads of any length, and keeps any number of connections.
The protocol of this module replaces the one of uvicorn at both ports: `DirectServer` uses it in replicas, and Ray Serve's
proxy calls `guard_proxy`, where the environment of the proxy says so (`PROXY_ENVIRONMENT`).

An application sees a request when its body is whole, so nobody occupies a replica with a body that does not end. A call
without a valid key is handed on at once, and is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ctxrec.core.errors import UserError
from serve.api import MAX_BODY_BYTES
from serve.keys import Keys, keys_from_environment

logger = logging.getLogger(__name__)

PROXY_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.port_guard.guard_proxy"}
CONTROLLER_OPTIONS = {
    "runtime_env": {"env_vars": PROXY_ENVIRONMENT}
}  # the controller's proxies inherit its environment
# Serve kills a proxy that is not ready at the third look, 5 s after each other, and then does not start. A proxy's imports
# take longer than that where other programs hold all cores, as Ray's workers are below them in priority.
_PATIENCE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60"

_LOOK_S = 0.5  # between looks at deadlines
_KEY_HEADERS = (b"authorization", b"x-api-key")


def set_proxy_environment() -> None:
    """Prepare this process to start a Ray whose proxies are guarded, and have time to start unless the user set it."""
    os.environ.setdefault(*_PATIENCE)
    os.environ.update(PROXY_ENVIRONMENT)


@dataclass(frozen=True)
class PortLimits:
    """Bounds of one port of one process.

    Attributes:
        connections: open at once; beyond that the one that has waited longest for its client is closed.
        head_bytes: of a head, and of whatever else comes without a piece of a body.
        body_bytes: of a body that is kept; one byte more is handed on, so that the application refuses it.
        read_on_bytes: of a body that is read without being kept, so that its sender sees the refusal.
        unfinished_bytes: of all bodies that have not ended; beyond that the oldest is given up.
        unread_bytes: of all answers that their clients have not read.
        head_s: seconds from the connection, or the first byte, to the end of the head.
        body_s: seconds from the head to the end of the body, and for reading an answer.
    """

    connections: int = 1024
    head_bytes: int = 64 << 10
    body_bytes: int = MAX_BODY_BYTES
    read_on_bytes: int = 16 << 20
    unfinished_bytes: int = 64 << 20
    unread_bytes: int = 256 << 20
    head_s: float = 10
    body_s: float = 30


class Port:
    """What the connections of a port share.

    Args:
        limits: of this port.
        keys: that calls must have; None where they are not known.
    """

    def __init__(self, limits: PortLimits | None = None, keys: Keys | None = None):
        self.limits = limits or PortLimits()
        self.unfinished_bytes = 0
        self._keys = keys
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(self.limits.connections, files // 2)
        self._connections: set[GuardedProtocol] = set()
        self._until: dict[GuardedProtocol, float] = {}  # what its client owes is due then; the oldest first
        self._closed: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: GuardedProtocol) -> bool:
        """Whether there is room for a connection, which is made by closing the one that has waited longest."""
        if len(self._connections) >= self._most:
            oldest = next(iter(self._until), None)
            if oldest is None:
                self._closed["refused, as all others were being answered"] += 1
                return False
            oldest.give_up(503, "too many connections; try again", "made way for another one")
        self._connections.add(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(_LOOK_S, self._look, connection.loop)
        return True

    def leave(self, connection: GuardedProtocol) -> None:
        self._connections.discard(connection)
        self._until.pop(connection, None)

    def wait(self, connection: GuardedProtocol, seconds: float) -> None:
        """The client owes the rest of a head, of a body, or the reading of an answer, within `seconds` seconds."""
        if connection in self._connections:
            self._until.pop(connection, None)
            self._until[connection] = connection.loop.time() + seconds

    def owes_nothing(self, connection: GuardedProtocol) -> None:
        self._until.pop(connection, None)

    def keep(self, num_bytes: int) -> None:
        """Count bytes of a body that has not ended; those of the oldest such body are given up where they are too many."""
        self.unfinished_bytes += num_bytes
        while self.unfinished_bytes > self.limits.unfinished_bytes:
            oldest = next((one for one in self._until if one.kept_bytes), None)
            if oldest is None:
                break
            oldest.give_up(503, "too many bodies have not ended; try again", "made way for other bodies")

    def may_send(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a body is worth reading: keys are not asked for, or a valid one was sent."""
        if self._keys is None or not self._keys.are_asked_for:
            return True
        found = {name.decode(): value.decode("latin-1") for name, value in headers if name in _KEY_HEADERS}
        return self._keys.valid(found) is not None

    def note(self, why: str) -> None:
        self._closed[why] += 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is due, and answers that are not read where they are too large in all."""
        now = loop.time()
        for connection, until in list(self._until.items()):
            if now >= until:
                connection.give_up(408, "the request did not end in time", "too slow")
        unread = [(size, one) for one in self._connections if (size := one.unread_bytes())]
        total = sum(size for size, _ in unread)
        for size, connection in sorted(unread, key=lambda pair: pair[0], reverse=True):
            if total <= self.limits.unread_bytes:
                break
            connection.give_up(503, "", "did not read its answer")
            total -= size
        if self._closed:
            said = ", ".join(f"{count} {why}" for why, count in self._closed.items())
            logger.warning("connections closed before an answer: %s", said)
            self._closed.clear()
        self._timer = loop.call_later(_LOOK_S, self._look, loop) if self._connections else None


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with the bounds of a `Port`; the connections of one class share one."""

    port: Port

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.kept_bytes = 0  # of a body that has not ended
        self._body_bytes = 0  # of this body, kept or not
        self._idle_bytes = 0  # that came since the last piece of a body, or the last end of a head or a message
        self._went_on = False
        self._is_head = True
        self._is_begun = False
        self._held: tuple[RequestResponseCycle, Any] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.port.enter(self):
            self.port.wait(self, self.port.limits.head_s)
        else:
            self._write(503, "too many connections; try again")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_body()
        self._held = None
        self.port.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._went_on = False
        super().data_received(data)
        self._idle_bytes = 0 if self._went_on else self._idle_bytes + len(data)
        if self._idle_bytes > self.port.limits.head_bytes:
            detail = f"the head, or what stands between the pieces of the body, has more than {self.port.limits.head_bytes} bytes"
            self.give_up(431, detail, "sent too long a head")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_head = self._is_begun = True
        self._body_bytes = 0
        if self.cycle is None or self.cycle.response_complete:
            self.port.wait(self, self.port.limits.head_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head:  # else a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._went_on = True
        self._is_head = False
        super().on_headers_complete()
        if self._is_begun and not self.cycle.response_complete:
            self.port.wait(self, self.port.limits.body_s)

    def on_body(self, body: bytes) -> None:
        self._went_on = True
        limits = self.port.limits
        if self.cycle.response_complete or self.transport.is_closing() or self._body_bytes > limits.read_on_bytes:
            return
        room = max(limits.body_bytes + 1 - self._body_bytes, 0)
        self._body_bytes += len(body)
        if kept := body[:room]:
            super().on_body(kept)
            self.kept_bytes += len(kept)
            self.port.keep(len(kept))
        if self._held is not None and self._held[0] is self.cycle:
            self.flow.resume_reading()
        if self._body_bytes > limits.read_on_bytes:  # it is refused now, whatever else its client sends
            self.cycle.keep_alive = False
            self._end_message()

    def on_message_complete(self) -> None:
        self._went_on = True
        self._end_message()

    def _end_message(self) -> None:
        super().on_message_complete()
        self._is_begun = False
        self._forget_body()
        if not self.cycle.response_complete:
            self.port.owes_nothing(self)
        held, self._held = self._held, None
        if held is not None and not self.transport.is_closing():
            super()._start_asgi_task(*held)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Hold a request back until its body is whole."""
        if not (cycle is self.cycle and cycle.more_body and self.port.may_send(self.headers)):
            super()._start_asgi_task(cycle, app)
            return
        self._held = (cycle, app)
        self.flow.resume_reading()
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            limits = self.port.limits
            idle_s = self.timeout_keep_alive + limits.head_s
            self.port.wait(self, max(idle_s, limits.body_s) if self.unread_bytes() else idle_s)

    def shutdown(self) -> None:
        super().shutdown()
        if self._held is not None:  # a body that is on its way has a moment left
            self.port.wait(self, _LOOK_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.port.wait(self, self.port.limits.body_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._is_begun and self.cycle is not None and not self.cycle.response_complete:
            self.port.owes_nothing(self)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # the service has no web sockets, and they would leave this protocol

    def unread_bytes(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def give_up(self, status: int, detail: str, why: str) -> None:
        """Close the connection; a request that began and has no answer yet is told why."""
        self.port.note(why)
        answered = self.cycle is None or self.cycle.response_complete
        if self.unread_bytes() or self.transport.is_closing():
            self.transport.abort()
        else:
            if self._is_begun and (answered if self._is_head else not self.cycle.response_started):
                self._write(status, detail)
            self.transport.close()
        self._forget_body()
        self._held = None
        self.port.leave(self)

    def _write(self, status: int, detail: str) -> None:
        body = json.dumps({"detail": detail}).encode()
        more = b"retry-after: 1\r\n" if status == 503 else b""
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + more + head + body)

    def _forget_body(self) -> None:
        self.port.unfinished_bytes -= self.kept_bytes
        self.kept_bytes = 0


def guarded(port: Port) -> type[GuardedProtocol]:
    """The protocol of a port, for `uvicorn.Config(http=...)`."""
    return type("GuardedProtocol", (GuardedProtocol,), {"port": port})


class ProxyProtocol(GuardedProtocol):
    """The protocol of Ray Serve's proxy in this process."""

    port = Port()


def guard_proxy() -> list[Middleware]:
    """Let uvicorn in this process, a proxy of Ray Serve, use `ProxyProtocol`; Ray Serve calls it before the port opens.

    Returns:
        No middleware, which is what Ray Serve asks for.
    """
    try:
        keys: Keys | None = Keys(keys_from_environment())
    except UserError as error:  # it does not matter much: replicas check every key
        logger.warning("keys are not known to the proxy: %s", error)
        keys = None
    ProxyProtocol.port = Port(keys=keys)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{ProxyProtocol.__name__}"
    return []
