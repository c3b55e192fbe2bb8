"""Is the file of an embedded store whole, and does it hold all that was acknowledged?

A mark beside the database says which store it is and how far it got. It is written after each commit and never synced,
so it may be behind the database and is never ahead of it. A database that is behind its mark was emptied, replaced by
an older copy, or has lost its write-ahead log. SQLite notices none of these.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from ctxrec.core.errors import UserError
from ctxrec.live.store import TABLES, StoreError

logger = logging.getLogger(__name__)

APPLICATION_ID, VERSION = 0x63747872, 2  # "ctxr" in the header of the file; its format
MARK = "live.mark"
CHECK_S = 5.0  # at most, for the check of the pages; a larger file is checked in part
COLUMNS = {
    "events": ("seq", "user", "time_us", "item", "action", "value", "context"),
    "items": ("number", "id", "row"),
    "users": ("number", "id", "row"),
    "facts": ("name", "value"),
}
SINCE = {"users": 2}  # the format in which a table came; the others have been there from the first


def reached(tables: Iterable[str] = COLUMNS) -> str:
    """The query for the number of the last event, and for the sum of the numbers of the last changes of rows. Neither falls
    as long as nothing is lost."""
    counted = [f"coalesce((SELECT max(number) FROM {table}), 0)" for table in TABLES if table in tables]
    return f"SELECT coalesce((SELECT max(seq) FROM events), 0), {' + '.join(counted)}"


_HEADER = b"SQLite format 3\0"
_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_RESTORE = (
    "restore it from a backup, or recover what can be read with "
    "`sqlite3 live.sqlite .recover | sqlite3 recovered.sqlite`, or move the folder away to start with an empty store"
)
_KINDS = {
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "denied",
    sqlite3.SQLITE_CANTOPEN: "denied",
}


@dataclass(frozen=True)
class Mark:
    """Which store a folder holds, the number of the last event, and how many changes of items and users there were."""

    store: str
    event: int
    change: int

    def line(self) -> bytes:
        """As it is written; always of the same length."""
        return f"{self.store:<8} {self.event:019d} {self.change:019d}\n".encode()


def read_mark(folder: str) -> Mark | None:
    """The mark of a folder; None where there is none, or no readable one."""
    try:
        with open(os.path.join(folder, MARK), "rb") as stream:
            line = stream.read(200)
    except FileNotFoundError:
        return None
    found = re.fullmatch(rb"(\w+) +(\d{19}) (\d{19})\n", line)
    if found is None:
        logger.warning(
            "%s is damaged and is written anew; a loss before now is not noticed", os.path.join(folder, MARK)
        )
        return None
    return Mark(found[1].decode(), int(found[2]), int(found[3]))


def check_file(path: str, *, used: bool) -> None:
    """Refuse a store that is damaged, or that has lost what it held, before anything is written to it.

    Args:
        path: of the database; where nothing lies there and nothing did, all is well.
        used: whether a service has used the folder, though it may have no mark.

    Raises:
        UserError: says what is wrong with which file, and what to do.
        sqlite3.Error: the file cannot be read.
        OSError: the file cannot be read.
    """
    mark = read_mark(os.path.dirname(path))
    if not os.path.exists(path):
        if mark is not None:
            raise UserError(f"{path} is missing, but {MARK} beside it says that {_held(mark)}; {_RESTORE}")
        return
    with open(path, "rb") as stream:
        header = stream.read(len(_HEADER))
    if not header:
        if mark is not None or used:
            raise UserError(f"{path} is empty, but a service has used it before; {_RESTORE}")
        return
    if header != _HEADER:
        raise UserError(f"{path} is no SQLite database: its first bytes are {header[:16]!r}; {_RESTORE}")
    # Read-only, so that closing it leaves a damaged write-ahead log as it is.
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=CHECK_S, isolation_level=None)
    try:
        _check_content(connection, path, mark)
    except sqlite3.DatabaseError as error:
        if kind_of(error) != "damaged":
            raise
        raise UserError(f"{path} is damaged ({error}); {_RESTORE}") from error
    finally:
        connection.close()


def _held(mark: Mark) -> str:
    return f"it held {mark.event} events and {mark.change} changes of items and users"


def _check_content(connection: sqlite3.Connection, path: str, mark: Mark | None) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if application not in (0, APPLICATION_ID) or (application == 0 and tables and not tables & set(COLUMNS)):
        raise UserError(f"{path} is a database of another program; give a folder of its own with store=")
    if version > VERSION:
        raise UserError(
            f"{path} has the format {version}; expected {VERSION} or less. A newer version of ctxrec wrote it: use that one"
        )
    if damage := _damage(connection, path):
        raise UserError(f"{path} is damaged ({damage}); {_RESTORE}")
    if not tables and mark is None:
        return  # another process is making it
    for table, columns in COLUMNS.items():
        found = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
        is_new = version < SINCE.get(table, 0)
        if found != columns and (found or (application and not is_new)):  # an earlier version may lack a table
            says = f"has the columns {', '.join(found)}" if found else "is missing"
            raise UserError(f"{path} is damaged (its table {table} {says}); {_RESTORE}")
    if mark is None:
        return
    store = connection.execute("SELECT value FROM facts WHERE name = 'id'").fetchone()
    if store is None or store[0] != mark.store:
        raise UserError(f"{path} is not the store of {MARK} beside it ({_held(mark)}); {_RESTORE}")
    event, change = connection.execute(reached(tables)).fetchone()
    if event < mark.event or change < mark.change:
        raise UserError(
            f"{path} has lost events: it has {event} events and {change} changes of items and users, but {_held(mark)}. Its "
            f"write-ahead log {os.path.basename(path)}-wal is missing or damaged, or it is an older copy. Restore both "
            f"files, or remove {os.path.join(os.path.dirname(path), MARK)} to go on without what is lost"
        )


def _damage(connection: sqlite3.Connection, path: str) -> str | None:
    """What `PRAGMA quick_check` finds first in the time that a start may take; None where it finds nothing."""
    stop_at = time.monotonic() + CHECK_S
    connection.set_progress_handler(lambda: time.monotonic() > stop_at, _STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        logger.info("%s is large: its pages were checked for %g s, and not all of them", path, CHECK_S)
        return None
    finally:
        connection.set_progress_handler(None, 0)
    return None if found == "ok" else " ".join(str(found).replace("*** in database main ***", "").split())


def kind_of(error: sqlite3.Error) -> str:
    """The kind of a `StoreError` for an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ or re.search("no such (table|column|index)|not decode", str(error)):
        return "damaged"
    return "busy" if code is None else _KINDS.get(code & 0xFF, "busy")


def store_error(path: str, error: sqlite3.Error) -> StoreError:
    """What callers of the store get for an error of SQLite, with the file and the remedy."""
    kind = kind_of(error)
    remedy = {
        "busy": "",
        "damaged": f"; stop the service and {_RESTORE}",
        "full": "; make room on its disk",
        "read-only": "; make the file and its folder writable for this user",
        "denied": "; give this user access to the file and its folder",
    }[kind]
    return StoreError(f"SQLite: {path}: {error}{remedy}", kind)
