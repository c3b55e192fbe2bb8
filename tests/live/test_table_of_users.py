"""The table of users in a store: one of an earlier version gets it, and what is lost of it is noticed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ctxrec.core.errors import UserError
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of a store that was used and closed."""
    store = open_store(str(tmp_path / "store"))
    store.append([LoggedEvent("u0", "i", 1)])
    store.change_rows("items", {"a": {"title": "red"}, "b": None})
    store.change_rows("users", {"u0": {"age": 3}})
    store.close()
    return tmp_path / "store"


def run_sql(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "live.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_a_store_of_an_earlier_version_gets_a_table_of_users(used):
    run_sql(used, "DROP TABLE users", "PRAGMA user_version = 1")
    (used / "live.mark").unlink()
    store = open_store(str(used))
    assert store.posted_rows("users", ["u0"]) == {} and len(store.row_changes("items", 0)) == 2
    store.change_rows("users", {"u0": {"age": 3}})
    store.close()
    again = open_store(str(used))
    assert again.posted_rows("users", ["u0"]) == {"u0": {"age": 3}}
    again.close()
    run_sql(used, "DROP TABLE users")
    with pytest.raises(UserError, match="its table users is missing"):
        open_store(str(used))


def test_a_store_that_lost_rows_of_users_is_refused(used):
    run_sql(used, "DELETE FROM users", "DELETE FROM sqlite_sequence WHERE name = 'users'")
    with pytest.raises(UserError, match="has lost events: it has 1 events and 2 changes of items and users"):
        open_store(str(used))
