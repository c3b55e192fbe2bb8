"""Columns of any type in one normal form: ids, times, numbers, text; in Arrow and NumPy, without a loop over rows.

Legend: N rows, V distinct values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

UNIT_US = {"s": 1_000_000, "ms": 1000, "us": 1}  # microseconds a unit of an epoch number
MAX_TIME_US = 7_258_118_400 * 1_000_000  # 2200-01-01; times from here on, and times before 1970, are rejected
TIME_OK, TIME_MISSING, TIME_UNPARSABLE, TIME_OUT_OF_RANGE = 0, 1, 2, 3

_EXACT = 2**53  # whole numbers below are exact in float64

_INTEGER = r"^\s*[+-]?[0-9]{1,18}\s*$"
_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


@dataclass(frozen=True)
class Coded:
    """A column of strings as codes: value n is values[codes[n]], missing where the code is -1."""

    codes: np.ndarray  # int32 [N]
    values: pa.Array  # string [V], distinct, no nulls; some may be in no row

    def take(self, index: np.ndarray) -> Coded:
        """The rows at `index` with only the values that occur in them, in the same order."""
        codes = self.codes[index]
        used = np.zeros(len(self.values) + 1, bool)
        used[codes] = True  # -1 marks the last place, which is no value
        used[-1] = False
        position = np.cumsum(used, dtype=np.int32) - 1
        position[-1] = -1
        return Coded(codes=position[codes], values=self.values.filter(pa.array(used[:-1])))

    def to_arrow(self) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(self.codes, mask=self.codes < 0), self.values)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`column` in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def to_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Any column as strings: whole floats without their ".0", NaN and blank text as null."""
    array = one_array(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.cast(kind.value_type)
        kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pa.types.is_floating(kind):
        return _floats_to_text(array)
    if pa.types.is_nested(kind):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        array = _binary_to_text(array)
    text = array.cast(pa.string())
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    return pc.if_else(pc.fill_null(blank, False), None, text)


def value_text(value: object) -> str | None:
    """One value as `to_text` reads it from a column of its own type.

    >>> [value_text(v) for v in (7, 7.0, 0.5, True, "a", " ", None, float("nan"))]
    ['7', '7', '0.5', 'true', 'a', None, None, None]
    """
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        number = float(value)
        value = int(number) if number.is_integer() and abs(number) < _EXACT else value
    text = None if value is None else str(value)
    return text if text is not None and text.strip() else None


def value_words(value: object) -> list[str]:
    """The values of a category, one or a list, as `prepare` reads them from a column of their own type."""
    values = value if isinstance(value, list) else [value]
    return [text for text in map(value_text, values) if text is not None]


def value_line(value: object) -> str | None:
    """A text, which may be given as a list, as `prepare` reads it."""
    return ", ".join(value_words(value)) if isinstance(value, list) else value_text(value)


def as_written(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Any column as text for a person to read, large_string; no value is dropped."""
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_nested(array.type):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.large_string())
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        array = _binary_to_text(array)
    return array.cast(pa.large_string())


def _floats_to_text(array: pa.Array) -> pa.Array:
    """Floats as the shortest text that means the same number in their own precision."""
    values = array.to_numpy(zero_copy_only=False).astype(np.float64)
    whole = np.isfinite(values) & (np.abs(values) < _EXACT) & (values == np.floor(values))
    text = array.cast(pa.string())
    integers = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    text = pc.if_else(pa.array(whole), integers, text)
    return pc.if_else(pa.array(np.isnan(values)), None, text)


def _binary_to_text(array: pa.Array) -> pa.Array:
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:  # not UTF-8: the bytes as \x escapes, so that nothing is lost
        return pa.array([None if v is None else v.decode("utf-8", "backslashreplace") for v in array.to_pylist()])


def encode(column: pa.Array | pa.ChunkedArray) -> Coded:
    """A column of ids or categories as codes of its distinct strings (see `to_text`)."""
    if not isinstance(column, pa.ChunkedArray):
        column = pa.chunked_array([column])
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        column = pa.chunked_array([to_text(column)])
    if pa.types.is_dictionary(column.type):
        wide = pa.dictionary(pa.int32(), column.type.value_type)  # a category of few values in each file may have many
        array = one_array(column.cast(wide).unify_dictionaries())
    else:
        array = one_array(column).dictionary_encode()
    raw = array.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    # Distinct raw values may have equal text (-0.0 and 0.0), or none (NaN): code the text again.
    text = to_text(array.dictionary).dictionary_encode()
    recode = np.append(text.indices.fill_null(-1).to_numpy(zero_copy_only=False), -1).astype(np.int32)
    return Coded(codes=recode[raw], values=text.dictionary)


def as_lists(column: pa.Array | pa.ChunkedArray) -> pa.Array | None:
    """A column of lists as one array of lists of any length; None for a column of single values."""
    array = one_array(column)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return array if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else None


def to_numbers(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column as float32 [N] with NaN for missing, and bool [N]: which values are present but no finite number."""
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if _is_text(array.type):
        parsed = _parse_matching(array, _NUMBER, pa.float64())
    elif pa.types.is_null(array.type):
        parsed = pa.nulls(len(array), pa.float64())
    elif pa.types.is_boolean(array.type):
        parsed = array.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        parsed = array.cast(pa.float64(), safe=False)
    else:
        parsed = pa.nulls(len(array), pa.float64())
    present = pc.is_valid(array)
    if _is_text(array.type):
        present = pc.and_(present, pc.not_equal(pc.fill_null(pc.utf8_trim_whitespace(array), ""), ""))
    with np.errstate(over="ignore"):
        numbers = parsed.to_numpy(zero_copy_only=False).astype(np.float32)
    numbers = np.where(np.isfinite(numbers), numbers, np.float32(np.nan))
    return numbers, np.isnan(numbers) & present.to_numpy(zero_copy_only=False)


def _parse_matching(array: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    """Strings that match `pattern` cast to `kind`, null for the others."""
    matches = pc.fill_null(pc.match_substring_regex(array, pattern), False)
    text = pc.if_else(matches, pc.ascii_ltrim(pc.utf8_trim_whitespace(array), characters="+"), None)
    return text.cast(kind)


def detect_unit(samples: list[pa.Array]) -> str:
    """What the times of a log are: "s", "ms" or "us" (epoch numbers), "iso8601" or "timestamp".

    One unit for the whole log, by the median size of its epoch numbers: below 1e11 they are seconds
    (until the year 5138), below 1e14 milliseconds, else microseconds.
    """
    numbers, kinds = [], set()
    for sample in samples:
        array = one_array(sample)
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if pa.types.is_temporal(array.type):
            kinds.add("timestamp")
            continue
        values = to_numbers(array)[0].astype(np.float64)
        values = values[np.isfinite(values)]
        numbers.append(values)
        kinds |= {"iso8601"} if len(values) * 2 < len(array) - array.null_count else set()
    found = np.abs(np.concatenate(numbers)) if numbers else np.zeros(0)
    if len(found):
        median = float(np.median(found))
        return "s" if median < 1e11 else "ms" if median < 1e14 else "us"
    return "timestamp" if "timestamp" in kinds else "iso8601" if kinds else "s"


def to_times(column: pa.Array | pa.ChunkedArray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of times as int64 microseconds since 1970 (UTC; naive times are UTC), and a status.

    Args:
        column: epoch numbers, strings of numbers, ISO-8601 strings, or timestamps.
        unit: the unit of numbers ("s", "ms", "us").

    Returns:
        times int64 [N] (0 where not TIME_OK) and status int8 [N], one of TIME_OK, TIME_MISSING,
        TIME_UNPARSABLE, TIME_OUT_OF_RANGE (before 1970 or from the year 2200 on).
    """
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    factor = UNIT_US.get(unit, UNIT_US["s"])
    kind = array.type
    if _is_text(kind):
        times, valid = _text_times(array, factor)
        missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(array), ""), True).to_numpy(zero_copy_only=False)
    else:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            stamp = pa.timestamp("us", tz=getattr(kind, "tz", None))
            times = array.cast(stamp, safe=False).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
            valid = ~missing
        elif pa.types.is_integer(kind):
            times, valid = _scale(
                array.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False), factor
            )
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            missing = missing | np.isnan(numbers)
            times, valid = _scale(numbers, factor)
        else:
            times, valid = np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    status = np.where(valid, TIME_OK, TIME_UNPARSABLE).astype(np.int8)
    status[valid & ((times < 0) | (times >= MAX_TIME_US))] = TIME_OUT_OF_RANGE
    status[missing] = TIME_MISSING
    return np.where(status == TIME_OK, times, 0), status


def _scale(numbers: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch numbers as microseconds; those that would overflow become MAX_TIME_US or -1."""
    limit = MAX_TIME_US // factor
    valid = ~np.isnan(numbers)
    clipped = np.clip(np.where(valid, numbers, 0), -1, limit)
    scaled = np.rint(clipped * factor) if numbers.dtype.kind == "f" else clipped * factor
    return scaled.astype(np.int64), valid


def _text_times(array: pa.Array, factor: int) -> tuple[np.ndarray, np.ndarray]:
    times, valid = np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        parsed = _parse_matching(array, pattern, kind)
        here = parsed.is_valid().to_numpy(zero_copy_only=False) & ~valid
        if here.any():
            numbers = parsed.fill_null(0).to_numpy(zero_copy_only=False)
            times[here], valid[here] = _scale(numbers[here], factor)
        if valid.all():
            return times, valid
    rest = np.flatnonzero(~valid)
    # ISO-8601 in all its spellings, with and without a zone; pandas parses distinct strings in C.
    coded = array.take(pa.array(rest)).dictionary_encode()
    stamps = pd.to_datetime(
        pd.Series(coded.dictionary.to_numpy(zero_copy_only=False), dtype=object),
        format="ISO8601", utc=True, errors="coerce",
    )  # fmt: skip
    micros = stamps.astype("datetime64[us, UTC]").astype("int64").to_numpy()
    known = stamps.notna().to_numpy()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    times[rest] = np.append(np.where(known, micros, 0), 0)[codes]
    valid[rest] = np.append(known, False)[codes]
    return times, valid
