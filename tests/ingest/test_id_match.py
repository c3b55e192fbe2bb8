"""Items of a log that a table spells otherwise: an error where none is there, else a warning that names the difference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from prepared_logs import LAST, LOG, run, write_csv

from ctxrec.core.errors import UserError
from ctxrec.ingest.id_match import check_any_match, note_on_missing
from ctxrec.ingest.prepare_report import summary

ITEMS = '[items]\npath = "items.csv"\nid = "sku"\ntext = ["title"]\n'


@pytest.mark.parametrize(
    ("log", "table", "told"),
    [
        (["7", "8"], ["007", "008"], "2 of them differ by leading zeros alone"),
        (["a1", "B2"], ["A1", "b2"], "2 of them differ by capitals alone"),
        (["7.0", "8"], ["7", "9"], '1 of them differ by an ending ".0" alone'),
        ([" x"], ["x"], "1 of them differ by blanks around them alone"),
        (["x"], ["y"], "Write both ids in the same way, or name the column of the other ids"),
    ],
)
def test_the_difference_in_spelling_is_named(log, table, told):
    with pytest.raises(UserError, match="no item of the log is in the item table: column 'item' of ") as raised:
        check_any_match(pa.array(log), pa.array(table), knows_any=False, column="item", key="sku")
    assert told in str(raised.value) and repr(log[0]) in str(raised.value) and repr(table[0]) in str(raised.value)


def test_few_missing_items_are_a_note_and_many_a_warning():
    table, missing = pa.array(["007", "8"]), pa.array(["7"])
    (note,) = note_on_missing(missing, table, np.array([50, 49, 1]))
    assert note == "1 items of the log are in no item table, such as '7'; kept with empty content"
    (note,) = note_on_missing(missing, table, np.array([5, 4, 1]))
    assert note.startswith("warning: 1 items of the log are in no item table, with 10.0% of the training events;")
    assert "The log has '7', the table '007', '8'. 1 of them differ by leading zeros alone" in note
    assert note_on_missing(missing[:0], table, np.array([5, 4])) == []
    (note,) = note_on_missing(missing, table[:0], np.array([1]))
    assert note.startswith("warning: the item table has no row, so no item has content.")


def test_prepare_stops_where_nothing_matches_and_warns_where_little_does(ray_cluster, tmp_path):
    write_csv(tmp_path, [(f"u{n % 5}", n % 7, 1_700_000_000 + n) for n in range(60)])
    write_csv(tmp_path, [(f"{n:04d}", f"Thing {n}") for n in range(7)], header="sku,title", name="items.csv")
    with pytest.raises(
        UserError, match=r"no item of the log is .* leading zeros alone: write both ids in the same way"
    ):
        run(tmp_path, LOG + ITEMS + LAST)
    write_csv(tmp_path, [("3", "Thing"), ("0004", "Thing")], header="sku,title", name="items.csv")
    text = summary(run(tmp_path, LOG + ITEMS + LAST))
    assert "\n  warning: 6 items of the log are in no item table, with " in text and "differ by leading zeros" in text
