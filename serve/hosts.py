"""Which names a service without API keys answers to.

A page of another site can point its own name at 127.0.0.1 and let the visitor's browser ask a service there, as if that
service were the page's own site (DNS rebinding). Such a request carries the foreign name in its Host header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from serve.refusal import refuse

App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = ("/healthz", "/readyz")  # probes call the address of a machine; the answers hold nothing private


class Hosts:
    """The accepted names.

    Args:
        names: names or addresses without port, separated by commas, besides those of this machine; `*`: any.
    """

    def __init__(self, names: str):
        self._names = {_bare(name.strip()) for name in names.split(",") if name.strip()}

    def has(self, host: str) -> bool:
        """Whether this value of a Host header, with or without port, is accepted."""
        name = _bare(host)
        return "*" in self._names or name in self._names or is_this_machine(name)


def is_this_machine(name: str) -> bool:
    """Whether a name without port always means the machine that uses it: `localhost`, `*.localhost`, 127.0.0.0/8, ::1."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class HostCheck:
    """ASGI middleware that answers 421 to requests whose Host header is missing or not accepted."""

    def __init__(self, app: App, hosts: Hosts):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in PROBES or (found and all(self._hosts.has(host) for host in found)):
            await self._app(scope, receive, send)
            return
        told = ascii(found[0][:100]) if found else "none"
        detail = (
            f"the Host header is {told}; a service without API keys expects localhost, an address of this machine's own, "
            "or a name of the option hosts; set hosts=NAME, or API keys"
        )
        await refuse(send, 421, detail)


def _bare(host: str) -> str:
    """The name in a Host header, without port and final dot, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        address, _, port = host[1:].partition("]")
        return address if not port or port[0] == ":" else host
    name, colon, port = host.rpartition(":")
    if colon and ":" not in name and (port.isdigit() or not port):
        host = name
    return host.removesuffix(".")
