"""What `prepare` checks before it reads anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared_logs import LOG, write_csv, write_spec

from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import guess, sample_files
from ctxrec.ingest.source import inspect_source


@pytest.mark.parametrize("key", ["user", "item", "time"])
def test_a_column_that_is_left_open_is_asked_for(key, tmp_path):
    """As `init` leaves it where it finds none."""
    write_csv(tmp_path, [("a", "i", 1)])
    with pytest.raises(UserError, match=rf"^\[events\] {key} is empty; name the column that holds the {key}$"):
        inspect_source(load_spec(write_spec(tmp_path, LOG + f'{key} = ""\n')))


def test_several_open_columns_are_no_columns_of_one_name(tmp_path):
    write_csv(tmp_path, [("a", "i", 1)])
    with pytest.raises(UserError, match=r"^\[events\] user is empty"):
        inspect_source(load_spec(write_spec(tmp_path, LOG + 'user = ""\nitem = ""\n')))


def test_the_key_of_a_table_is_asked_for(tmp_path):
    write_csv(tmp_path, [("a", "i", 1)])
    with pytest.raises(UserError, match=r"^\[items\] id is empty; name the column that holds the id of the item$"):
        inspect_source(load_spec(write_spec(tmp_path, LOG + '[items]\npath = "events.csv"\nid = ""\n')))


def test_a_catalogue_in_the_place_of_the_log_is_told_which_column_is_missing(tmp_path):
    rows = [(f"i{n}", f"A thing of number {n}", 10 + n % 7) for n in range(30)]
    write_csv(tmp_path, rows, header="item_id,title,price")
    found = guess([sample_files(str(tmp_path / "events.csv"))])
    with pytest.raises(UserError, match=r"^\[events\] \w+ is empty; name the column that holds the \w+$"):
        inspect_source(found.spec)


def test_what_a_service_stored_is_read_too(tmp_path):
    """Posted events come after the log, and posted rows before the tables, as the first row of an id counts."""
    write_csv(tmp_path, [("a", "i", 1)])
    write_csv(tmp_path, [("i", "red")], header="item_id,colour", name="items.csv")
    write_csv(tmp_path, [("a", 3)], header="user_id,age", name="users.csv")
    tables = '[items]\npath = "items.csv"\n[users]\npath = "users.csv"\nnumeric = ["age"]\n'
    spec = load_spec(write_spec(tmp_path, LOG + tables))
    live = tmp_path / "live"
    assert inspect_source(spec, str(live)) == inspect_source(spec), "there is no store yet"
    for section, name in (("events", "1.csv"), ("events", "2.csv"), ("items", "0-live.csv"), ("users", "0-live.csv")):
        (live / section).mkdir(parents=True, exist_ok=True)
        (live / section / name).write_text((tmp_path / f"{section}.csv").read_text())
    found = inspect_source(spec, str(live))
    assert [Path(info.path).name for info in found.events] == ["events.csv", "1.csv", "2.csv"]
    assert [Path(info.path).name for info in found.items] == ["0-live.csv", "items.csv"]
    assert [Path(info.path).name for info in found.users] == ["0-live.csv", "users.csv"]
    covered = load_spec(write_spec(tmp_path, '[events]\npath = "live/events"\n'))
    assert len(inspect_source(covered, str(live)).events) == 2, "no file is read twice"


def test_files_without_a_row_are_named(tmp_path):
    """A file that was not written to its end, or an upload that failed, must not go unseen."""
    (tmp_path / "log").mkdir()
    for name in ("a", "b"):
        write_csv(tmp_path / "log", [("u", "i", 1)], name=f"{name}.csv")
    spec = load_spec(write_spec(tmp_path, LOG.replace('path = "events.csv"', 'path = "log"')))
    assert inspect_source(spec).notes == []
    for n in range(7):
        (tmp_path / "log" / f"empty{n}.csv").write_text("")
    (tmp_path / "log" / "header.csv").write_text("user_id,item_id")  # cut off before its end
    found = inspect_source(spec)
    (note,) = found.notes
    assert [Path(info.path).name for info in found.events] == ["a.csv", "b.csv"]
    assert note.startswith("warning: [events]: files without any row are left out: ") and note.endswith(", and 3 more")
    assert f"{tmp_path}/log/empty0.csv, " in note and "a.csv" not in note
