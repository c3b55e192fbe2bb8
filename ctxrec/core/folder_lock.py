"""One command at a time in a folder that it writes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from ctxrec.core import storage
from ctxrec.core.errors import UserError


@contextlib.contextmanager
def only_here(folder: str) -> Iterator[None]:
    """Keep other commands of this machine from writing into a folder meanwhile. The folder is made.

    The system lets go of the lock when the process ends, however it ends. An object store and some network file systems
    have no such locks; two commands there are not kept apart.

    Args:
        folder: path or URI.

    Raises:
        UserError: another command is at work there.
    """
    storage.make_dir(folder)
    if storage.is_uri(folder):
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another command writes into {folder} now; wait until it has ended, or take another --out"
            ) from error
        except OSError:  # the file system has no such locks
            pass
        yield
    finally:
        os.close(lock)
