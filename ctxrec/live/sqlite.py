"""The embedded history store: SQLite with a write-ahead log, every commit on disk before it returns.

Any number of threads and processes of one machine may use one folder. Network file systems lack the locks that SQLite
needs, so use Redis for several machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctxrec.core.errors import UserError
from ctxrec.live.sqlite_check import APPLICATION_ID, MARK, VERSION, Mark, check_file, kind_of, reached, store_error
from ctxrec.live.store import (
    KEPT_EVENTS,
    RECENT_EVENTS,
    LoggedEvent,
    OnFailure,
    RowChange,
    StoreError,
    Table,
    Unwritten,
)

DATABASE, LOCK, PRESENCE = "live.sqlite", "writing.lock", "service-"
_WAL = "-wal"  # SQLite's name of the write-ahead log, after that of the database
_BUSY_S = 5.0  # how long a write waits for another process's
_TABLES = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, user TEXT NOT NULL, time_us INTEGER NOT NULL, item TEXT NOT NULL,
    action TEXT NOT NULL, value REAL, context TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_user ON events (user, time_us, item, action);
CREATE INDEX IF NOT EXISTS events_by_time ON events (user, time_us);
CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, row TEXT);
CREATE TABLE IF NOT EXISTS users (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, row TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('written', 0), ('taken', 0), ('id', '{{id}}');
COMMIT;
"""


class SqliteStore:
    """A `HistoryStore` in a local folder."""

    def __init__(self, folder: str, *, on_failure: OnFailure | None = None):
        self._path = os.path.join(folder, DATABASE)
        self._on_failure = on_failure
        self._threads = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._lock_file: int | None = None
        self._presence: dict[str, int] = {}  # open files that say that a service uses the store
        self._place: tuple[int, int] | None = None  # inodes of the database and of its log
        self._wrong_place: str | None = None  # what was found wrong with them
        self._mark_file: int | None = None
        try:
            os.makedirs(folder, exist_ok=True)
            check_file(self._path, used=os.path.exists(os.path.join(folder, LOCK)))
            connection = self._connection()
            connection.executescript(_TABLES.format(id=uuid.uuid4().hex[:8]))
            self.id = self._fact("id")
            self._place = os.stat(self._path).st_ino, os.stat(self._path + _WAL).st_ino
            self._mark_file = os.open(os.path.join(folder, MARK), os.O_RDWR | os.O_CREAT, 0o600)
            self._write_mark(connection.execute(reached()).fetchone())
        except (OSError, sqlite3.Error, UserError) as error:
            self.close()
            if isinstance(error, UserError):
                raise UserError(f"the history store cannot be used: {error}") from error
            if isinstance(error, sqlite3.Error) and kind_of(error) == "full":
                remedy = "free some space on its disk, or give another folder"
            else:
                remedy = "give a writable folder"
            raise UserError(f"the history store at {folder} cannot be opened ({error}); {remedy}") from error

    def append(self, events: Sequence[LoggedEvent]) -> None:
        rows = [
            (e.user_id, e.time_us, e.item_id, e.action or "", e.value, json.dumps(e.context, separators=(",", ":")))
            for e in events
        ]
        insert = "INSERT OR IGNORE INTO events (user, time_us, item, action, value, context) VALUES (?, ?, ?, ?, ?, ?)"
        self._change(insert, rows)

    def latest(self, users: Sequence[str], until_us: Sequence[int]) -> list[list[LoggedEvent]]:
        query = (
            "SELECT item, time_us, action, value, context FROM events INDEXED BY events_by_time WHERE user = ? AND time_us <= ? "
            "ORDER BY time_us DESC, seq DESC LIMIT ?"
        )
        with self._answering() as connection:
            cursor, found = connection.cursor(), []
            for user, until in zip(users, until_us, strict=True):
                rows = cursor.execute(query, (user, until, KEPT_EVENTS)).fetchall()
                found.append([self._event(user, row) for row in reversed(rows)])
            return found

    def events_since(self, mark: Any, limit: int) -> tuple[list[LoggedEvent], Any]:
        query = "SELECT seq, user, item, time_us, action, value, context FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._answering() as connection:
            if mark is None:
                newest = connection.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
                mark = max(newest - RECENT_EVENTS, 0)
            rows = connection.execute(query, (mark, limit)).fetchall()
            events = [self._event(user, tuple(rest)) for _, user, *rest in rows]
        return events, rows[-1][0] if rows else mark

    def take_unwritten(self, limit: int) -> Unwritten | None:
        if not self._lock():
            return None
        try:
            with self._answering() as connection:
                taken = self._take(connection, limit)
        except BaseException:  # a lock that stays would end the export for ever
            self.release()
            raise
        if taken is None:
            self.release()
        return taken

    def _take(self, connection: sqlite3.Connection, limit: int) -> Unwritten | None:
        first, last = self._fact("written"), self._fact("taken")
        if last <= first:
            ahead = "SELECT max(seq) FROM (SELECT seq FROM events WHERE seq > ? ORDER BY seq LIMIT ?)"
            last = connection.execute(ahead, (first, limit)).fetchone()[0]
            if last is None:
                return None
            self._set("taken", last)  # before the file appears, so that a crash makes the same file again
        query = "SELECT item, time_us, action, value, context, user FROM events WHERE seq > ? AND seq <= ? ORDER BY seq"
        events = [self._event(row[5], row) for row in connection.execute(query, (first, last))]
        return Unwritten(f"live-{self.id}-{first + 1:012d}-{last:012d}.parquet", last, events)

    def written(self, taken: Unwritten) -> None:
        try:
            with self._answering():
                self._set("written", taken.last)
        finally:
            self.release()

    def num_unwritten(self) -> int:
        query = "SELECT count(*) FROM events WHERE seq > (SELECT value FROM facts WHERE name = 'written')"
        with self._answering() as connection:
            return int(connection.execute(query).fetchone()[0])

    def other_services(self, me: str) -> list[str]:
        with self._guard:
            try:
                if me not in self._presence:
                    self._presence[me] = _shared_lock(self._presence_file(me), me)
                return self._living(me)
            except OSError as error:
                raise self._failed(error) from error

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
        file, self._lock_file = self._lock_file, None
        if file is not None:
            os.close(file)  # and with it the lock

    def change_rows(self, table: Table, rows: Mapping[str, dict[str, Any] | None]) -> int:
        values = [(name, None if row is None else json.dumps(row)) for name, row in rows.items()]
        return self._change(f"INSERT OR REPLACE INTO {table} (id, row) VALUES (?, ?)", values, table)

    def _change(self, statement: str, rows: Sequence[tuple], table: Table = "items") -> int:
        """Change all rows or none; the number of the last change of a row of `table` after it."""
        with self._answering() as connection:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(statement, rows)
                last: int = connection.execute(f"SELECT coalesce(max(number), 0) FROM {table}").fetchone()[0]
                numbers: tuple[int, int] = connection.execute(reached()).fetchone()
            self._write_mark(numbers)
            return last

    def row_changes(self, table: Table, since: int) -> list[RowChange]:
        query = f"SELECT number, id, row FROM {table} WHERE number > ? ORDER BY number"
        with self._answering() as connection:
            return [self._row_change(row) for row in connection.execute(query, (since,))]

    def posted_rows(self, table: Table, ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        query = f"SELECT number, id, row FROM {table} WHERE id = ?"
        with self._answering() as connection:
            found = (connection.execute(query, (name,)).fetchone() for name in ids)
            changes = [self._row_change(row) for row in found if row is not None]
        return {change.id: change.row for change in changes}

    def close(self) -> None:
        self.release()
        with self._guard:
            for file in self._presence.values():
                os.close(file)
            self._presence.clear()
            if self._mark_file is not None:
                os.close(self._mark_file)
                self._mark_file = None
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._threads = threading.local()

    def _lock(self) -> bool:
        """Take the lock of the one process that writes files; it is released when the process dies."""
        assert self._lock_file is None, "release() or written() must follow take_unwritten()"
        try:
            file = os.open(os.path.join(os.path.dirname(self._path), LOCK), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(file)
                raise
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._failed(error) from error
        self._lock_file = file
        return True

    @contextlib.contextmanager
    def _answering(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; whatever fails becomes a `StoreError`, of which `on_failure` is told."""
        try:
            yield self._connection()
            self._check_place()
        except (OSError, sqlite3.Error, StoreError) as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError | sqlite3.Error | StoreError) -> StoreError:
        if isinstance(error, OSError):
            kinds = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EROFS: "read-only", errno.EACCES: "denied"}
            kind = kinds.get(error.errno or 0, "busy")
            failure = StoreError(f"{os.path.dirname(self._path)}: {error}", kind)
        else:
            failure = error if isinstance(error, StoreError) else store_error(self._path, error)
        if self._on_failure is not None:
            self._on_failure(failure)
        return failure

    def _check_place(self) -> None:
        """SQLite goes on with files that were removed, moved or emptied, and what it writes then is lost."""
        if self._place is not None and self._wrong_place is None:
            self._wrong_place = _what_changed((self._path, self._path + _WAL), self._place)
            connection = getattr(self._threads, "connection", None)
            if connection is not None and (self._wrong_place or "").startswith(self._path + _WAL):
                with contextlib.suppress(sqlite3.Error):  # what the log had can still get into the database
                    connection.execute("PRAGMA wal_checkpoint")
        if self._wrong_place is not None:  # it stays so until the service starts again
            told = f"{self._wrong_place} while the service used it; put it back and start the service again"
            raise StoreError(told, "damaged")

    def _write_mark(self, numbers: tuple[int, int]) -> None:
        if self._mark_file is not None:
            os.pwrite(self._mark_file, Mark(self.id, *numbers).line(), 0)

    def _event(self, user: str, row: tuple) -> LoggedEvent:
        item, time_us, action, value, context = row[:5]
        try:
            event = LoggedEvent(user, item, time_us, action or None, value, json.loads(context))
        except (TypeError, ValueError):
            event = None
        if event is None or not (
            isinstance(item, str) and isinstance(time_us, int) and isinstance(event.context, dict)
        ):
            raise StoreError(
                f"{self._path} is damaged: the event of user {user!r} at {time_us} cannot be read", "damaged"
            )
        return event

    def _row_change(self, row: tuple) -> RowChange:
        number, name, text = row
        try:
            columns = None if text is None else json.loads(text)
        except (TypeError, ValueError):
            columns = text
        if not isinstance(name, str) or not isinstance(columns, dict | None):
            raise StoreError(f"{self._path} is damaged: the posted row of {name!r} cannot be read", "damaged")
        return RowChange(number, name, columns)

    def _fact(self, name: str) -> Any:
        return self._connection().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]

    def _set(self, name: str, value: int) -> None:
        with self._connection() as connection:
            connection.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection."""
        connection = getattr(self._threads, "connection", None)
        if connection is None:
            self._check_place()  # SQLite makes a file that is missing
            # Closed from the thread that closes the store, hence no check of threads.
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = FULL")  # with WAL: an fsync at each commit
            self._threads.connection = connection
            with self._guard:
                self._all.append(connection)
        return connection


def _what_changed(paths: Sequence[str], inodes: Sequence[int]) -> str | None:
    for path, inode in zip(paths, inodes, strict=True):
        try:
            now = os.stat(path)
        except FileNotFoundError:
            return f"{path} was removed or moved"
        if now.st_ino != inode:
            return f"{path} was replaced"
        if path == paths[0] and not now.st_size:
            return f"{path} was emptied"
    return None


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
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                os.pwrite(file, content.encode(), 0)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # somebody removed it before the lock was taken
