"""The stores of posted events: a SQLite folder and a real Redis server, killed and opened again."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from ctxrec.core.dataset_spec import ContextSpec, EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.live.event_files import events_table, write_event_files
from ctxrec.live.opening import open_store
from ctxrec.live.store import KEPT_EVENTS, LoggedEvent, StoreError

T = 1_700_000_000_000_000
SPEC = EventsSpec(
    path="events", user="who", time="at", action="what", value="stars",
    context=ContextSpec(categorical=("device",), numeric=("basket",), text=("query",)),
)  # fmt: skip
WRITER = """
import sys
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
store = open_store(sys.argv[1])
n = 0
while True:
    store.append([LoggedEvent("u", f"i{n}-{k}", n + 1) for k in range(3)])
    print(n, flush=True)
    n += 1
"""


@pytest.fixture(params=["sqlite", "redis"])
def where(request, tmp_path) -> str:
    """Where a fresh store lies."""
    if request.param == "sqlite":
        return str(tmp_path / "store")
    return request.getfixturevalue("redis_server")().url


def test_a_reader_gets_the_events_of_all_users_as_they_came(where, monkeypatch):
    store = open_store(where)
    assert store.events_since(None, 10) == ([], store.events_since(None, 10)[1])
    store.append([LoggedEvent("b", "x", T + 5, "buy", 2.5, {"device": "tv"}), LoggedEvent("a", "y", T)])
    store.append([LoggedEvent("a", "z", T + 1)])
    first, mark = store.events_since(None, 2)
    assert [(e.user_id, e.item_id, e.time_us, e.action) for e in first] == [
        ("b", "x", T + 5, "buy"),
        ("a", "y", T, None),
    ]
    assert [e.context for e in first] == [{"device": "tv"}, {}] and first[0].value == 2.5
    second, mark = open_store(where).events_since(mark, 2)  # another reader, which goes on after the mark
    assert [e.item_id for e in second] == ["z"]
    assert store.events_since(mark, 2) == ([], mark)
    store.append([LoggedEvent("a", "z", T + 1), LoggedEvent("c", "w", T)])  # the first of them is no new event
    assert [e.item_id for e in store.events_since(mark, 9)[0]] == ["w"]


def test_events_come_back_oldest_first_up_to_a_time_and_once(where):
    store = open_store(where)
    first = [
        LoggedEvent("a", "x", T + 2),
        LoggedEvent("a", "y", T, "buy", 2.5, {"device": "tv", "basket": 3, "query": "ü"}),
    ]
    store.append(first)
    store.append([LoggedEvent("a", "z", T + 2), LoggedEvent("b|1", "x", T), LoggedEvent("a", "x", T + 2)])
    store.append([LoggedEvent("a", "x", T + 2, "buy")])  # another action: another event
    found = store.latest(["b|1", "a", "nobody"], [T + 9, T + 9, T + 9])
    assert found[0] == [LoggedEvent("b|1", "x", T)] and found[2] == []
    assert found[1] == [first[1], first[0], LoggedEvent("a", "z", T + 2), LoggedEvent("a", "x", T + 2, "buy")]
    assert store.latest(["a", "a", "a"], [T, T + 1, T - 1]) == [[first[1]], [first[1]], []], (
        "an event at the time counts"
    )
    assert store.latest([], []) == []
    again = open_store(where)
    assert again.latest(["a"], [T + 9]) == [found[1]]
    store.close()
    again.close()


def test_a_long_history_gives_its_latest_events(where):
    store = open_store(where)
    num = KEPT_EVENTS + 30
    store.append([LoggedEvent("a", f"i{n}", T + n, "v") for n in reversed(range(num))])
    (found,) = store.latest(["a"], [T + num])
    assert [e.item_id for e in found] == [f"i{n}" for n in range(30, num)]
    store.close()


def test_threads_share_a_store(where):
    store, failed = open_store(where), []

    def work(thread: int) -> None:
        try:
            for n in range(20):
                store.append([LoggedEvent(f"u{thread}", f"i{n}", T + n)])
                assert len(store.latest([f"u{thread}"], [T + 99])[0]) == n + 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store.close()


def test_kill_9_of_the_writer_loses_no_acknowledged_event(where):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, where], stdout=subprocess.PIPE, text=True)
    for _ in range(40):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 39 + len(writer.stdout.read().splitlines())
    writer.wait()
    store = open_store(where)
    (found,) = store.latest(["u"], [T])
    counts = Counter(e.time_us for e in found)
    newest = max(counts)
    assert newest >= acknowledged + 1, "event n + 1 came with the acknowledgement of n"
    oldest = min(counts)  # cut by the limit
    assert sorted(counts) == list(range(oldest, newest + 1))
    assert all(num == 3 for time_us, num in counts.items() if time_us > oldest), "all of a call or none"
    store.close()


def test_kill_9_of_redis_loses_no_acknowledged_event_and_an_error_says_that_it_is_away(redis_server):
    server = redis_server()
    store = open_store(server.url)
    store.append([LoggedEvent("a", f"i{n}", T + n) for n in range(10)])
    server.kill()
    for call in (lambda: store.append([LoggedEvent("a", "x", T)]), lambda: store.latest(["a"], [T])):
        with pytest.raises(StoreError, match="Redis"):
            call()
    server.start()
    assert [e.item_id for e in store.latest(["a"], [T + 10])[0]] == [f"i{n}" for n in range(10)]


def test_a_redis_that_may_forget_is_refused(redis_server):
    server = redis_server(appendfsync="everysec")
    with pytest.raises(UserError, match=r"appendfsync everysec; expected yes and always.*durable=false"):
        open_store(server.url)
    open_store(server.url, durable=False).close()
    server.kill()
    with pytest.raises(UserError, match="does not answer"):
        open_store(server.url)


def test_a_store_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be opened.*writable folder"):
        open_store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="expected a local folder, or a URL"):
        open_store("s3://bucket/store")


def test_files_hold_every_event_once_whatever_dies_between(where, tmp_path):
    out = tmp_path / "files"
    store = open_store(where)
    assert write_event_files(store, str(out), SPEC) == 0 and not out.exists()
    store.append([LoggedEvent("u", f"i{n}", T + n) for n in range(25)])
    assert write_event_files(store, str(out), SPEC, rows=10) == 25
    assert len(list(out.iterdir())) == 3

    store.append([LoggedEvent("v", "x", T), LoggedEvent("v", "y", T)])
    taken = store.take_unwritten(100)  # its writer dies before, or after, the file is there
    other = open_store(where)
    assert other.take_unwritten(100) is None, "one process at a time"
    store.append([LoggedEvent("v", "z", T)])
    store.release()
    again = other.take_unwritten(100)
    assert (again.name, again.events) == (taken.name, taken.events), "the same file, without what came later"
    other.written(again)
    assert write_event_files(store, str(out), SPEC) == 1
    assert write_event_files(other, str(out), SPEC) == 0
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(out.iterdir())]).to_pylist()
    assert sorted((r["who"], r["item_id"]) for r in rows) == sorted([("u", f"i{n}") for n in range(25)] + [("v", "z")])
    store.close()
    other.close()


def test_items_change_and_every_reader_learns_of_it(where):
    store, other = open_store(where), open_store(where)
    assert other.row_changes("items", 0) == []
    last = store.change_rows("items", {"a": {"title": "ü", "price": 1.5}, "b": {"kinds": ["x", "y"]}})
    first, second = other.row_changes("items", 0)
    assert (first.id, first.row) == ("a", {"title": "ü", "price": 1.5}) and second.number == last
    assert other.row_changes("items", first.number) == [second] and other.row_changes("items", last) == []
    after = other.change_rows("items", {"a": None, "b": {}})
    assert [(c.id, c.row) for c in store.row_changes("items", last)] == [("a", None), ("b", {})]
    store.close()
    again = open_store(where)
    assert [(c.id, c.row, c.number <= after) for c in again.row_changes("items", 0)] == [
        ("a", None, True),
        ("b", {}, True),
    ]
    assert again.change_rows("items", {"a": {}}) > after
    for each in (again, other):
        each.close()


def test_rows_of_users_are_their_own_table(where):
    store, other = open_store(where), open_store(where)
    assert store.posted_rows("users", ["a", "b"]) == {} == store.posted_rows("users", [])
    last = store.change_rows("users", {"a": {"age": 30, "about": "ü"}, "b": {}, "c": None})
    assert store.row_changes("items", 0) == [], "items and users have nothing in common"
    assert store.change_rows("items", {"a": {"title": "hat"}}) >= 1
    assert other.posted_rows("users", ["c", "a", "nobody", "b"]) == {"a": {"age": 30, "about": "ü"}, "b": {}, "c": None}
    assert [(c.id, c.row) for c in other.row_changes("users", last)] == []
    store.change_rows("users", {"a": {"age": 31}})
    assert other.posted_rows("users", ["a"]) == {"a": {"age": 31}}, "a row is replaced as a whole"
    assert [c.id for c in other.row_changes("users", last)] == ["a"]
    for each in (store, other):
        each.close()
    again = open_store(where)
    assert again.posted_rows("users", ["a", "c"]) == {"a": {"age": 31}, "c": None}
    again.close()


def test_columns_are_those_of_the_log():
    events = [
        LoggedEvent("u", "i", T + 7, "buy", 4.0, {"device": True, "basket": 2, "query": "red"}),
        LoggedEvent("u", "i", T, context={"device": 3.0, "basket": None}),
        LoggedEvent("u", "i", T, context={"device": 2.5, "other": 1}),
    ]
    table = events_table(events, SPEC)
    assert table.column_names == ["who", "item_id", "at", "what", "stars", "device", "query", "basket"]
    assert table.column("at").cast(pa.int64()).to_pylist() == [T + 7, T, T]
    assert table.column("what").to_pylist() == ["buy", None, None]
    assert table.column("stars").to_pylist() == [4.0, None, None]
    assert table.column("device").to_pylist() == ["true", "3", "2.5"]
    assert table.column("basket").to_pylist() == [2.0, None, None]
    assert table.column("query").to_pylist() == ["red", None, None]
    plain = EventsSpec(path="events")
    assert events_table(events, plain).column_names == ["user_id", "item_id", "timestamp"]


def test_an_export_that_fails_once_goes_on_with_the_next_round(tmp_path, monkeypatch):
    """A write of the mark may find the database locked, as by VACUUM or a backup; no lock may outlive it."""
    monkeypatch.setattr("ctxrec.live.sqlite._BUSY_S", 0.05)
    store = open_store(str(tmp_path / "store"))
    other = open_store(str(tmp_path / "store"))
    store.append([LoggedEvent("u", "i", T)])
    holder = sqlite3.connect(tmp_path / "store" / "live.sqlite", isolation_level=None)
    for _ in range(3):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            write_event_files(store, str(tmp_path / "files"), SPEC)
        holder.execute("ROLLBACK")
    assert store.num_unwritten() == 1
    taken = store.take_unwritten(10)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.written(taken)
    holder.execute("ROLLBACK")
    assert write_event_files(other, str(tmp_path / "files"), SPEC) == 1, "the other process is not kept out"
    assert store.num_unwritten() == other.num_unwritten() == 0
    holder.close()
    store.close()
    other.close()


def test_an_export_from_redis_that_fails_once_goes_on_with_the_next_round(redis_server, tmp_path, monkeypatch):
    store = open_store(redis_server().url)
    store.append([LoggedEvent("u", "i", T)])

    def fail(*args, **options):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store._redis, "xrange", fail)
        with pytest.raises(StoreError, match="away"):
            write_event_files(store, str(tmp_path), SPEC)
    assert store.num_unwritten() == 1
    assert write_event_files(store, str(tmp_path), SPEC) == 1 and store.num_unwritten() == 0
    store.close()


def test_services_that_share_a_store_learn_of_each_other(where):
    one, replica, other = open_store(where), open_store(where), open_store(where)
    assert one.other_services("a") == [] and replica.other_services("a") == []
    assert other.other_services("b") == ["a"]
    assert one.other_services("a") == ["b"] and replica.other_services("a") == ["b"]
    for each in (one, replica, other):
        each.close()


def test_a_service_that_died_is_forgotten(tmp_path):
    died, store = open_store(str(tmp_path)), open_store(str(tmp_path))
    died.other_services("a")
    assert store.other_services("b") == ["a"]
    died.close()
    assert store.other_services("b") == []
    store.close()


def test_many_events_at_one_time_are_read_by_an_index(tmp_path):
    """A sort of 60,000 events of one time for the latest thousand took half a second."""
    store = open_store(str(tmp_path))
    store.append([LoggedEvent("u", f"i{n}", T) for n in range(KEPT_EVENTS + 5)])
    assert [e.item_id for e in store.latest(["u"], [T])[0]] == [f"i{n}" for n in range(5, KEPT_EVENTS + 5)]
    plan = sqlite3.connect(tmp_path / "live.sqlite").execute(
        "EXPLAIN QUERY PLAN SELECT item FROM events INDEXED BY events_by_time WHERE user = 'u' AND time_us <= 5 "
        "ORDER BY time_us DESC, seq DESC LIMIT 1000"
    )
    assert not any("TEMP B-TREE" in row[-1] for row in plan)
    store.close()
