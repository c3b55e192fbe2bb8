"""ASGI middleware of every request: host names, rate limits, CORS, security headers, metrics and the access log."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from serve.access_log import AccessLog, request_id
from serve.arguments import AppArgs
from serve.hosts import HostCheck, Hosts
from serve.keys import NO_KEY, Keys
from serve.limits import RateLimiter, address_of
from serve.refusal import refuse
from serve.service_metrics import Metrics

App = Callable[[Scope, Receive, Send], Awaitable[None]]

HUNG_UP = 499  # nginx's number for a client that went before its answer; it is no fault of the service
_API = ("/v1/", "/mcp")
_UNLIMITED = ("/healthz", "/readyz", "/metrics")  # a probe must not fail because of others
_MCP_HEADERS = ("Mcp-Protocol-Version", "Mcp-Method", "Mcp-Name")  # that clients of agents send
_CAUTION = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_PRIVATE = [*_CAUTION, (b"cache-control", b"no-store"), (b"content-security-policy", b"default-src 'none'")]
_OPEN = [header for header in _PRIVATE if header[0] != b"cross-origin-resource-policy"]

_current: EdgeState | None = None


class EdgeState:
    """Settings and counters of this process's middleware. `install` makes them once."""

    def __init__(self, args: AppArgs, keys: Keys, metrics: Metrics):
        self.metrics = metrics
        self.log = AccessLog(args.access_log) if args.access_log else None
        share = args.rate_limit / args.replicas  # requests are spread evenly over the replicas
        burst = max(args.rate_burst / args.replicas, 1)
        self.limiter = RateLimiter(share, burst) if args.rate_limit else None
        self.origins = [origin.strip() for origin in args.cors_origins.split(",") if origin.strip()]
        self.hosts = None if keys.are_asked_for else Hosts(args.hosts)
        self.keys, self._proxies = keys, args.trusted_proxies

    def caller(self, scope: Scope) -> str:
        """The caller that a rate limit counts: a valid key, or else an address."""
        return self.key(scope) or address_of(scope, self._proxies)

    def key(self, scope: Scope) -> str | None:
        """The start of the hash of the valid key that was sent."""
        if not self.keys.are_asked_for:
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        digest = self.keys.valid(headers)
        return None if digest is None else f"key:{digest[:8]}"

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def install(args: AppArgs, keys: Keys, metrics: Metrics) -> EdgeState:
    """Make the state that `Edge` reads in this process. It lies in this module, because Serve copies the app but
    not its modules."""
    global _current
    _current = EdgeState(args, keys, metrics)
    return _current


def charge(scope: Scope, requests: int) -> None:
    """Count a call as so many requests against its caller's limit."""
    if _current is not None and _current.limiter is not None and requests > 1:
        _current.limiter.charge(_current.caller(scope), requests - 1)


class Edge:
    """The outermost ASGI middleware."""

    def __init__(self, app: App):
        self._app = app
        self._limited: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = _current
        if scope["type"] != "http" or state is None:
            await self._app(scope, receive, send)
            return
        if self._limited is None:
            limited = _with_cors(_Limited(_Keyed(self._app)), state.origins)
            self._limited = limited if state.hosts is None else HostCheck(limited, state.hosts)
        extra = _OPEN if state.origins else _PRIVATE
        start, status, size = time.perf_counter(), 0, 0
        is_api = path_within(scope).startswith(_API)

        async def received() -> Message:
            try:
                return await receive()
            except RayError:  # Serve's proxy has taken the request back, and the call that fetches its messages too
                return {"type": "http.disconnect"}

        async def watched(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *(extra if is_api else _CAUTION)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._limited(scope, received, watched)
        except ClientDisconnect:
            pass  # there is nobody to answer
        except asyncio.CancelledError:  # Serve's proxy takes a request back when its client hangs up
            raise
        except Exception:
            status = status or 500
            raise
        finally:
            status = status or HUNG_UP
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            state.metrics.requests.labels(route, str(status)).inc()
            state.metrics.request_seconds.labels(route).observe(seconds)
            if state.log is not None:
                state.log.add(_line(scope, state, route, status, seconds, size))


class _Limited:
    """Answers 429 to callers that ask faster than they may."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = _current
        if state is None or state.limiter is None or path_within(scope) in _UNLIMITED:
            await self._app(scope, receive, send)
            return
        wait_s = state.limiter.take(state.caller(scope))
        if not wait_s:
            await self._app(scope, receive, send)
            return
        wait = (b"retry-after", str(max(math.ceil(wait_s), 1)).encode())
        await refuse(send, 429, "too many requests from this caller; see Retry-After", wait)


class _Keyed:
    """Answers 401 to calls with a body and without a valid key, before the body is read; routes check what a key may do."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = _current
        has_no_body = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if state is None or has_no_body or not state.keys.are_asked_for or state.key(scope) is not None:
            await self._app(scope, receive, send)
            return
        await refuse(send, 401, NO_KEY, (b"www-authenticate", b"Bearer"))


def path_within(scope: Scope) -> str:
    """The path within the application."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _with_cors(app: App, origins: list[str]) -> App:
    """Lets pages of these origins ask; keys travel in headers, so no cookies are let through."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", *_MCP_HEADERS],
        expose_headers=["Retry-After", "X-Request-ID"],
        max_age=600,
    )


def _line(scope: Scope, state: EdgeState, route: str, status: int, seconds: float, size: int) -> dict[str, Any]:
    return {
        "time": time.time(),
        "request_id": request_id(scope),
        "method": scope["method"],
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 2),
        "bytes": size,
        "key": state.key(scope),
    }
