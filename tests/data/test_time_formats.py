"""Times of a named format: which texts fit it, which formats a spec may name, and what it says of others."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.data import time_columns
from ctxrec.data.time_columns import TIME_MISSING, TIME_OK, TIME_OUT_OF_RANGE, TIME_UNPARSABLE

US = 1_000_000


def moment(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()) * US


@pytest.mark.parametrize(
    ("time_format", "text", "wanted"),
    [
        ("%d/%m/%Y %H:%M", "01/12/2010 08:26", "2010-12-01T08:26"),
        ("%m/%d/%Y %H:%M", "12/1/2010 8:26", "2010-12-01T08:26"),
        ("%d.%m.%Y", "1.12.2010", "2010-12-01"),
        ("%d.%m.%y %H.%M", " 01.12.10 08.26 ", "2010-12-01T08:26"),
        ("%Y%m%d", "20101201", "2010-12-01"),
        ("%Y%m%d%H%M%S", "20101201082600", "2010-12-01T08:26"),
        ("%Y-%m-%dT%H:%M:%S%z", "2010-12-01T08:26:00+02:00", "2010-12-01T06:26"),
        ("%a %b %d %H:%M:%S %z %Y", "Wed Dec 01 08:26:00 +0100 2010", "2010-12-01T07:26"),
        ("%m/%d/%Y %I:%M %p", "12/01/2010 08:26 PM", "2010-12-01T20:26"),
        ("%d.%m.%Y, %H:%M Uhr", "01.12.2010, 08:26 Uhr", "2010-12-01T08:26"),
    ],
)
def test_a_text_of_the_format_is_its_moment(time_format, text, wanted):
    for column in (pa.array([text]), pa.array([text], pa.large_string()), pa.array([text]).dictionary_encode()):
        assert time_columns.detect_times([column], time_format).unit == "format"
        times, status = time_columns.to_times(column, "format", time_format=time_format)
        assert status.tolist() == [TIME_OK] and times.tolist() == [moment(wanted)]


def test_a_text_that_does_not_fit_as_a_whole_says_so():
    texts = ["31/12/2010", "12/31/2010", "31/12/2010 08:00", "31/12/10", "2010-12-31", "1293753600", "now", "", None]
    texts += ["31/12/1969", "31/12/2250"]
    _, status = time_columns.to_times(pa.array(texts), "format", time_format="%d/%m/%Y")
    wrong = [TIME_UNPARSABLE] * 6
    assert status.tolist() == [TIME_OK, *wrong, TIME_MISSING, TIME_MISSING, TIME_OUT_OF_RANGE, TIME_OUT_OF_RANGE]


@pytest.mark.parametrize(
    ("time_format", "form"),
    [("%Y %j", "{y} {d}"), ("%j/%y", "{d}/{y2}"), ("%Y%j", "{y}{d}"), ("%Y-%j %z", "{y}-{d} +0200")],
)
def test_a_day_that_a_year_does_not_have_is_no_time(time_format, form):
    """pandas reads it as the first day of the next year."""
    texts = [
        form.format(y=year, y2=f"{year % 100:02d}", d=day)
        for year, day in ((2023, 365), (2023, 366), (2024, 366), (2100, 366))
    ]
    _, status = time_columns.to_times(pa.array(texts), "format", time_format=time_format)
    last = TIME_OK if "%y" in time_format else TIME_UNPARSABLE  # 00 is the year 2000, which has it
    assert status.tolist() == [TIME_OK, TIME_UNPARSABLE, TIME_OK, last]


def test_numbers_are_read_by_a_format_of_digits_and_timestamps_never():
    column = pa.array([20101201082600, 2010120108260, None])
    times, status = time_columns.to_times(column, "format", time_format="%Y%m%d%H%M%S")
    assert status.tolist() == [TIME_OK, TIME_UNPARSABLE, TIME_MISSING], "13 digits are not taken for a shorter month"
    assert times.tolist() == [moment("2010-12-01T08:26"), 0, 0]
    posted = pa.array([moment("2024-01-01")], pa.timestamp("us", tz="UTC"))  # as a service stores its events
    for time_format in ("%d/%m/%Y", "%Y%m%d%H%M%S"):
        assert time_columns.to_times(posted, "format", time_format=time_format)[0].tolist() == [moment("2024-01-01")]


@pytest.mark.parametrize(
    ("time_format", "number", "wanted"),
    [("%d%m%Y", 1122010, "2010-12-01"), ("%y%m%d", 50301, "2005-03-01"), ("%j%Y", 52010, "2010-01-05")],
)
def test_a_number_has_lost_the_zeros_that_its_format_begins_with(time_format, number, wanted):
    times, status = time_columns.to_times(pa.array([number, 31_122_010]), "format", time_format=time_format)
    assert status[0] == TIME_OK and times[0] == moment(wanted)
    _, status = time_columns.to_times(pa.array([str(number)]), "format", time_format=time_format)
    assert status.tolist() == [TIME_UNPARSABLE], "a text has all its characters"


def test_a_format_without_an_offset_is_of_the_zone():
    column = pa.array(["01.07.2010 12:00"])
    in_berlin, _ = time_columns.to_times(column, "format", time_format="%d.%m.%Y %H:%M", zone="Europe/Berlin")
    assert in_berlin.tolist() == [moment("2010-07-01T10:00")]
    named = pa.array(["01.07.2010 12:00 +0000"])
    times, _ = time_columns.to_times(named, "format", time_format="%d.%m.%Y %H:%M %z", zone="Europe/Berlin")
    assert times.tolist() == [moment("2010-07-01T12:00")]


@pytest.mark.parametrize(
    ("time_format", "told"),
    [
        ("%d/%M/%Y", "has a day and no month; %M is the minutes, and %m the month"),
        ("%d/%m", "has no year; expected %Y"),
        ("%d/%m/%Q", "%Q is no directive; expected some of %a"),
        ("%d/%m/%Y %", "% is no directive"),
        ("%d/%m/%Y %I:%M", "expected %I .* and %p .* together"),
        ("%Y %m %d %d", "has %d twice"),
        ("%d.%m.%Y %H:%M %z %Z", "%z and %Z are both the offset or zone; expected one of them"),
        ("%Y %y-%m-%d", "%Y and %y are both the year"),
        ("%d %b %B %Y", "%b and %B are both the month"),
        ("%m/%Y %H:%M", "has an hour and no day; expected %d"),
        (5, "time_format is 5; expected a text such as"),
        ("dd/mm/yyyy", 'has no year; expected %Y .* such as "%d/%m/%Y'),
    ],
)
def test_a_format_that_tells_no_day_is_a_users_mistake(time_format, told):
    with pytest.raises(UserError, match=f"^events.time_format is '.*', (which |and |where ).*|{told}") as raised:
        EventsSpec(path="x", time_format=time_format)
    assert pytest.importorskip("re").search(told, str(raised.value))
