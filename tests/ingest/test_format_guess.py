"""The format of times that are texts is guessed from all values; what the values do not tell is said to be unsure."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from ctxrec.core.dataset_spec import load_spec
from ctxrec.ingest.guess import guess, sample_table
from ctxrec.ingest.guess.format_guess import guess_format
from ctxrec.ingest.guess.guess_report import describe_guess
from ctxrec.ingest.guess.spec_text import spec_text


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["01/12/2010 08:26", "13/12/2010 08:26"], "%d/%m/%Y %H:%M"),
        (["12/1/2010 8:26", "12/13/2010 8:26"], "%m/%d/%Y %H:%M"),
        (["31.12.2010"], "%d.%m.%Y"),
        (["31.12.10 8.26"], "%d.%m.%y %H.%M"),
        (["2010/12/01 8:26"], "%Y/%m/%d %H:%M"),
        (["2010/31/12"], "%Y/%d/%m"),
        (["Wed Dec 01 08:26:00 +0000 2010"], "%a %b %d %H:%M:%S %z %Y"),
        (["Wed, 01 Dec 2010 08:26:00 GMT"], "%a, %d %b %Y %H:%M:%S %Z"),
        (["01/Dec/2010:08:26:00 +0100"], "%d/%b/%Y:%H:%M:%S %z"),
        (["01-Dec-10"], "%d-%b-%y"),
        (["December 1, 2010"], "%B %d, %Y"),
        (["31.12.2010, 08:26 Uhr"], "%d.%m.%Y, %H:%M Uhr"),
        (["31.12.2010 08:26:00,123"], "%d.%m.%Y %H:%M:%S,%f"),
        (["12/31/10 8:26 PM"], "%m/%d/%y %I:%M %p"),
        (["08:26 31/12/2010"], "%H:%M %d/%m/%Y"),
        (["2010年12月01日"], "%Y年%m月%d日"),
        (["20101201082600"], "%Y%m%d%H%M%S"),
        (["201012010826"], "%Y%m%d%H%M"),
    ],
)
def test_the_format_is_found(values, wanted):
    found = guess_format(pa.array(values * 3))
    assert found.format == wanted and not found.doubts


@pytest.mark.parametrize(
    "values", [["12:30"], ["1,2"], ["192.168.1.2"], ["1.2.3"], ["v 3"], ["99/99/2010"], [None], []]
)
def test_what_is_no_time_has_no_format(values):
    assert guess_format(pa.array(values, pa.string())) is None


def test_one_late_row_decides_the_order_of_day_and_month():
    """The first 100,000 rows say nothing: their days and months are below 13."""
    rng = random.Random(0)
    values = [
        f"{rng.randint(1, 12):02d}/{rng.randint(1, 12):02d}/{2010 + n % 9} {n % 24:02d}:00" for n in range(100_000)
    ]
    assert guess_format(pa.array(values)).other is not None
    for late, wanted in (("13/12/2018 08:00", "%d/%m/%Y %H:%M"), ("12/13/2018 08:00", "%m/%d/%Y %H:%M")):
        found = guess_format(pa.array([*values, late]))
        assert found.format == wanted and found.other is None and found.decided_by == late


def test_of_two_orders_the_one_is_taken_under_which_the_rows_are_sorted():
    month_first = [f"{1 + n // 10:02d}/{1 + n % 10:02d}/2010" for n in range(60)]
    found = guess_format(pa.array(month_first))
    assert (found.format, found.other) == ("%m/%d/%Y", "%d/%m/%Y") and "the values do not tell" in found.doubts[0]
    unsorted = guess_format(pa.array(["03/04/2020", "01/02/2020", "05/05/2020"]))
    assert (unsorted.format, unsorted.other) == ("%d/%m/%Y", "%m/%d/%Y")


def test_values_of_the_other_order_and_others_are_counted():
    values = [f"{n % 28 + 1:02d}/03/2010" for n in range(100)]
    mixed = guess_format(pa.array([*values, "03/31/2010"]))
    assert mixed.format == "%d/%m/%Y" and "1 values fit another order of day and month" in mixed.doubts[0]
    rubbish = guess_format(pa.array([*values, "soon"]))
    assert rubbish.format == "%d/%m/%Y" and "do not fit" in rubbish.doubts[0]


def test_init_writes_the_format_and_says_what_it_is_not_sure_of(tmp_path):
    log = {"user": [f"u{n % 9}" for n in range(100)], "item": [f"i{n % 13}" for n in range(100)]}
    for times, line, unsure in (
        (["03/04/2020 08:26", "04/04/2020 09:00"] * 50, "not sure: %m/%d/%Y %H:%M fits as well", True),
        (["03/04/2020 08:26", "14/04/2020 09:00"] * 50, "14/04/2020 09:00 decides the order", False),
    ):
        found = guess([sample_table("log.csv", pa.table(log | {"at": times}))])
        text = spec_text(found, folder=str(tmp_path))
        (tmp_path / "dataset.toml").write_text(text)
        assert load_spec(str(tmp_path / "dataset.toml")).events.time_format == "%d/%m/%Y %H:%M"
        assert line in text and ("#? time_format: '03/04/2020 08:26' may be" in text) is unsure
        assert ("[events.time_format] '03/04/2020 08:26' may be" in describe_guess(found)) is unsure
        assert "texts of the form %d/%m/%Y %H:%M without a zone, read as UTC" in text


def test_twelve_digits_are_no_epoch_of_1976(tmp_path):
    log = {"user": [1, 2] * 20, "item": [1, 2, 3, 4] * 10, "at": [201012010800 + n for n in range(40)]}
    spec = guess([sample_table("log", pa.table(log))]).spec
    assert spec.events.time == "at" and spec.events.time_format == "%Y%m%d%H%M"
    real = log | {"at": [201012010800 + 86_400_000 * n for n in range(40)]}
    assert guess([sample_table("log", pa.table(real))]).spec.events.time_format is None


def test_a_column_of_several_forms_names_a_value_that_cannot_be_read():
    log = {"user": [f"u{n % 9}" for n in range(100)], "item": [f"i{n % 13}" for n in range(100)]}
    days = [f"2020-03-{n % 28 + 1:02d}" if n % 5 == 0 else f"{n % 28 + 1:02d}/03/2020" for n in range(100)]
    doubts = " ".join(doubt.text for doubt in guess([sample_table("log", pa.table(log | {"date": days}))]).unsure)
    assert "values such as '02/03/2020' cannot be read as one, and no format reads nearly all" in doubts


def test_a_time_of_day_in_a_column_of_its_own_is_named():
    log = {"user": [f"u{n % 9}" for n in range(100)], "item": [f"i{n % 13}" for n in range(100)]}
    log |= {
        "date": [f"{n % 28 + 1:02d}.03.2020" for n in range(100)],
        "clock": [f"{n % 24:02d}:{n % 60:02d}" for n in range(100)],
    }
    doubts = " ".join(doubt.text for doubt in guess([sample_table("log", pa.table(log))]).unsure)
    assert "date has days alone, and the time of day stands in clock" in doubts


def test_dates_before_1970_are_named_as_such():
    log = {"user": [f"u{n % 9}" for n in range(90)], "item": [f"i{n % 7}" for n in range(90)]}
    log["date"] = [f"{1960 + n % 9}-0{1 + n % 9}-11" for n in range(90)]
    found = guess([sample_table("log", pa.table(log))])
    (told,) = [doubt.text for doubt in found.unsure if doubt.key == "events.time"]
    assert told.startswith(
        "date has times before 1970 or after 2199, such as '1960-01-11', and the events with such times are rejected"
    )
