"""Find quotation marks of a CSV that swallow rows: those that are never closed, or closed by a mark that begins a value.

A mark that swallows rows makes fewer rows than lines, which `LineCount` finds at little cost while the file is read. Only
a file with fewer rows than lines, as values of several lines make too, is read again (`check_quotes`): all marks of it at
once, and if these are not as RFC 4180 has them, mark by mark.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from ctxrec.core.errors import UserError

MOST_BYTES = 8 << 20  # of one quoted value
_PART_BYTES = 1 << 17  # of a block whose lines are counted at once, in the processor's cache

# A field is a quoted value up to a delimiter, a quoted value of one line with more text behind it (which Arrow takes as
# one value), or unquoted text. A mark that ends a value has no mark behind it, so there is one way to match. Possessive
# quantifiers would say the same, but Python below 3.11.5 matches them wrongly (gh-106052). The limit of fields at once
# is one of memory, as each keeps a place to go back to.
_FIELDS = (
    rb'(?:(?:"[^"]*(?:""[^"]*)*"(?=[,\r\n])|"[^"\r\n]*(?:""[^"\r\n]*)*"(?!")[^,\r\n]*|[^",\r\n][^,\r\n]*)?[,\r\n])'
)
_AT_ONCE = rb"{1,4096}"
_QUOTED = re.compile(rb'"[^"]*(?:""[^"]*)*"(?!")')


class LineCount:
    """A stream that passes on what it reads, and counts the lines that are not empty."""

    def __init__(self, stream: BinaryIO, *, delimiter: str = ",") -> None:
        self._stream, self._delimiter = stream, delimiter
        self._lines = 0  # that have ended
        self._last = b"\n"  # the last line that is not empty, with its end where it has one
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes."""
        block = self._stream.read(size)
        if len(block):
            self._lines += _line_ends(np.frombuffer(block, np.uint8), after_end=self._last.endswith(b"\n"))
            stop = len(block)
            while stop and block[stop - 1] in b"\r\n":
                stop -= 1
            start = block.rfind(b"\n", 0, stop) + 1
            self._last = block[start:] if start or (self._last.endswith(b"\n") and stop) else self._last + block
        return block

    def close(self) -> None:
        """Do nothing: whoever opened the stream closes it."""
        self.closed = True

    def may_hide_rows(self, rows: int) -> bool:
        """Whether a quotation mark may have swallowed rows of what was read.

        Args:
            rows: that a parser made of it, with the header and malformed ones.
        """
        if self._lines + (not self._last.endswith(b"\n")) != rows:
            return True
        try:
            check = QuoteCheck(io.BytesIO(self._last), "", delimiter=self._delimiter)
            while check.read():
                pass
        except UserError:  # a mark in the last line that is not closed swallows no row, but the end of the line
            return True
        return False


def _line_ends(block: np.ndarray, *, after_end: bool) -> int:
    """Ends of lines in a block (uint8 [N]) that do not follow another end; `after_end`: the byte before it is one."""
    count = 0
    for start in range(0, len(block), _PART_BYTES):
        ends = block[start : start + _PART_BYTES] == ord("\n")
        count += int(np.count_nonzero(ends)) - int(np.count_nonzero(ends[1:] & ends[:-1])) - int(after_end and ends[0])
        after_end = bool(ends[-1])
    return count


def check_quotes(opened: Callable[[], BinaryIO], path: str, *, delimiter: str = ",") -> None:
    """Look at every quotation mark of a CSV.

    Args:
        opened: gives its content as a new stream of bytes.
        path: for the message.
        delimiter: what divides the columns.

    Raises:
        UserError: one of them swallows rows; names its line.
    """
    with opened() as stream:
        if well_quoted(stream, delimiter=delimiter):
            return
    with opened() as stream:
        check = QuoteCheck(stream, path, delimiter=delimiter)
        while check.read(8 << 20):
            pass


def well_quoted(stream: BinaryIO, *, delimiter: str = ",") -> bool:
    """Whether all quotation marks of a CSV are as RFC 4180 has them, so that none swallows rows.

    Every mark but those written as two must then begin or end a value. Marks inside of unquoted text are not of that
    kind; whether they do harm `QuoteCheck` finds, which looks at each value and takes several times as long.
    """
    edges = np.zeros(256, bool)  # bytes that may stand before a mark that begins a value, and behind one that ends it
    edges[list(delimiter.encode() + b'\r\n"')] = True
    marks, before, rest = 0, b"\n", b""  # marks so far; the byte before `rest`, which has no byte behind it yet
    while True:
        block = bytes(stream.read(_PART_BYTES * 8))
        data = rest + (block or b"\n")
        if not marks and before == b"\n" and not rest:
            data = data.removeprefix(codecs.BOM_UTF8)
        signs = np.frombuffer(before + data, np.uint8)
        found = np.flatnonzero(signs[1:-1] == ord('"')) + 1
        begins = found[marks % 2 :: 2]
        ends = found[1 - marks % 2 :: 2]
        if not (edges[signs[begins - 1]].all() and edges[signs[ends + 1]].all()):
            return False
        marks += len(found)
        before, rest = signs[-2:-1].tobytes() or before, data[-1:]
        if not block:
            return marks % 2 == 0


class QuoteCheck:
    """A stream that passes on what it reads, and raises a `UserError` at a quotation mark that swallows rows."""

    def __init__(self, stream: BinaryIO, path: str, *, delimiter: str = ",") -> None:
        self._stream, self._path = stream, path
        self._delimiter = delimiter.encode()
        self._fields = re.compile(_FIELDS.replace(b",", re.escape(self._delimiter)) + _AT_ONCE)
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
        end = max(data.rfind(mark) for mark in (self._delimiter, b"\n", b"\r")) + 1
        if b'"' in data:
            end = 0
            while fields := self._fields.match(data, end):
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
