"""Ports of this machine: whether one is free, and which service of this user has it.

Ray Serve's proxies and the direct port let several processes share a port (SO_REUSEPORT), and the kernel spreads the
connections over them. It would do so over two services as well, which would then answer each other's requests.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import IO

from ctxrec.core import storage
from ctxrec.core.errors import UserError


def listener(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket bound to a port, which `shared` ones may be bound to too.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def check_free(host: str, port: int, *, option: str) -> None:
    """Refuse a port at which something listens.

    Raises:
        UserError: the port is taken, or the address is not one of this machine; names the option that sets it.
    """
    try:
        listener(host, port, shared=False).close()
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used: {error.strerror}; stop what listens there, or set {option}"
        ) from None


def claim(port: int, owner: str) -> IO[str] | None:
    """The right to share a port with all others of the same owner, held while the file is open; None: others have it.

    Raises:
        UserError: the folder of the claims is not this user's own.
        OSError: the file cannot be opened.
    """
    path = os.path.join(storage.temporary_folder(), f"port-{port}")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    file = os.fdopen(os.open(path, flags, 0o600), "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)
    else:
        file.truncate(0)
        file.write(owner)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_SH)
    file.seek(0)
    if file.read() == owner:
        return file
    file.close()
    return None
