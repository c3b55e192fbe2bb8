"""Files of posted rows: what `prepare` reads of them is what was posted, whoever is killed when, and rows are rarely rewritten."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ItemsSpec, UsersSpec
from ctxrec.data.posted_rows import file_table
from ctxrec.live.opening import open_store
from ctxrec.live.row_files import RowFiles
from ctxrec.live.store import HistoryStore, Table

USERS = UsersSpec(path="u", id="who", categorical=("gender",), numeric=("age",))
ITEMS = ItemsSpec(path="i", id="sku", text=("title",))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.001  # that every look takes
        return self.seconds


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path) -> HistoryStore:
    where = str(tmp_path / "store") if request.param == "sqlite" else request.getfixturevalue("redis_server")().url
    made = open_store(where)
    request.addfinalizer(made.close)
    return made


def files_of(store: HistoryStore, table: Table, folder: Path, now: Clock | None = None) -> RowFiles:
    return RowFiles(store, table, str(folder), USERS if table == "users" else ITEMS, keep_s=10.0, now=now or Clock())


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows by id as `prepare` takes them: the first of each, in the order of the files' names."""
    made: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            made.setdefault(row.get("who") or row["sku"], row)
    return made


def test_posted_users_become_files_with_the_columns_of_the_user_file(store, tmp_path):
    folder, now = tmp_path / "out", Clock()
    files = files_of(store, "users", folder, now)
    assert files.write() == 0 and not folder.exists()
    store.change_rows("users", {"a": {"gender": "F", "age": 3}, "b": {"age": 4.5}, "gone": {"age": 1}})
    last = store.change_rows("users", {"gone": None})
    assert files.write() == 3
    (file,) = folder.iterdir()
    assert file.name.startswith(f"0-live-{store.id}-") and file.name.endswith(f"-0-{last}.parquet")
    assert read(folder) == {
        "a": {"who": "a", "gender": "F", "age": 3.0},
        "b": {"who": "b", "gender": None, "age": 4.5},
        "gone": {"who": "gone", "gender": None, "age": None},
    }
    assert files.write() == 0
    store.change_rows("users", {"a": {"age": 5}})
    assert files.write() == 1 and len(list(folder.iterdir())) == 2, "three rows are more than twice one"
    assert read(folder)["a"] == {"who": "a", "gender": None, "age": 5.0}
    assert RowFiles(store, "users", str(folder), None).write() == 0


def test_rows_are_written_about_log_times_and_lie_in_about_log_files(store, tmp_path):
    folder, now = tmp_path / "out", Clock()
    files, rounds, written, most = files_of(store, "users", folder, now), 300, 0, 0
    for n in range(rounds):
        store.change_rows("users", {f"u{n}-{k}": {"age": k} for k in range(1 + n % 5)})
        written += files.write()
        now.seconds += 60
        most = max(most, len(list(folder.iterdir())))
    rows = len(read(folder))
    assert rows == sum(1 + n % 5 for n in range(rounds))
    assert written <= rows * (1 + math.log(rows, 1.5))
    assert written < rows * rounds / 20, "a whole file each round would be half of rows * rounds"
    assert most <= 2 + 2 * math.log2(rows)


def test_what_is_taken_away_leaves_all_files(store, tmp_path):
    folder, now = tmp_path / "out", Clock()
    files = files_of(store, "items", folder, now)
    for n in range(9):
        store.change_rows("items", {f"i{n}": {"title": f"hat {n}"} for n in range(n * n, (n + 1) ** 2)})
        files.write()
        now.seconds += 60
    store.change_rows("items", {"i3": None, "i70": None})
    files.write()
    now.seconds += 60
    files.write()
    assert read(folder).keys() == {f"i{n}" for n in range(81)} - {"i3", "i70"}
    assert len(list(folder.iterdir())) == 1, "all became one, and the others are gone after a while"
    store.change_rows("items", {f"i{n}": None for n in range(81)})
    files.write()
    again = files_of(store, "items", folder, now)
    again.write()
    now.seconds += 60
    again.write()
    assert read(folder) == {}


def test_a_file_that_another_replaced_stays_for_a_while(store, tmp_path):
    folder, now = tmp_path / "out", Clock()
    folder.mkdir()
    old = folder / f"0-live-{store.id}.parquet"  # of an earlier version: all rows in one file
    pq.write_table(file_table([{"user_id": "a", "age": 1}, {"user_id": "b", "age": 2}], USERS, "users"), old)
    (folder / "mine.parquet").write_bytes(old.read_bytes())
    store.change_rows("users", {"a": {"age": 7}, "b": {"age": 2}})
    files = files_of(store, "users", folder, now)
    files.write()
    assert old.exists() and read(folder)["a"]["age"] == 7
    now.seconds += 11
    files.write()
    assert not old.exists() and (folder / "mine.parquet").exists() and len(list(folder.iterdir())) == 2


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("table", ["users", "items"])
def test_what_is_read_is_what_was_posted_whoever_is_killed(tmp_path, monkeypatch, table, seed):
    """Two replicas write the files of one store; either may end before or after any change of a file."""
    store, folder, chance = open_store(str(tmp_path / "store")), tmp_path / "out", random.Random(seed)
    now, deadly = Clock(), 0.0

    def mortal(call: Any) -> Any:
        def run(*args: Any) -> None:
            if chance.random() < deadly:
                raise Killed
            call(*args)
            if chance.random() < deadly:
                raise Killed

        return run

    monkeypatch.setattr(storage, "write_bytes", mortal(storage.write_bytes))
    monkeypatch.setattr(storage, "delete", mortal(storage.delete))
    replicas = [files_of(store, table, folder, now) for _ in range(2)]
    column, posted, seen = "age" if table == "users" else "title", {}, set()
    for step in range(60):
        names = [f"r{chance.randrange(60)}" for _ in range(chance.randrange(1, 6))]
        rows = {
            n: None if chance.random() < 0.15 else {column: step if table == "users" else f"hat {step}"} for n in names
        }
        store.change_rows(table, rows)
        posted |= rows
        deadly = 0.2 if chance.random() < 0.5 else 0.0
        for place in range(2):
            if chance.random() < 0.6:
                try:
                    replicas[place].write()
                except Killed:
                    replicas[place] = files_of(store, table, folder, now)
        now.seconds += chance.choice([0.1, 5.0, 30.0])
        if step % 10 == 9:
            deadly = 0.0
            for files in replicas:
                files.write()
            found = {name: row[column] for name, row in read(folder).items()}
            expected = {name: None if row is None else row[column] for name, row in posted.items()}
            if table == "items":  # what was taken away may stay for a while
                found = {name: value for name, value in found.items() if expected[name] is not None}
                expected = {name: value for name, value in expected.items() if value is not None}
            assert found == expected
            seen |= set(found)
    assert len(seen) > 40
    posted["r0"] = None
    for _ in range(2):
        now.seconds += 1e6
        store.change_rows(table, {"r0": None})
        for files in replicas:
            files.write()
    now.seconds += 1e6
    for files in replicas:
        files.write()
    assert read(folder).keys() == {name for name, row in posted.items() if row is not None or table == "users"}
    store.close()
