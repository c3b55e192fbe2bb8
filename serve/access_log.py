"""The access log: one JSON line for each request. It holds no user, no item, no address and no secret.

Routes stand as their templates (`/v1/items/{item_id}/similar`), as a path may hold an id; callers by the first
digits of their key's hash, never by address.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import queue
import re
import sys
import threading
from typing import Any, TextIO

from starlette.types import Scope

logger = logging.getLogger(__name__)

_SAFE_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
_AT_MOST = 100_000  # lines that wait for the disk; more are counted and left out


class AccessLog:
    """Writes lines in a thread of its own, so that no request waits for the disk.

    Args:
        where: a file, to which lines are appended (several processes may share it), or "-" for standard output.
    """

    def __init__(self, where: str):
        self._file: TextIO | None = None
        if where != "-":
            os.makedirs(os.path.dirname(where) or ".", exist_ok=True)
            self._file = open(where, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_AT_MOST)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def add(self, line: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write the queued lines."""
        self._lines.put(None)
        self._thread.join()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            stamp = datetime.datetime.fromtimestamp(line.pop("time"), datetime.UTC)
            if self._lost:
                line["lost"], self._lost = self._lost, 0
            text = json.dumps({"time": stamp.isoformat(timespec="milliseconds"), **line}, separators=(",", ":")) + "\n"
            try:
                file = self._file or sys.stdout
                file.write(text)  # one write a line: lines of several processes do not mix
                file.flush()
            except OSError as error:
                logger.warning("the access log cannot be written: %s", error)


def request_id(scope: Scope) -> str | None:
    """The request's X-Request-ID, which Ray Serve makes where a client sent none; None where it is not fit to print."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _SAFE_ID.fullmatch(text) else None
    return None
