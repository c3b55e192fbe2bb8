"""What `prepare` checks before it reads anything."""

from __future__ import annotations

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
