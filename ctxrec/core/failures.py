"""Failures of the machine that an operator can remedy, as one line: what happened, where, and what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from safetensors import SafetensorError

_AGAIN = "and run the command again"


@dataclass(frozen=True)
class _Kind:
    """One kind of failure: how the system numbers it and says it, and what an operator can do."""

    what: str
    numbers: tuple[int, ...]
    said: str  # regular expression
    remedy: str


_KINDS = [
    _Kind(
        "no space is left",
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        r"No space left on device|Disk quota exceeded|File too large|OutOfDiskError|\d+ requested and \d+ written",
        f"free some space, or write to another folder, {_AGAIN}",
    ),
    _Kind(
        "permission is denied",
        (errno.EACCES, errno.EPERM),
        r"Permission denied|Operation not permitted",
        f"give this user access, or take another folder, {_AGAIN}",
    ),
    _Kind(
        "the file system is read-only",
        (errno.EROFS,),
        r"Read-only file system",
        f"take another folder, {_AGAIN}",
    ),
    _Kind(
        "a file stands where a folder is needed",
        (errno.ENOTDIR, errno.EEXIST),
        r"Not a directory|File exists",
        f"move the file away, or take another folder, {_AGAIN}",
    ),
    _Kind(
        "a folder stands where a file is needed",
        (errno.EISDIR,),
        r"Is a directory",
        f"move the folder away, or take another name, {_AGAIN}",
    ),
    _Kind(
        "the name is too long",
        (errno.ENAMETOOLONG,),
        r"File name too long",
        f"take a shorter name, {_AGAIN}",
    ),
    _Kind(
        "a file has gone while it was needed",
        (errno.ENOENT,),
        r"No such file or directory",
        f"bring it back, leave the folder alone while the command runs, {_AGAIN}",
    ),
    _Kind(
        "the disk or the network cannot read or write",
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH),
        r"Input/output error|Stale file handle",
        f"check the disk or the network, {_AGAIN}",
    ),
    _Kind(
        "too many files are open",
        (errno.EMFILE, errno.ENFILE),
        r"Too many open files",
        f"raise the limit (ulimit -n), {_AGAIN}",
    ),
    _Kind(
        "the port is in use",
        (errno.EADDRINUSE,),
        r"Address already in use",
        f"stop what listens there, or take another port, {_AGAIN}",
    ),
    _Kind(
        "nothing answers",
        (errno.ECONNREFUSED, errno.ECONNRESET),
        r"Connection refused|Connection reset",
        f"check that the other side runs and can be reached, {_AGAIN}",
    ),
    _Kind(
        "the memory is used up",
        (errno.ENOMEM,),
        r"Cannot allocate memory|OutOfMemoryError|malloc of size|Unable to allocate",
        f"stop other programs or take a larger machine, {_AGAIN}",
    ),
]
_FULL = _KINDS[0]
_PATH = re.compile(r"['\"](/[^'\"]+)['\"]")
_SYSTEM = re.compile(
    r"OSError|[Ee]rrno|os error|write error in|PermissionError|FileNotFoundError|OutOf(Disk|Memory)Error"
)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors of the system that name no file get this path: Arrow says that a disk is full, and not where.

    Raises:
        OSError: with the path, where a library has words of its own for a full disk: safetensors, FAISS, NumPy.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = path if error.filename is None else error.filename
            raise
        if _where(error, _FULL) == "":
            raise OSError(errno.ENOSPC, _FULL.what, path) from error
        raise


def explain(error: BaseException) -> str | None:
    """One line about a failure of the machine, such as a full disk or a missing permission; None for any other failure.

    Errors of Ray's workers carry the error of the task in their text and as their cause.
    """
    for link in chain(error):
        if isinstance(link, OSError) and "AF_UNIX" in str(link):
            return (
                f"a socket cannot be made below {tempfile.gettempdir()}, whose name is too long; set TMPDIR or RAY_TMPDIR to "
                f"a short folder such as /tmp, {_AGAIN}"
            )
        for kind in _KINDS:
            if (where := _where(link, kind)) is not None:
                return f"{kind.what}{f' for {where}' if where else ''}; {kind.remedy}"
    return None


def chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the first cause last."""
    links: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in links:
        links.append(cause)
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "cause", None)
    return links


def _where(error: BaseException, kind: _Kind) -> str | None:
    """The path of a failure of a kind, empty where nothing names it; None where the error is of another kind."""
    text = str(error)
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if isinstance(number, int):
        if number not in kind.numbers:
            return None
    elif not re.search(kind.said, text) or not (isinstance(error, OSError) or _SYSTEM.search(text)):
        return None
    line = next((part for part in reversed(text.splitlines()) if re.search(kind.said, part)), text)
    named = _PATH.findall(line)  # of two, the second one is where a copy goes
    own = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return str(own or (named[-1] if named else ""))
