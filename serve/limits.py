"""How fast one caller may ask: a bucket of tokens for each API key, or for each address without keys."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import Scope

_REMEMBERED = 50_000  # callers, beyond which those with a full bucket are forgotten


class RateLimiter:
    """Token buckets by caller, each kept as the one moment at which it will be full again (GCRA, ITU-T I.371).

    Args:
        rate: requests a second that a caller may keep up.
        burst: requests that a caller may make at once after a while of silence.
        clock: seconds; rises.
    """

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic):
        self._interval_s = 1 / rate
        self._slack_s = burst / rate
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, caller: str) -> float:
        """Take the token of one request. Returns 0, or the seconds until there is a token."""
        now = self._clock()
        full_at = max(self._full_at.get(caller, now), now) + self._interval_s
        wait_s = full_at - now - self._slack_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at[caller] = full_at
        if len(self._full_at) > _REMEMBERED:
            self._forget(now)
        return 0.0

    def charge(self, caller: str, requests: int) -> None:
        """Take the tokens of requests that were already admitted; later requests wait for missing tokens."""
        now = self._clock()
        self._full_at[caller] = max(self._full_at.get(caller, now), now) + requests * self._interval_s

    def _forget(self, now: float) -> None:
        """Drop full buckets. Where hardly any is full, drop the half that is nearest to being full."""
        kept = {caller: at for caller, at in self._full_at.items() if at > now}
        if len(kept) > _REMEMBERED // 2:
            kept = dict(sorted(kept.items(), key=lambda pair: pair[1])[-_REMEMBERED // 2 :])
        self._full_at = kept


def address_of(scope: Scope, proxies: int) -> str:
    """The address of the client, as the outermost of so many trusted proxies reports it. Without proxies it is
    the connection's own.

    Entries further to the left in X-Forwarded-For come from the client and are not trusted.
    """
    client = scope.get("client")
    own = client[0] if client else "unknown"
    if not proxies:
        return own
    values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hops = [hop.strip() for hop in b",".join(values).decode("latin-1").split(",") if hop.strip()]
    return hops[-min(proxies, len(hops))] if hops else own
