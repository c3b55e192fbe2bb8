"""Hours, weekdays and months in a time zone, held against Python's own zones, on the days on which clocks change."""

from __future__ import annotations

import datetime
import zoneinfo

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.core.errors import UserError
from ctxrec.core.time_zones import check_zone
from ctxrec.data import time_columns, zone_offsets
from ctxrec.data.clock import Clock, doubts_of_times
from ctxrec.data.zone_offsets import US, instants, offsets

ZONES = [
    "Asia/Shanghai",
    "America/New_York",
    "Europe/London",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/Sao_Paulo",
]


def local(second: int, zone: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(second, zoneinfo.ZoneInfo(zone))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("num", [300, 6000])  # few are looked up one by one, many by the changes of each year
def test_every_hour_is_that_of_pythons_zones(zone, num):
    times = np.random.default_rng(0).integers(0, 7_258_118_400, num)
    found = Clock(zone).read(times * US + 999_999)
    wanted = [local(second, zone) for second in times.tolist()]
    assert found["hour"].tolist() == [at.hour for at in wanted]
    assert found["weekday"].tolist() == [at.weekday() for at in wanted]
    assert found["month"].tolist() == [at.month for at in wanted]


def test_days_on_which_the_clock_changes():
    # New York, 2024: put forward at 07:00 UTC on 10 March, put back at 06:00 UTC on 3 November.
    def at(text: str) -> int:
        return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp())

    around = [
        at("2024-03-10T06:59:59"),
        at("2024-03-10T07:00:00"),
        at("2024-11-03T05:59:59"),
        at("2024-11-03T06:00:00"),
    ]
    for seconds in (np.array(around), np.array(around * 1000)):
        assert Clock("America/New_York").read(seconds * US)["hour"].tolist()[:4] == [1, 3, 1, 1]
        assert offsets(seconds, "America/New_York").tolist()[:4] == [-18_000, -14_400, -14_400, -18_000]
    # In Shanghai a Sunday evening in UTC is Monday, and the last evening of January is February.
    found = Clock("Asia/Shanghai").read(np.array([at("2024-03-10T17:00:00"), at("2024-01-31T16:00:00")]) * US)
    assert {k: v.tolist() for k, v in found.items()} == {"hour": [1, 0], "weekday": [0, 3], "month": [3, 2]}


@pytest.mark.parametrize("zone", ZONES)
def test_local_times_become_the_instants_of_pythons_zones(zone):
    rng = np.random.default_rng(1)
    shown = rng.integers(10 * zone_offsets.DAY, 2_000_000_000, 3000)
    begin = np.datetime64("1970-01-01T00:00:00")
    made = [(begin + s).astype(datetime.datetime).replace(tzinfo=zoneinfo.ZoneInfo(zone)) for s in shown]
    assert instants(shown * US + 7, zone).tolist() == [int(at.timestamp()) * US + 7 for at in made]


def test_times_that_the_clock_shows_twice_or_never():
    texts = ["2024-11-03T01:30:00", "2024-03-10T02:30:00", "2024-11-03T01:30:00-05:00"]
    times, status = time_columns.to_times(pa.array(texts), "iso8601", zone="America/New_York")
    shown = [datetime.datetime.fromtimestamp(t / US, datetime.UTC).isoformat() for t in times.tolist()]
    assert shown == ["2024-11-03T05:30:00+00:00", "2024-03-10T07:30:00+00:00", "2024-11-03T06:30:00+00:00"]
    assert (status == time_columns.TIME_OK).all()


def test_only_times_without_an_offset_are_moved():
    zone, hour = "Asia/Shanghai", 3_600 * US
    moved = ["2024-01-31T08:00:00", "2024-01-31 08:00:00.5", "2024-01-31", "20240131T080000", "2024-01-31T08"]
    kept = [
        "2024-01-31T08:00:00Z",
        "2024-01-31 08:00:00 UTC",
        "2024-01-31T08:00:00+00:00",
        "2024-01-31T08:00-0500",
        "1706688000",
    ]
    for texts, hours in ((moved, 8), (kept, 0)):
        in_utc, _ = time_columns.to_times(pa.array(texts), "iso8601")
        there, status = time_columns.to_times(pa.array(texts), "iso8601", zone=zone)
        assert (status == time_columns.TIME_OK).all() and (in_utc - there).tolist() == [hours * hour] * len(texts)
    moment = datetime.datetime(2024, 1, 31, 8)
    naive, aware = pa.array([moment], pa.timestamp("ms")), pa.array([moment], pa.timestamp("ms", tz="Europe/Paris"))
    for array, hours in ((naive, 8), (aware, 0), (pa.array([moment.date()]), 8)):
        in_utc, there = (time_columns.to_times(array, "timestamp", zone=name)[0] for name in ("UTC", zone))
        assert (in_utc - there).tolist() == [hours * hour]
    days = pa.array([20240131, 20240201])
    in_utc, there = (time_columns.to_times(days, "yyyymmdd", zone=name)[0] for name in ("UTC", zone))
    assert (in_utc - there).tolist() == [8 * hour] * 2
    empty = time_columns.to_times(pa.array([None, "", "no time"]), "iso8601", zone=zone)[1]
    assert empty.tolist() == [time_columns.TIME_MISSING, time_columns.TIME_MISSING, time_columns.TIME_UNPARSABLE]


def test_requests_of_several_zones_at_once():
    times = np.array([0, 0, 0]) * US
    found = Clock("Asia/Shanghai").read(times, [None, "America/New_York", "UTC"])
    assert found["hour"].tolist() == [8, 19, 0] and found["weekday"].tolist() == [3, 2, 3]
    ends = np.array([-62_135_596_800, 253_402_300_799]) * US  # the first and the last time of a request
    assert all(len(values) == 2 for values in Clock("America/New_York").read(ends).values())


def test_positions_have_no_clock():
    constant = Clock("Asia/Shanghai", runs=False).read(np.array([0, 5, 10**15]), [None, "America/New_York", None])
    assert {name: set(values.tolist()) for name, values in constant.items()} == {
        "hour": {0},
        "weekday": {3},
        "month": {1},
    }
    assert "look like positions (0 to 10), not a clock" in doubts_of_times(0, 10, clock=False)[0]
    assert "read as seconds since 1970" in doubts_of_times(0, 2e6, clock=True)[0]
    assert doubts_of_times(8e8, 9e8, clock=True) == []


def test_a_wrong_name_of_a_zone():
    assert check_zone("America/New_York", "timezone") == "America/New_York"
    for name, part in [
        ("Asia/Shanghia", '"Asia/Shanghai"'),
        ("new york", '"America/New_York"'),
        (8, '"Asia/Shanghai"'),
    ]:
        with pytest.raises(UserError, match=part):
            check_zone(name, "timezone")
    for name in ("../../etc/passwd", "localtime", "UTC+8", "", "x" * 10_000):
        with pytest.raises(UserError, match="is no time zone") as refused:
            check_zone(name, "timezone")
        assert len(str(refused.value)) < 250
