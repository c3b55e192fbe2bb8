"""Failures of the machine that an operator can remedy, as one line: what happened, where, and what to do."""

from __future__ import annotations

import errno
import re

_SAID = {
    "no space is left": ((errno.ENOSPC, errno.EDQUOT), re.compile(r"No space left on device|Disk quota exceeded")),
    "permission is denied": ((errno.EACCES, errno.EPERM), re.compile(r"Permission denied")),
    "the file system is read-only": ((errno.EROFS,), re.compile(r"Read-only file system")),
}
_REMEDY = {
    "no space is left": "free some space, or write to another folder, and run the command again",
    "permission is denied": "give this user access, or take another folder, and run the command again",
    "the file system is read-only": "take another folder, and run the command again",
}
_PATH = re.compile(r"['\"](/[^'\"]+)['\"]")


def explain(error: BaseException) -> str | None:
    """One line about a full disk, a missing permission or a read-only disk; None for any other failure.

    Errors of Ray's workers carry the error of the task in their text and as their cause.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "cause", None)
    for link in chain:
        text = str(link)
        for what, (numbers, pattern) in _SAID.items():
            found = pattern.search(text)
            if getattr(link, "errno", None) in numbers or (found and _comes_from_the_system(link, text)):
                line = next((part for part in text.splitlines() if pattern.search(part)), text)
                path = getattr(link, "filename", None) or (m[1] if (m := _PATH.search(line)) else None)
                return f"{what}{f' for {path}' if path else ''}; {_REMEDY[what]}"
    return None


def _comes_from_the_system(error: BaseException, text: str) -> bool:
    return isinstance(error, OSError) or "OSError" in text or "Errno" in text or "errno" in text
