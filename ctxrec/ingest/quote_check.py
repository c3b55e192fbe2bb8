"""Find quotation marks of a CSV that swallow rows: those that are never closed, or closed by a mark that begins a value."""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

from ctxrec.core.errors import UserError

MOST_BYTES = 8 << 20  # of one quoted value

# A field is a quoted value up to a delimiter, a quoted value of one line with more text behind it (which Arrow takes as
# one value), or unquoted text.
_FIELDS = re.compile(
    rb'(?:(?:"(?:[^"]++|"")*+"(?=[,\r\n])|"(?:[^"\r\n]++|"")*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+)?+[,\r\n])*+'
)
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+"')


class QuoteCheck:
    """A stream that passes on what it reads, and raises a `UserError` at a quotation mark that swallows rows."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream, self._path = stream, path
        self._rest = b""  # the field that is not complete yet
        self._line = 1  # where it begins
        self._begun = False
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes.

        Raises:
            UserError: names the line in which the quoted value begins.
        """
        block = bytes(self._stream.read(size))
        data = block if self._begun else block.removeprefix(codecs.BOM_UTF8)
        self._begun = True
        if block:
            self._look(data)
        elif self._rest.startswith(b'"') and not _QUOTED.match(self._rest):
            raise self._mistake("is not closed")
        return block

    def close(self) -> None:
        """Do nothing: whoever opened the stream closes it."""
        self.closed = True

    def _look(self, block: bytes) -> None:
        data = self._rest + block
        end = max(data.rfind(mark) for mark in (b",", b"\n", b"\r")) + 1
        if b'"' in data:
            fields = _FIELDS.match(data)
            assert fields is not None, "the pattern matches nothing at least"
            end = fields.end()
        self._line += data.count(b"\n", 0, end)
        self._rest = data[end:]
        if not self._rest.startswith(b'"'):
            self._rest = self._rest[:1]  # unquoted text: what follows does not depend on it
            return
        quoted = _QUOTED.match(self._rest)
        if quoted and b"\n" in quoted[0] and len(quoted[0]) < len(self._rest):
            raise self._mistake("is closed by a mark with a value behind it, some lines later")
        if not quoted and len(self._rest) > MOST_BYTES:
            raise self._mistake(f"is not closed within {MOST_BYTES >> 20} MiB")

    def _mistake(self, what: str) -> UserError:
        text = self._rest[:40].decode("utf-8", "replace").splitlines()[0]
        return UserError(
            f"{self._path}: the quotation mark before {text[1:]!r} in line {self._line} (row {self._line - 1}) {what}. "
            "Close it, remove it, or write it as two marks inside of a quoted value"
        )
