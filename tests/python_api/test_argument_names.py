"""What a caller in Python is told: in the names of arguments, and as warnings where nothing is printed."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
from here import prepare_here

import ctxrec
from ctxrec.core.errors import UserError
from ctxrec.core.time_formats import EXAMPLE
from ctxrec.python_api.argument_names import in_python

LOG = pd.DataFrame(
    {
        "user_id": [f"u{n % 6}" for n in range(60)],
        "item_id": [f"i{n % 10}" for n in range(60)],
        "timestamp": [1_600_000_000 + n * 40_000 for n in range(60)],
    }
)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    prepare_here(monkeypatch)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'write time_format = "%d/%m/%Y" (or "%m/%d/%Y", which fits as well) under [events]',
            'give time_format="%d/%m/%Y" (or "%m/%d/%Y", which fits as well)',
        ),
        (f"name it as time_format under [events], such as time_format = {EXAMPLE}", f"name it with time_format=, such as {EXAMPLE}"),
        ('Correct time_format under [events], which is "%Y"', 'Correct time_format=, which is "%Y"'),
        ("events.time_format is '%d'", "time_format is '%d'"),
        ('[events.actions] has weights, and [events] names no column; expected action = "COLUMN" in [events]',
         'actions={...} has weights, and interactions names no column; expected action="COLUMN"'),
        ("lower split.valid and split.test in the dataset spec", "lower valid and test of split="),
        ("Name a column of action types in [events] action", "Name a column of action types with action="),
        ("column 'a' of [events] has A1, and 'b' of [items] B1", "column 'a' of interactions has A1, and 'b' of items B1"),
        ("no space is left", "no space is left"),
    ],
)  # fmt: skip
def test_a_key_of_the_spec_is_told_as_an_argument(text, wanted):
    assert in_python(text) == wanted


@pytest.mark.parametrize(
    ("log", "given", "told"),
    [
        (LOG.assign(timestamp="soon"), {"time": "timestamp"}, r"no event is left .* name it with time_format=, such as \"%d"),
        (LOG.assign(timestamp="03/04/2023"), {"time_format": "%d.%m.%Y"}, r"Correct time_format=, which is \"%d\.%m\.%Y\", such as"),
        (LOG.assign(timestamp="03/04/2023"), {"time_format": "%d/%M/%Y"}, r"^time_format is '%d/%M/%Y', which has a day and no month"),
        (LOG, {"actions": {"buy": 1.0}}, r"^actions=\{\.\.\.\} has weights of actions, .* expected action=\"COLUMN\""),
        (LOG, {"timezone": "Mars"}, r"^timezone is 'Mars'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_table_is_told_in_python(log, given, told, tmp_path):
    with pytest.raises(UserError, match=told) as raised:
        ctxrec.prepare(log, out=tmp_path / "data", verbose=False, **given)
    assert not [word for word in ("[events", "dataset spec", ".parquet") if word in str(raised.value)]


def test_rows_that_are_dropped_are_warnings_where_nothing_is_printed(tmp_path, capsys):
    log = LOG.astype({"user_id": object, "timestamp": object})
    log.loc[3, "user_id"] = None
    log.loc[5:6, "timestamp"] = -5
    with pytest.warns(UserWarning) as warned:
        ctxrec.prepare(log, out=tmp_path / "data", verbose=False)
    told = [str(one.message) for one in warned]
    assert any("rejected 1: missing user id; the first is row 4 of the table interactions" in text for text in told), (
        told
    )
    assert any("rejected 2: time before 1970 or after 2199" in text for text in told), told
    assert all(one.filename == __file__ for one in warned if "rows are left out" in str(one.message))
    assert capsys.readouterr().out == ""
    ctxrec.prepare(log, out=tmp_path / "again")
    assert "rejected 1: missing user id; the first is row 4 of the table interactions" in capsys.readouterr().out


def test_a_log_without_faults_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ctxrec.prepare(LOG, out=tmp_path / "data", verbose=False)


def test_an_open_format_is_said_where_nothing_is_printed(tmp_path):
    log = LOG.assign(timestamp=[f"0{n % 9 + 1}/04/2023" for n in range(60)])
    with pytest.warns(UserWarning, match="may be %d/%m/%Y or %m/%d/%Y"):
        ctxrec.prepare(log, out=tmp_path / "data", verbose=False)
