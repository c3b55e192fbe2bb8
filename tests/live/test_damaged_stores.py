"""A damaged store says at once which file is wrong and what to do, and at run time it is told from a busy one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ctxrec.core.errors import UserError
from ctxrec.live import sqlite_check
from ctxrec.live.opening import open_store
from ctxrec.live.store import KEPT_EVENTS, LoggedEvent, StoreError

T = 1_700_000_000_000_000
PAGE = 4096
EVENTS = [LoggedEvent(f"u{n % 7}", f"item-{n}", T + n, "view", 1.5, {"device": "tv"}) for n in range(400)]


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> Path:
    """The folder of a store that was used and closed."""
    folder = tmp_path_factory.mktemp("used") / "store"
    store = open_store(str(folder))
    store.append(EVENTS)
    store.change_rows("items", {"a": {"title": "red"}, "b": None})
    store.change_rows("users", {"u0": {"age": 3}})
    store.close()
    assert sorted(os.listdir(folder)) == ["live.mark", "live.sqlite"]
    return folder


@pytest.fixture
def copy(used: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(used, tmp_path / "store"))


def content(folder: Path) -> list:
    """All that a store says, with one look at the file writer's part."""
    store = open_store(str(folder))
    try:
        found = [store.latest([f"u{n}" for n in range(7)], [T + 10**9] * 7), store.row_changes("items", 0)]
        taken = store.take_unwritten(10_000)
        return [*found, None if taken is None else taken.events]
    finally:
        store.close()


def run_sql(*statements: str) -> Callable[[Path], None]:
    def change(database: Path) -> None:
        connection = sqlite3.connect(database, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    return change


def garbage(database: Path) -> None:
    """Every page but the first is other bytes."""
    size = database.stat().st_size
    with open(database, "r+b") as stream:
        stream.seek(PAGE)
        stream.write(random.Random(1).randbytes(size - PAGE))


def in_half(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


DAMAGES = {
    "emptied": (lambda database: os.truncate(database, 0), r"live\.sqlite is empty, but a service has used it"),
    "missing": (os.unlink, r"live\.sqlite is missing.*400 events"),
    "no database": (lambda database: database.write_text("hello, world" * 9), r"live\.sqlite is no SQLite database"),
    "a few bytes": (lambda database: database.write_bytes(b"SQLite"), r"live\.sqlite is no SQLite database"),
    "in half": (in_half, r"live\.sqlite is damaged"),
    "garbage": (garbage, r"live\.sqlite is damaged"),
    "a table is lost": (run_sql("DROP TABLE events"), r"live\.sqlite is damaged \(its table events is missing\)"),
    "a column is lost": (run_sql("ALTER TABLE items DROP COLUMN row"), r"its table items has the columns number, id\)"),
    "a newer format": (run_sql("PRAGMA user_version = 9"), r"has the format 9; expected 2 or less"),
    "another program": (run_sql("PRAGMA application_id = 7"), r"database of another program; give a folder of its own"),
    "an older copy": (run_sql("DELETE FROM events WHERE seq > 300"), r"has lost events: it has 300 events.*400 events"),
    "older items": (run_sql("DELETE FROM items"), r"has lost events: .*1 changes.*3 changes of items"),
    "another store": (run_sql("UPDATE facts SET value = 'other' WHERE name = 'id'"), r"is not the store of live\.mark"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_at_start_with_its_name_and_a_remedy(copy, damage):
    change, says = DAMAGES[damage]
    change(copy / "live.sqlite")
    before = {name: (copy / name).read_bytes() for name in os.listdir(copy)}
    with pytest.raises(UserError, match=says) as refused:
        open_store(str(copy))
    assert "\n" not in str(refused.value) and str(copy) in str(refused.value)
    assert {name: (copy / name).read_bytes() for name in before} == before, "nothing was changed"


def test_the_remedies_work(copy):
    run_sql("DELETE FROM events WHERE seq > 300")(copy / "live.sqlite")
    with pytest.raises(UserError, match=f"remove {copy / 'live.mark'} to go on"):
        open_store(str(copy))
    (copy / "live.mark").unlink()
    store = open_store(str(copy))
    store.append(EVENTS)
    assert sum(map(len, store.latest([f"u{n}" for n in range(7)], [T + 10**9] * 7))) == len(EVENTS)
    store.close()
    content(copy)
    copy.rename(copy.parent / "away")
    assert content(copy) == [[[]] * 7, [], None]


def test_a_write_ahead_log_that_is_lost_or_damaged_is_found(tmp_path):
    """A killed service leaves its latest events in the log alone; without the log SQLite has never heard of them."""
    store = open_store(str(tmp_path / "store"))
    store.append(EVENTS)
    killed = shutil.copytree(tmp_path / "store", tmp_path / "killed")
    store.close()
    assert len(content(Path(shutil.copytree(killed, tmp_path / "whole")))[2]) == len(EVENTS)
    for name, damage in {
        "removed": lambda path: path.unlink(),
        "emptied": lambda path: path.write_bytes(b""),
        "in half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(path.stat().st_size)),
    }.items():
        folder = Path(shutil.copytree(killed, tmp_path / name))
        (folder / "live.sqlite-shm").unlink()
        damage(folder / "live.sqlite-wal")
        for _ in range(2):  # the look at it changes nothing
            with pytest.raises(UserError, match=r"live\.sqlite(-wal)? (has lost events|is empty|is damaged)"):
                open_store(str(folder))


def test_one_wrong_byte_is_found_or_changes_no_type(copy, used):
    """Whatever byte is wrong, the store gives what it had, other values of the same types, or one line of ours."""
    whole = (used / "live.sqlite").read_bytes()
    chance = random.Random(2)
    refused = 0
    for place in [*range(0, 108, 3), *(chance.randrange(108, len(whole)) for _ in range(120))]:
        for name in os.listdir(copy):
            (copy / name).unlink()
        shutil.copy(used / "live.mark", copy)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        (copy / "live.sqlite").write_bytes(flipped)
        try:
            found = content(copy)
        except (UserError, StoreError) as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(isinstance(event, LoggedEvent) for event in found[2] or [])
    assert refused > 20


def test_a_store_of_an_earlier_version_has_no_mark_and_no_number(copy):
    before = content(copy)
    run_sql("PRAGMA application_id = 0", "PRAGMA user_version = 0", "DROP INDEX events_by_time")(copy / "live.sqlite")
    (copy / "live.mark").unlink()
    assert content(copy)[:2] == before[:2]
    assert (copy / "live.mark").read_text().split()[1:] == [f"{400:019d}", f"{3:019d}"]
    (copy / "live.mark").unlink()
    os.truncate(copy / "live.sqlite", 0)  # its lock says that a service wrote files from it
    with pytest.raises(UserError, match="is empty, but a service has used it"):
        open_store(str(copy))


@pytest.mark.parametrize("line", [b"", b"abc", b"\xff" * 48, b"12345678 1 2\n"])
def test_a_damaged_mark_is_said_and_written_anew(copy, caplog, line):
    before = content(copy)
    (copy / "live.mark").write_bytes(line)
    assert content(copy)[:2] == before[:2]
    assert "live.mark is damaged and is written anew" in caplog.text
    assert b"400 " in (copy / "live.mark").read_bytes()


def test_the_check_of_a_large_file_ends(copy, monkeypatch, caplog):
    monkeypatch.setattr(sqlite_check, "CHECK_S", -1)
    monkeypatch.setattr(sqlite_check, "_STEPS", 10)
    with caplog.at_level("INFO"):
        content(copy)
    assert "is large: its pages were checked" in caplog.text


def remove_log(folder: Path) -> None:
    (folder / "live.sqlite-wal").unlink()


def replace(folder: Path) -> None:
    shutil.copy(folder / "live.sqlite", folder / "other")
    os.replace(folder / "other", folder / "live.sqlite")


RUNNING = {
    "emptied": (lambda folder: os.truncate(folder / "live.sqlite", 0), "was emptied while"),
    "removed": (lambda folder: (folder / "live.sqlite").unlink(), "was removed or moved while"),
    "log removed": (remove_log, r"live\.sqlite-wal was removed or moved while"),
    "replaced": (replace, "was replaced while"),
}


@pytest.mark.parametrize("damage", RUNNING)
def test_a_store_that_is_damaged_while_it_is_used_acknowledges_nothing(copy, damage):
    told: list[StoreError] = []
    store = open_store(str(copy), on_failure=told.append)
    store.append([LoggedEvent("u", "first", T)])
    change, says = RUNNING[damage]
    change(copy)
    calls = [
        lambda: store.append([LoggedEvent("u", "i", T)]),
        lambda: store.change_rows("items", {"c": {}}),
        lambda: store.latest(["u"], [T]),
        lambda: store.row_changes("items", 0),
        lambda: store.posted_rows("users", ["u0"]),
        lambda: store.take_unwritten(5),
        store.num_unwritten,
    ]
    for call in calls * 2:
        with pytest.raises(StoreError, match=rf"{says}|damaged") as failed:
            call()
        assert failed.value.kind == "damaged"
    assert [error.kind for error in told] == ["damaged"] * len(calls) * 2
    store.close()
    if damage == "log removed":  # what the log had is in the database
        again = open_store(str(copy))
        assert [event.item_id for event in again.latest(["u"], [T])[0]] == ["first", "i"]
        again.close()


def test_a_busy_store_is_told_from_a_damaged_and_a_read_only_one(copy, monkeypatch):
    monkeypatch.setattr("ctxrec.live.sqlite._BUSY_S", 0.05)
    told: list[StoreError] = []
    store = open_store(str(copy), on_failure=told.append)
    holder = sqlite3.connect(copy / "live.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.append([LoggedEvent("u", "i", T)])
    holder.execute("ROLLBACK")
    store.append([LoggedEvent("u", "i", T)])
    store._connection().execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="make the file and its folder writable"):
        store.append([LoggedEvent("u", "j", T)])
    store._connection().execute("PRAGMA query_only = OFF")
    pages = store._connection().execute("PRAGMA page_count").fetchone()[0]
    store._connection().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="make room"):
        store.append([LoggedEvent("u" * 99999, "j", T)])
    holder.execute("DROP TABLE items")
    with pytest.raises(StoreError, match=r"no such table.*stop the service and restore it"):
        store.change_rows("items", {"a": {}})
    holder.close()
    assert [error.kind for error in told] == ["busy", "read-only", "full", "damaged"]
    store.close()


def test_an_event_or_item_that_cannot_be_read_is_damage(copy):
    run_sql(
        "UPDATE events SET context = '[1' WHERE seq = 1",
        "UPDATE events SET time_us = 'soon' WHERE seq = 2",
        "UPDATE events SET item = CAST(x'ff' AS TEXT) WHERE seq = 3",
        "UPDATE items SET row = '3' WHERE id = 'a'",
    )(copy / "live.sqlite")
    store = open_store(str(copy))
    for user in ("u0", "u1", "u2"):
        with pytest.raises(StoreError, match=r"cannot be read|not decode") as failed:
            store.latest([user], [T + 10**9]) if user != "u1" else store.take_unwritten(2)
        assert failed.value.kind == "damaged"
    with pytest.raises(StoreError, match="posted row of 'a' cannot be read"):
        store.row_changes("items", 0)
    assert store.latest(["u4"], [T + 10**9])[0], "others are read"
    store.close()


def test_a_lock_file_that_cannot_be_opened_is_a_failure_like_others(copy):
    told: list[StoreError] = []
    store = open_store(str(copy), on_failure=told.append)
    (copy / "writing.lock").mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"writing\.lock"):
            store.take_unwritten(5)
    (copy / "writing.lock").rmdir()
    taken = store.take_unwritten(5)
    assert taken is not None and len(told) == 2
    store.close()


@pytest.mark.parametrize(
    "name, kind", [("log", "string"), ("items", "string"), ("number", "list"), ("services", "string")]
)
def test_a_redis_whose_keys_are_of_another_type_is_refused_at_start(redis_server, name, kind):
    server = redis_server()
    store = open_store(server.url)
    client = store._redis
    client.delete(f"ctxrec:{name}")
    client.set(f"ctxrec:{name}", "x") if kind == "string" else client.rpush(f"ctxrec:{name}", "x")
    with pytest.raises(UserError, match=rf"its key 'ctxrec:{name}' is a {kind}; expected a .*another database"):
        open_store(server.url)
    store.close()


def test_a_redis_user_of_another_type_is_damage_and_stores_nothing_of_the_call(redis_server):
    told: list[StoreError] = []
    store = open_store(redis_server().url, on_failure=told.append)
    store._redis.set("ctxrec:h:bad", "x")
    events = [LoggedEvent("good", "i", T), LoggedEvent("bad", "i", T)]
    for call in (lambda: store.append(events), lambda: store.latest(["bad"], [T])):
        with pytest.raises(StoreError, match=r"WRONGTYPE.*another program changed its keys"):
            call()
    assert [error.kind for error in told] == ["damaged"] * 2
    assert store.latest(["good"], [T]) == [[]] and store.num_unwritten() == 0
    store._redis.delete("ctxrec:h:bad")
    store.append(events)
    assert store.latest(["good", "bad"], [T, T]) == [[events[0]], [events[1]]] and store.num_unwritten() == 2
    store._redis.zadd("ctxrec:h:good", {"0" * 16 + "[1": T})
    with pytest.raises(StoreError, match="Redis") as failed:
        store.latest(["good"], [T])
    assert failed.value.kind == "damaged"
    store.close()


def test_a_full_a_read_only_and_a_locked_redis_say_so(redis_server):
    told: list[StoreError] = []
    server, primary = redis_server(), redis_server()
    store = open_store(server.url, on_failure=told.append)
    event = [LoggedEvent("u", "i", T)]
    store._redis.config_set("maxmemory", 1)
    with pytest.raises(StoreError, match="give the server more memory"):
        store.append(event)
    with pytest.raises(UserError, match="cannot be used: it is full"):
        open_store(server.url)
    store._redis.config_set("maxmemory", 0)
    host, port = primary.url.split("//")[1].split("/")[0].split(":")
    store._redis.replicaof(host, port)
    with pytest.raises(StoreError, match="give the address of the primary"):
        store.append(event)
    with pytest.raises(UserError, match="it is read-only"):
        open_store(server.url)
    store._redis.replicaof("NO", "ONE")
    store._redis.config_set("requirepass", "secret")
    store._redis.connection_pool.disconnect()
    with pytest.raises(StoreError, match="CTXREC_REDIS_PASSWORD"):
        store.append(event)
    with pytest.raises(UserError, match=r"it is denied.*CTXREC_REDIS_PASSWORD"):
        open_store(server.url)
    assert [error.kind for error in told] == ["full", "read-only", "denied"]


def test_a_redis_that_forgets_is_found(redis_server):
    server = redis_server()
    store = open_store(server.url)
    store.append([LoggedEvent("u", "i", T)])
    store._redis.flushall()
    with pytest.raises(StoreError, match=r"the server is empty.*restore it.*start the service again") as failed:
        store.num_unwritten()
    assert failed.value.kind == "damaged"
    store._redis.config_set("maxmemory-policy", "allkeys-lru")
    open_store(server.url).close()  # without a limit nothing is forgotten
    store._redis.config_set("maxmemory", 10 << 20)
    with pytest.raises(UserError, match=r"allkeys-lru.*noeviction"):
        open_store(server.url)
    open_store(server.url, durable=False).close()


def test_a_lock_of_redis_whose_answer_got_lost_is_taken_again(redis_server):
    store, other = (open_store(server_url) for server_url in [redis_server().url] * 2)
    store.append([LoggedEvent("u", "i", T)])
    store._redis.set("ctxrec:writing", store._me, ex=120)  # done, and then the connection broke
    assert other.take_unwritten(5) is None
    assert store.take_unwritten(5) is not None
    store.release()
    assert other.take_unwritten(KEPT_EVENTS) is not None
    store.close()
    other.close()


def test_a_full_disk_at_the_start_is_one_line_and_the_store_opens_when_there_is_room(small_disk):
    folder, filler = str(small_disk / "live"), small_disk / "filler"
    os.makedirs(folder)
    with open(filler, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 20))
    with pytest.raises(UserError, match=rf"store at {folder} cannot be opened .*free some space on its disk") as told:
        open_store(folder)
    assert "\n" not in str(told.value)
    filler.unlink()
    open_store(folder).close()
