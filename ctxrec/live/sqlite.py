"""The embedded history store: SQLite with a write-ahead log, every commit on disk before it returns.

Any number of threads and processes of one machine may use one folder. Network file systems lack the locks that SQLite
needs, so use Redis for several machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.live.store import KEPT_EVENTS, ItemChange, LoggedEvent, StoreError, Unwritten

DATABASE, LOCK, PRESENCE = "live.sqlite", "writing.lock", "service-"
_BUSY_S = 5.0  # how long a write waits for another process's
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, user TEXT NOT NULL, time_us INTEGER NOT NULL, item TEXT NOT NULL,
    action TEXT NOT NULL, value REAL, context TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_user ON events (user, time_us, item, action);
CREATE INDEX IF NOT EXISTS events_by_time ON events (user, time_us);
CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, row TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('written', 0), ('taken', 0), ('id', '{id}');
"""


class SqliteStore:
    """A `HistoryStore` in a local folder."""

    def __init__(self, folder: str):
        self._path = os.path.join(folder, DATABASE)
        self._threads = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._lock_file: int | None = None
        self._presence: dict[str, int] = {}  # open files that say that a service uses the store
        try:
            os.makedirs(folder, exist_ok=True)
            self._connection().executescript(_TABLES.format(id=uuid.uuid4().hex[:8]))
            self.id = self._fact("id")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the history store at {folder} cannot be opened ({error}); give a writable folder"
            ) from error

    def append(self, events: Sequence[LoggedEvent]) -> None:
        rows = [
            (e.user_id, e.time_us, e.item_id, e.action or "", e.value, json.dumps(e.context, separators=(",", ":")))
            for e in events
        ]
        insert = "INSERT OR IGNORE INTO events (user, time_us, item, action, value, context) VALUES (?, ?, ?, ?, ?, ?)"
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(insert, rows)
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error

    def latest(self, users: Sequence[str], until_us: Sequence[int]) -> list[list[LoggedEvent]]:
        query = (
            "SELECT item, time_us, action, value, context FROM events INDEXED BY events_by_time WHERE user = ? AND time_us <= ? "
            "ORDER BY time_us DESC, seq DESC LIMIT ?"
        )
        try:
            cursor = self._connection().cursor()
            found = []
            for user, until in zip(users, until_us, strict=True):
                rows = cursor.execute(query, (user, until, KEPT_EVENTS)).fetchall()
                found.append([_event(user, row) for row in reversed(rows)])
            return found
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error

    def take_unwritten(self, limit: int) -> Unwritten | None:
        if not self._lock():
            return None
        try:
            taken = self._take(limit)
        except BaseException as error:  # a lock that stays would end the export for ever
            self.release()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"SQLite: {error}") from error
            raise
        if taken is None:
            self.release()
        return taken

    def _take(self, limit: int) -> Unwritten | None:
        connection = self._connection()
        first, last = self._fact("written"), self._fact("taken")
        if last <= first:
            ahead = "SELECT max(seq) FROM (SELECT seq FROM events WHERE seq > ? ORDER BY seq LIMIT ?)"
            last = connection.execute(ahead, (first, limit)).fetchone()[0]
            if last is None:
                return None
            self._set("taken", last)  # before the file appears, so that a crash makes the same file again
        query = "SELECT item, time_us, action, value, context, user FROM events WHERE seq > ? AND seq <= ? ORDER BY seq"
        events = [_event(row[5], row) for row in connection.execute(query, (first, last))]
        return Unwritten(f"live-{self.id}-{first + 1:012d}-{last:012d}.parquet", last, events)

    def written(self, taken: Unwritten) -> None:
        try:
            self._set("written", taken.last)
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error
        finally:
            self.release()

    def num_unwritten(self) -> int:
        try:
            query = "SELECT count(*) FROM events WHERE seq > (SELECT value FROM facts WHERE name = 'written')"
            return int(self._connection().execute(query).fetchone()[0])
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error

    def other_services(self, me: str) -> list[str]:
        with self._guard:
            try:
                if me not in self._presence:
                    self._presence[me] = _shared_lock(self._presence_file(me), me)
                return self._living(me)
            except OSError as error:
                raise StoreError(f"{os.path.dirname(self._path)}: {error}") from error

    def _presence_file(self, service: str) -> str:
        name = hashlib.sha256(service.encode()).hexdigest()[:16]
        return os.path.join(os.path.dirname(self._path), f"{PRESENCE}{name}")

    def _living(self, me: str) -> list[str]:
        """Names of other services of which a process holds its file; files of dead ones are removed."""
        folder, found = os.path.dirname(self._path), []
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if not name.startswith(PRESENCE) or path == self._presence_file(me):
                continue
            with contextlib.suppress(FileNotFoundError):
                file = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                except BlockingIOError:
                    found.append(os.read(file, 4096).decode(errors="replace"))
                finally:
                    os.close(file)
        return found

    def release(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)  # and with it the lock
            self._lock_file = None

    def change_items(self, rows: Mapping[str, dict[str, Any] | None]) -> int:
        values = [(item, None if row is None else json.dumps(row)) for item, row in rows.items()]
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR REPLACE INTO items (id, row) VALUES (?, ?)", values)
                return connection.execute("SELECT max(number) FROM items").fetchone()[0] or 0
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error

    def item_changes(self, since: int) -> list[ItemChange]:
        query = "SELECT number, id, row FROM items WHERE number > ? ORDER BY number"
        try:
            rows = self._connection().execute(query, (since,)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"SQLite: {error}") from error
        return [ItemChange(number, item, None if row is None else json.loads(row)) for number, item, row in rows]

    def close(self) -> None:
        self.release()
        with self._guard:
            for file in self._presence.values():
                os.close(file)
            self._presence.clear()
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._threads = threading.local()

    def _lock(self) -> bool:
        """Take the lock of the one process that writes files; it is released when the process dies."""
        assert self._lock_file is None, "release() or written() must follow take_unwritten()"
        file = os.open(os.path.join(os.path.dirname(self._path), LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._lock_file = file
        return True

    def _fact(self, name: str) -> Any:
        return self._connection().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]

    def _set(self, name: str, value: int) -> None:
        with self._connection() as connection:
            connection.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection."""
        connection = getattr(self._threads, "connection", None)
        if connection is None:
            # Closed from the thread that closes the store, hence no check of threads.
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = FULL")  # with WAL: an fsync at each commit
            self._threads.connection = connection
            with self._guard:
                self._all.append(connection)
        return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for a lock when it changes the journal mode, and replicas start at the same time."""
    stop_at = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > stop_at:
                raise
            time.sleep(0.01)


def _shared_lock(path: str, content: str) -> int:
    """An open file with this content, locked by all who share it until they close it or die."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                os.pwrite(file, content.encode(), 0)
                return file
        os.close(file)  # somebody removed it before the lock was taken


def _event(user: str, row: tuple) -> LoggedEvent:
    item, time_us, action, value, context = row[:5]
    return LoggedEvent(user, item, time_us, action or None, value, json.loads(context))
