"""Columns of any type in one normal form: ids, numbers, text; in Arrow and NumPy, without a loop over rows.

Legend: N rows, V distinct values.
"""

from __future__ import annotations

import decimal
import math
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import schema
from ctxrec.data.arrow_views import binary_to_text, plain_array, plain_column

_SMALL, _LARGE = 1e-3, 1e10  # between these, Python and Arrow write fractions alike
_WHOLE, _INT64 = (
    2.0**64,
    2.0**63,
)  # whole floats below are written as whole numbers, as columns of int64 and uint64 write them

BLANKS = " \u00a0\u202f"  # that group the thousands of a number
_TRUTH = r"(?i)^(?:true|false)$"
_DECIMAL = r"^-?(?:0|[1-9][0-9]*)\.[0-9]*$"
# Fractions as Python, NumPy and Java write the largest and smallest: 1e+16, 1.5e-05, 1.0E7; and in full: 0.00001. A code
# such as 1e5 is none of them.
_SCIENTIFIC = r"^-?(?:[1-9](?:\.[0-9]{1,16}[eE][+-]?|[eE][+-])[0-9]{1,3}|0\.000[0-9]{1,20})$"
NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


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
    """`column` in one piece, of a type that all kernels take (`arrow_views.plain_type`)."""
    if isinstance(column, pa.ChunkedArray):
        return plain_column(column).combine_chunks()
    return plain_array(column)


def without_dictionary(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece, with its values in the place of a dictionary's codes."""
    array = one_array(column)
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is of texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def to_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Any column as strings: whole floats without their ".0", durations in seconds, NaN and blank text as null."""
    array = without_dictionary(column)
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pa.types.is_duration(kind):
        array = pc.divide(
            array.cast(pa.duration("ns"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False), 1e9
        )
        kind = array.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:  # one form for files of several zones
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    if pa.types.is_floating(kind):
        return _floats_to_text(array)
    if pa.types.is_nested(kind):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        array = binary_to_text(array)
    text = array.cast(pa.string())
    if pa.types.is_decimal(kind):
        text = _short_decimals(text)
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    return pc.if_else(pc.fill_null(blank, False), None, text)


def value_text(value: object) -> str | None:
    """One value as `to_text` reads it from a column of its own type.

    >>> [value_text(v) for v in (7, 7.0, 0.5, True, "a", " ", None, float("nan"))]
    ['7', '7', '0.5', 'true', 'a', None, None, None]
    """
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, decimal.Decimal):
        value = format(value, "f")
        value = value.rstrip("0").rstrip(".") if "." in value else value
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isnan(number):
            return None
        shortest = float(str(value))  # with the digits of its own precision
        value = int(number) if number.is_integer() and abs(number) < _WHOLE else shortest
    text = None if value is None else str(value)
    return text if text is not None and text.strip() else None


def normal_categories(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of categories as strings, with one form for each value, whichever source it comes from.

    A CSV writes True and 1.0 where JSON and Parquet have true and 1. Texts of these forms become "true" and "1", and
    1.50 becomes "1.5". A number such as 1e+16 or 1.0E-5 is written as `to_text` writes that float. Ids, actions and
    texts for people keep their spelling.
    """
    coded = to_text(column).dictionary_encode()
    texts = coded.dictionary
    texts = pc.if_else(pc.match_substring_regex(texts, _TRUTH), pc.utf8_lower(texts), texts)
    texts = _short_decimals(texts)
    scientific = pc.match_substring_regex(texts, _SCIENTIFIC)
    spelled = [_of_scientific(text) for text in texts.filter(scientific).to_pylist()]
    return pc.replace_with_mask(texts, scientific, pa.array(spelled, texts.type)).take(coded.indices)


def _short_decimals(texts: pa.Array) -> pa.Array:
    short = pc.replace_substring_regex(texts, r"\.?0*$", "")
    short = pc.if_else(pc.equal(short, "-0"), "0", short)
    return pc.if_else(pc.match_substring_regex(texts, _DECIMAL), short, texts)


def category_text(value: object) -> str | None:
    """One value as `normal_categories` reads it.

    >>> [category_text(v) for v in (True, "TRUE", "1.0", 1, "2.50", "007", "1.2.0", "", "1e+16", "1e5", "0.00001")]
    ['true', 'true', '1', '1', '2.5', '007', '1.2.0', None, '10000000000000000', '1e5', '1e-05']
    """
    text = value_text(value)
    if text is not None and text.lower() in ("true", "false"):
        return text.lower()
    if text is not None and "." in text and re.match(_DECIMAL, text):
        text = text.rstrip("0").rstrip(".")
        text = "0" if text == "-0" else text
    return _of_scientific(text) if text is not None and re.match(_SCIENTIFIC, text) else text


def _of_scientific(text: str) -> str | None:
    number = float(text)
    return value_text(number) if math.isfinite(number) else text


def _floats_to_text(array: pa.Array) -> pa.Array:
    """Floats as the shortest text that means the same number in their own precision."""
    values = array.to_numpy(zero_copy_only=False).astype(np.float64)
    whole = np.isfinite(values) & (np.abs(values) < _WHOLE) & (values == np.floor(values))
    text = schema.shortest_texts(array)
    # Arrow has 0.00001 and 1.00000000005e+10 where Python, and so CSV and JSON files, have 1e-05 and 10000000000.5.
    unlike = np.isfinite(values) & ~whole & ((np.abs(values) < _SMALL) | (np.abs(values) >= _LARGE))
    unlike |= whole & (np.abs(values) >= _INT64)
    whole &= ~unlike
    if unlike.any():
        exact = (values == np.floor(values)) & (np.abs(values) < _WHOLE)
        numbers = np.where(exact, values, text.cast(pa.float64()))
        spelled = [str(int(n) if e else n) for n, e in zip(numbers[unlike].tolist(), exact[unlike], strict=True)]
        text = pc.replace_with_mask(text, pa.array(unlike), pa.array(spelled))
    integers = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    text = pc.if_else(pa.array(whole), integers, text)
    return pc.if_else(pa.array(np.isnan(values)), None, text)


def encode(column: pa.Array | pa.ChunkedArray, *, normal: bool = False) -> Coded:
    """A column as codes of its distinct strings: of ids (`to_text`) or, if `normal`, categories (`normal_categories`)."""
    if not isinstance(column, pa.ChunkedArray):
        column = pa.chunked_array([column])
    column = plain_column(column)
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        column = pa.chunked_array([to_text(column)])
    if pa.types.is_dictionary(column.type):
        wide = pa.dictionary(pa.int32(), column.type.value_type)  # a category of few values in each file may have many
        array = one_array(column.cast(wide).unify_dictionaries())
    else:
        array = one_array(column).dictionary_encode()
    raw = array.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    # Distinct raw values may have equal text (-0.0 and 0.0), or none (NaN): code the text again.
    text = (normal_categories if normal else to_text)(array.dictionary).dictionary_encode()
    recode = np.append(text.indices.fill_null(-1).to_numpy(zero_copy_only=False), -1).astype(np.int32)
    return Coded(codes=recode[raw], values=text.dictionary)


def as_lists(column: pa.Array | pa.ChunkedArray) -> pa.Array | None:
    """A column of lists as one array of lists of any length; None for a column of single values."""
    array = one_array(column)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return array if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) else None


def to_numbers(
    column: pa.Array | pa.ChunkedArray, kind: type[np.floating] = np.float32, *, decimal: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A column as floats of `kind` [N] with NaN for missing, and bool [N]: which values are present but no finite number.

    A duration is its number of seconds, and true and false are 1 and 0, also in texts. A number beyond
    float32 is not finite, as the model's features are float32.

    `decimal` is the decimal sign of numbers that are texts, "," or "."; their thousands may be grouped (`plain_numbers`).
    None: the sign is a point, and nothing is grouped.
    """
    array = without_dictionary(column)
    if is_text(array.type):
        truth = parse_matching(array, _TRUTH, pa.bool_()).cast(pa.int8()).cast(pa.float64())
        plain = array if decimal is None else plain_numbers(array, decimal)
        parsed = pc.coalesce(parse_matching(plain, NUMBER, pa.float64()), truth)
    elif pa.types.is_null(array.type):
        parsed = pa.nulls(len(array), pa.float64())
    elif pa.types.is_boolean(array.type):
        parsed = array.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_duration(array.type):
        parsed = pc.divide(
            array.cast(pa.duration("ns"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False), 1e9
        )
    elif pa.types.is_decimal(array.type):  # Arrow's own cast to floats may miss the nearest one
        parsed = array.cast(pa.string()).cast(pa.float64())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        widened = kind is np.float64 and pa.types.is_floating(array.type) and array.type.bit_width < 64
        parsed = schema.shortest_decimals(array) if widened else array.cast(pa.float64(), safe=False)
    else:
        parsed = pa.nulls(len(array), pa.float64())
    present = pc.is_valid(array)
    if is_text(array.type):
        present = pc.and_(present, pc.not_equal(pc.fill_null(pc.utf8_trim_whitespace(array), ""), ""))
    with np.errstate(over="ignore"):
        exact = parsed.to_numpy(zero_copy_only=False)
        numbers = np.where(np.isfinite(exact.astype(np.float32)), exact, np.nan).astype(kind)
    return numbers, np.isnan(numbers) & present.to_numpy(zero_copy_only=False)


def plain_numbers(texts: pa.Array, decimal: str) -> pa.Array:
    """Texts of numbers with a decimal sign as texts of plain numbers; null for all others.

    Thousands may be grouped by blanks, by apostrophes, or by that of point and comma which is not the decimal sign:
    with "," the text 1.234,5 means 1234.5, and 1.5 is no number.
    """
    other = "." if decimal == "," else ","
    groups = "|".join(
        rf"[1-9][0-9]{{0,2}}(?:{mark}[0-9]{{3}})+" for mark in (re.escape(other), "'", "’", f"[{BLANKS}]")
    )
    sign = re.escape(decimal)
    number = rf"^\s*[+-]?(?:(?:[0-9]+|{groups})(?:{sign}[0-9]*)?|{sign}[0-9]+)(?:[eE][+-]?[0-9]+)?\s*$"
    fits = pc.fill_null(pc.match_substring_regex(texts, number), False)
    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), rf"[{re.escape(other)}'’{BLANKS}]", "")
    return pc.if_else(fits, pc.replace_substring(plain, decimal, "."), None)


def parse_matching(array: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    """Strings that match `pattern` cast to `kind`, null for the others."""
    matches = pc.fill_null(pc.match_substring_regex(array, pattern), False)
    text = pc.if_else(matches, pc.ascii_ltrim(pc.utf8_trim_whitespace(array), characters="+"), None)
    return text.cast(kind)
