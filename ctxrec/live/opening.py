"""The store behind one protocol: SQLite in a folder, or Redis behind a URL."""

from __future__ import annotations

import os

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.live.store import HistoryStore


def open_store(where: str, *, durable: bool = True) -> HistoryStore:
    """The store at a local folder (SQLite) or a Redis URL.

    Args:
        where: a folder, or redis://, rediss:// or unix://.
        durable: refuse a Redis server that may lose what it has acknowledged.

    Raises:
        UserError: it cannot be opened.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        from ctxrec.live.redis import RedisStore

        return RedisStore(where, durable=durable)
    if storage.is_uri(where):
        raise UserError(f"store is {where!r}; expected a local folder, or a URL with redis://, rediss:// or unix://")
    from ctxrec.live.sqlite import SqliteStore

    return SqliteStore(os.path.abspath(where))
