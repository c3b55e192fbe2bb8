"""Times that are no epoch numbers: dates, timestamps, texts of ISO 8601 or of a named format, and whole numbers such as
20240131, as microseconds.

Legend: N rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import time_formats
from ctxrec.core.time_zones import UTC
from ctxrec.data.zone_offsets import instants

US = 1_000_000  # microseconds a second
_DAY = 86_400 * US
MAX_TIME_US = 7_258_118_400 * 1_000_000  # 2200-01-01; times from here on, and times before 1970, are rejected

_OFFSET = r"Z$|[T ][0-9].*[+-][0-9:]+$"  # a text that names its offset; a date such as 2024-01-31 does not
_END = r"\s*(?:Z|[+-][0-9:]+)?$"  # of a time, with its zone


def stamp_times(array: pa.Array, zone: str = UTC) -> np.ndarray:
    """Dates and timestamps as int64 microseconds [N], 0 where null; those that would overflow become MAX_TIME_US or -1.

    Dates, and timestamps of a type without a time zone, are those of `zone`.
    """
    own = getattr(array.type, "tz", None)
    seconds = array.cast(pa.timestamp("s", tz=own), safe=False).cast(pa.int64())
    times = array.cast(pa.timestamp("us", tz=own), safe=False).cast(pa.int64())
    late, early = pc.greater_equal(seconds, MAX_TIME_US // US), pc.less(seconds, -1)
    found = (
        pc.case_when(pc.make_struct(late, early), MAX_TIME_US, -1, times).fill_null(0).to_numpy(zero_copy_only=False)
    )
    return found if own is not None else _local(found, zone, array.is_valid().to_numpy(zero_copy_only=False))


def _local(times: np.ndarray, zone: str, here: np.ndarray) -> np.ndarray:
    """Microseconds [N] of which those `here`, bool [N], are read from the clock of a zone, as instants."""
    if zone == UTC:
        return times
    here = here & (times >= 0) & (times < MAX_TIME_US)
    moved = times.copy()
    moved[here] = instants(times[here], zone)
    return moved


def calendar_times(numbers: np.ndarray, zone: str = UTC) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers such as 20240131 as microseconds of the day's begin in a zone: int64 [N]; and which are such, bool [N]."""
    with np.errstate(invalid="ignore"):
        maybe = (numbers >= 19_700_101) & (numbers < 22_000_101) & (numbers == np.floor(numbers))
    digits = pd.Series(np.where(maybe, numbers, 0).astype(np.int64).astype(str), dtype=object)
    stamps = pd.to_datetime(digits.where(pd.Series(maybe)), format="%Y%m%d", utc=True, errors="coerce")
    micros = stamps.astype("datetime64[us, UTC]").astype("int64").to_numpy()
    known = stamps.notna().to_numpy()
    return _local(np.where(known, micros, 0), zone, known), known


def iso_times(texts: pa.Array, zone: str = UTC) -> tuple[np.ndarray, np.ndarray]:
    """Texts as microseconds: int64 [N], 0 where it is no time; and which are times, bool [N].

    Times are those of ISO 8601 and RFC 3339: with and without a zone, "t" and "z" in either case, a comma in place of
    the point, 24:00 as the begin of the next day, and the leap second 59:60. "UTC" and "GMT" may stand in place of "Z",
    as BigQuery and web servers write them.

    Args:
        texts: strings [N], best distinct ones.
        zone: the time zone of texts that name no offset.
    """
    texts = pc.utf8_upper(pc.utf8_trim_whitespace(texts.cast(pa.string())))
    texts = pc.if_else(pc.match_substring_regex(texts, "[0-9]"), texts, None)  # pandas takes "now" for a time
    texts = pc.replace_substring_regex(texts, r"\s*(?:UTC|GMT|Z)$", "Z")
    texts = pc.replace_substring_regex(texts, r"([0-9]),([0-9]+" + _END + ")", r"\1.\2")
    added = np.zeros(len(texts), np.int64)
    for found, instead, more in (
        (r"([T ])24(:?00(?::?00(?:\.0+)?)?" + _END + ")", r"\100\2", _DAY),
        (r"([T ][0-9]{2}:?59:?)60((?:\.[0-9]+)?" + _END + ")", r"\159\2", US),
    ):
        added[pc.match_substring_regex(texts, found).fill_null(False).to_numpy(zero_copy_only=False)] += more
        texts = pc.replace_substring_regex(texts, found, instead)
    stamps = pd.to_datetime(  # distinct texts are parsed in C
        pd.Series(texts.to_numpy(zero_copy_only=False), dtype=object),
        format="ISO8601", utc=True, errors="coerce",
    )  # fmt: skip
    micros = stamps.astype("datetime64[us, UTC]").astype("int64").to_numpy()
    known = stamps.notna().to_numpy()
    times = np.where(known, micros + added, 0)
    local = known & ~pc.match_substring_regex(texts, _OFFSET).fill_null(False).to_numpy(zero_copy_only=False)
    return _local(times, zone, local), known


def formatted_times(texts: pa.Array, time_format: str, zone: str = UTC) -> tuple[np.ndarray, np.ndarray]:
    """Texts of one format as microseconds: int64 [N], 0 where a text does not fit; and which fit, bool [N].

    A text fits as a whole, apart from blanks around it. Numbers may lack their leading zeros (1/12/2010), but not where
    no other character divides them (20101201). Names of months and weekdays are English.

    Args:
        texts: strings [N], best distinct ones.
        time_format: in the directives of `strptime` (`time_formats.check_time_format`).
        zone: the time zone of a format that names no offset.
    """
    texts = pc.utf8_trim_whitespace(texts.cast(pa.string()))
    texts = pc.if_else(pc.match_substring_regex(texts, "[0-9]"), texts, None)  # pandas takes "now" for a time
    if (width := time_formats.digits(time_format)) is not None:
        texts = pc.if_else(pc.equal(pc.utf8_length(texts), width), texts, None)
    stamps = pd.to_datetime(
        pd.Series(texts.to_numpy(zero_copy_only=False), dtype=object),
        format=time_format, exact=True, utc=True, errors="coerce",
    )  # fmt: skip
    micros = stamps.astype("datetime64[us, UTC]").astype("int64").to_numpy()
    known = stamps.notna().to_numpy()
    if "j" in time_formats.directives(time_format):
        known = known.copy()
        for n in np.flatnonzero(
            pc.match_substring(texts, "366").fill_null(False).to_numpy(zero_copy_only=False)
        ).tolist():
            known[n] &= not time_formats.is_day_of_no_year(texts[n].as_py(), time_format)
    times = np.where(known, micros, 0)
    return (times if time_formats.names_zone(time_format) else _local(times, zone, known)), known
