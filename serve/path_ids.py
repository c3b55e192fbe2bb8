"""Ids in paths of calls: an encoded slash belongs to the id, and a plain one divides the path.

Servers hand on a path that is decoded, where `/v1/users/a%2Fhistory` (the user "a/history") and `/v1/users/a/history` (the
history of the user "a") are one. `RawPaths` decodes the path anew, piece by piece, and a parameter `{user_id:id}` of a
route reads its pieces. An id with a plain slash is read too, where no other call has that path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from serve.refusal import refuse

App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/v1/"
HOW = "an id in a path is percent-encoded: / is %2F, ? is %3F, # is %23, % is %25"
_SLASH = "\ud800"  # of an id, on its way through the router; no path of UTF-8 has this character


class _IdConvertor(Convertor[str]):
    """A parameter of a path that is an id, with any characters."""

    regex = "(?s:.*)"  # line breaks too

    def convert(self, value: str) -> str:
        return value.replace(_SLASH, "/")

    def to_string(self, value: str) -> str:
        return value.replace("/", _SLASH)


register_url_convertor("id", _IdConvertor())


class RawPaths:
    """ASGI middleware that lets routes of the API tell an encoded slash from a plain one; a path of other bytes than UTF-8
    is a 422."""

    def __init__(self, app: Any):
        self._app: App = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if scope["type"] != "http" or b"%" not in raw or API not in scope["path"]:
            await self._app(scope, receive, send)
            return
        try:
            pieces = [unquote_to_bytes(piece).decode() for piece in raw.split(b"?")[0].split(b"/")]
        except UnicodeDecodeError as error:
            what = f"the path has bytes that are no UTF-8 ({error.object[error.start : error.end]!r}); {HOW}"
            await refuse(send, 422, what)
            return
        if "/".join(pieces) != scope["path"]:  # a server in between has changed one of the two
            await self._app(scope, receive, send)
            return
        # A copy, as the server looks at its own while it sends.
        routed = {**scope, "path": "/".join(piece.replace("/", _SLASH) for piece in pieces)}
        try:
            await self._app(routed, receive, send)
        finally:
            scope.update(routed, path=scope["path"])  # the router leaves the route there, for what is counted
