"""Columns of times in any form as microseconds, and why a value is no time; in Arrow and NumPy, without a loop over rows.

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.time_formats import digits
from ctxrec.core.time_zones import UTC
from ctxrec.data.calendar_times import MAX_TIME_US, calendar_times, formatted_times, iso_times, stamp_times
from ctxrec.data.parsing import NUMBER, is_text, parse_matching, without_dictionary

UNIT_US = {"s": 1_000_000, "ms": 1000, "us": 1}  # microseconds a unit of an epoch number
UNIT_FROM = {"s": 0, "ms": 10**11, "us": 10**14, "ns": 10**17}  # smallest epoch number in each unit
MIN_EPOCH = 1e8  # seconds, March 1973; smaller numbers are times only in a log that has such times in general
TIME_OK, TIME_MISSING, TIME_UNPARSABLE, TIME_OUT_OF_RANGE, TIME_MISFIT = 0, 1, 2, 3, 4

_INTEGER = r"^\s*[+-]?([0-9]{1,18}|[1-8][0-9]{18})\s*$"  # all of 18 digits, and those of 19 that int64 surely holds


@dataclass(frozen=True)
class TimeForm:
    """What the times of a log are.

    Attributes:
        unit: "s", "ms", "us" or "ns" (epoch numbers), "yyyymmdd", "iso8601", "timestamp" or "format" (texts of a format
            that the spec names).
        small: whether numbers below MIN_EPOCH are times, as in a simulated log that begins at 0. They are read in seconds.
    """

    unit: str
    small: bool = False


def detect_times(samples: list[pa.Array], time_format: str | None = None) -> TimeForm:
    """The form of the times of a log: of its numbers, or of its texts and timestamps where these are more.

    The median of the numbers names their unit (see `UNIT_FROM`). Each number is still read by its own size. Where a
    format is given that some sample may have (`takes_format`), the form is "format".
    """
    if time_format is not None and any(takes_format(sample.type, time_format) for sample in samples):
        return TimeForm("format")
    numbers, texts, stamps = [], 0, 0
    for sample in samples:
        array = without_dictionary(sample)
        if pa.types.is_temporal(array.type):
            stamps += len(array) - array.null_count
            continue
        values = _exact_numbers(array)
        values = values[np.isfinite(values)]
        numbers.append(values)
        if is_text(array.type):
            blank = pc.equal(pc.utf8_trim_whitespace(array), "")
            texts += max(len(array) - array.null_count - (pc.sum(blank).as_py() or 0) - len(values), 0)
    found = np.abs(np.concatenate(numbers)) if numbers else np.zeros(0)
    if texts + stamps and texts + stamps >= len(found):
        return TimeForm("timestamp" if stamps >= texts else "iso8601")
    if not len(found):
        return TimeForm("timestamp" if samples and all(pa.types.is_temporal(s.type) for s in samples) else "s", True)
    if (calendar_times(found)[1]).mean() > 0.5:
        return TimeForm("yyyymmdd")
    median = float(np.median(found))
    unit = next(unit for unit, start in reversed(UNIT_FROM.items()) if median >= start)
    return TimeForm(unit, small=median < MIN_EPOCH)


def _exact_numbers(array: pa.Array) -> np.ndarray:
    """Numbers, or texts of numbers, as float64 [N]; NaN for all else."""
    if is_text(array.type):
        array = parse_matching(array, NUMBER, pa.float64())
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return np.full(len(array), np.nan)
    return array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


def takes_format(kind: pa.DataType, time_format: str) -> bool:
    """Whether times of a type are read by a format: texts are, and whole numbers where the format is of digits alone."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(kind) or (pa.types.is_integer(kind) and digits(time_format) is not None)


def to_times(
    column: pa.Array | pa.ChunkedArray,
    unit: str,
    *,
    small: bool | None = None,
    zone: str = UTC,
    time_format: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A column of times as int64 microseconds since 1970, UTC, and a status.

    Args:
        column: epoch numbers, strings of numbers, ISO-8601 strings, or timestamps. The size of each number tells its
            unit: below 1e11 it is in seconds (until the year 5138), below 1e14 in milliseconds, below 1e17 in
            microseconds, else in nanoseconds.
        unit: form of the log's times (`detect_times`).
        small: whether numbers below MIN_EPOCH are times; None: where the unit is "s".
        zone: the time zone of texts, timestamps and dates that name no offset.
        time_format: the format of all texts (`calendar_times.formatted_times`), and of whole numbers where it is of digits
            alone; None: texts are numbers or ISO-8601.

    Returns:
        times int64 [N] (0 where not TIME_OK) and status int8 [N], one of TIME_OK, TIME_MISSING,
        TIME_UNPARSABLE, TIME_OUT_OF_RANGE (before 1970 or from the year 2200 on), TIME_MISFIT (a number too small for
        the times of the log).
    """
    array = without_dictionary(column)
    small = unit == "s" if small is None else small
    kind = array.type
    numbers = None  # of the values that are numbers, int64 or float64 with NaN
    if time_format is not None and takes_format(kind, time_format):
        array = array.cast(pa.string())
        if not is_text(kind) and not time_format.startswith("%Y"):  # a number has lost its leading zeros
            array = pc.utf8_lpad(array, digits(time_format) or 0, "0")
        times, valid = _distinct_times(array, lambda texts: formatted_times(texts, time_format, zone))
        missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(array), ""), True).to_numpy(zero_copy_only=False)
    elif is_text(kind):
        times, valid, numbers = _text_times(array, zone)
        missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(array), ""), True).to_numpy(zero_copy_only=False)
    else:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            times, valid = stamp_times(array, zone), ~missing
        elif pa.types.is_integer(kind):
            largest = 2**63 - 1  # larger ones are out of range in any unit
            whole = array if kind != pa.uint64() else pc.min_element_wise(array, pa.scalar(largest, pa.uint64()))
            numbers = whole.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
            times, valid = _scale(numbers)
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
            missing = missing | np.isnan(numbers)
            times, valid = _scale(numbers)
        else:
            times, valid = np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    status = np.where(valid, TIME_OK, TIME_UNPARSABLE).astype(np.int8)
    if numbers is not None:
        if unit == "yyyymmdd":
            dates, is_date = calendar_times(numbers.astype(np.float64), zone)
            times, valid = np.where(is_date, dates, times), valid | is_date
            numbers = np.where(is_date, np.nan, numbers)
        if not small:
            with np.errstate(invalid="ignore"):
                status[(numbers >= 0) & (numbers < MIN_EPOCH)] = TIME_MISFIT
    status[valid & (status == TIME_OK) & ((times < 0) | (times >= MAX_TIME_US))] = TIME_OUT_OF_RANGE
    status[missing] = TIME_MISSING
    return np.where(status == TIME_OK, times, 0), status


def _scale(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Epoch numbers as microseconds, each in the unit of its size; those that would overflow become MAX_TIME_US or -1."""
    valid = ~np.isnan(numbers)
    known = np.where(valid, numbers, numbers.dtype.type(0))
    times = np.zeros(len(numbers), np.int64)
    for unit, start in UNIT_FROM.items():
        here = known >= start if start else np.ones(len(numbers), bool)
        if not here.any():
            break
        if unit == "ns":
            part = np.minimum(known[here], numbers.dtype.type(MAX_TIME_US * 1000))
            times[here] = np.rint(part / 1000) if part.dtype.kind == "f" else part // 1000
        else:
            part = np.clip(known[here], -1, MAX_TIME_US // UNIT_US[unit])
            times[here] = np.rint(part * UNIT_US[unit]) if part.dtype.kind == "f" else part * UNIT_US[unit]
    return times, valid


def _text_times(array: pa.Array, zone: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts as microseconds; which of them are times; and the numbers among them, float64 with NaN for the others."""
    times, valid = np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    found = np.full(len(array), np.nan)
    for pattern, kind in ((_INTEGER, pa.int64()), (NUMBER, pa.float64())):
        parsed = parse_matching(array, pattern, kind)
        here = parsed.is_valid().to_numpy(zero_copy_only=False) & ~valid
        if here.any():
            numbers = parsed.fill_null(0).to_numpy(zero_copy_only=False)
            times[here], valid[here] = _scale(numbers[here])
            found[here] = numbers[here]
        if valid.all():
            return times, valid, found
    rest = np.flatnonzero(~valid)
    # ISO-8601 in all its spellings, with and without a zone. BigQuery writes UTC.
    times[rest], valid[rest] = _distinct_times(array.take(pa.array(rest)), lambda texts: iso_times(texts, zone))
    return times, valid, found


def _distinct_times(
    array: pa.Array, read: Callable[[pa.Array], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as microseconds, and which of them are times; each distinct text is read once."""
    coded = array.dictionary_encode()
    micros, known = read(coded.dictionary)
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.append(np.where(known, micros, 0), 0)[codes], np.append(known, False)[codes]
