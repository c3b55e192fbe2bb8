"""The store behind one protocol: SQLite in a folder, or Redis behind a URL."""

from __future__ import annotations

import os

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.live.store import HistoryStore, OnFailure


def open_store(where: str, *, durable: bool = True, on_failure: OnFailure | None = None) -> HistoryStore:
    """The store at a local folder (SQLite) or a Redis URL.

    Args:
        where: a folder, or redis://, rediss:// or unix://.
        durable: refuse a Redis server that may lose what it has acknowledged.
        on_failure: is told of every failed call before the call raises.

    Raises:
        UserError: it cannot be opened, it is damaged, or it has lost what was in it.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        from ctxrec.live.redis import RedisStore

        return RedisStore(where, durable=durable, on_failure=on_failure)
    if storage.is_uri(where):
        raise UserError(f"store is {where!r}; expected a local folder, or a URL with redis://, rediss:// or unix://")
    from ctxrec.live.sqlite import SqliteStore

    return SqliteStore(os.path.abspath(where), on_failure=on_failure)
