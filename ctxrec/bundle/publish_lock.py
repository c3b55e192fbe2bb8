"""One change of a folder of published models at a time: on one machine, and on an object store.

A local folder has a lock that ends with its process. An object store has none, so whoever wants to change something
first writes a claim and then looks for claims of others. Of two at once each sees the other's, so never do both go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator

import pyarrow.fs

from ctxrec.core import storage
from ctxrec.core.errors import UserError

logger = logging.getLogger(__name__)

_LOCK, _CLAIMS = ".publish.lock", ".publishing"
_WAIT_S = 600.0  # for another process of this machine
_CLAIM_S = 3600.0  # a claim that is older was left by a process that died
_LOOK_S = 0.1


@contextlib.contextmanager
def publishing(models: str) -> Iterator[None]:
    """Hold the right to change a folder of published models, and first remove what killed processes left there.

    Args:
        models: path or URI.

    Raises:
        UserError: another process changes it, and goes on doing so.
    """
    storage.make_dir(models)
    fs, inner = storage.filesystem(models)
    local = isinstance(fs, pyarrow.fs.LocalFileSystem)
    with _locked(inner) if local else _claimed(models):
        for folder in (models, storage.join(models, "versions")):
            for name in storage.delete_stale(folder):
                logger.warning("removed %s, which a killed process left in %s", name, folder)
        yield


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    file = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(file, folder)
        os.ftruncate(file, 0)
        with contextlib.suppress(OSError):  # a note for those who wait; on a full disk there may be something to remove
            os.pwrite(file, _me().encode(), 0)
        yield
    finally:
        os.close(file)  # and with it the lock


def _wait_for(file: int, folder: str) -> None:
    stop_at, said = time.monotonic() + _WAIT_S, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            other = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            if time.monotonic() > stop_at:
                raise UserError(
                    f"{other} has been changing {folder} for {_WAIT_S:g} s; try again when it has ended"
                ) from None
        if not said:
            logger.info("waiting for %s, which changes %s", other, folder)
            said = True
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def _claimed(models: str) -> Iterator[None]:
    folder = storage.join(models, _CLAIMS)
    mine = uuid.uuid4().hex
    place = storage.join(folder, mine)
    try:
        storage.write_text(place, _me())
        others = _other_claims(folder, mine)
        if others:
            raise UserError(
                f"{storage.read_text(others[0])} changes {models}; try again when it has ended, or remove {others[0]} if "
                "it has died"
            )
        yield
    finally:
        storage.delete(place)


def _other_claims(folder: str, mine: str) -> list[str]:
    """Claims of others that are not older than _CLAIM_S by the clock of the store; older ones are removed."""
    fs, inner = storage.filesystem(folder)
    claims = {i.base_name: i for i in fs.get_file_info(pyarrow.fs.FileSelector(inner)) if i.is_file}
    others = []
    for name, info in sorted(claims.items()):
        if name == mine or "." in name:  # a claim that is being written sees ours
            continue
        if (claims[mine].mtime_ns or 0) - (info.mtime_ns or 0) > _CLAIM_S * 1e9:
            storage.delete(storage.join(folder, name))
        else:
            others.append(storage.join(folder, name))
    return others
