"""What the values of one column are: numbers, times, words, lists, pictures; how many differ and how many are missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.data import list_texts, parsing, time_columns
from ctxrec.ingest.guess.format_guess import FoundFormat, guess_format

_MOST_CHARACTERS = 30  # of an example
_LOOKED_AT = 10_000  # values whose spelling is looked at
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif)(?:\?.*)?$", re.IGNORECASE)
_AUDIO = re.compile(r"\.(?:mp3|wav|flac|ogg|m4a|opus|aac)(?:\?.*)?$", re.IGNORECASE)
_URL = re.compile(r"^(?:https?|s3|gs|hdfs)://", re.IGNORECASE)
_IMAGE_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
_AUDIO_BYTES = (b"ID3", b"\xff\xfb", b"fLaC", b"OggS")
# What a person takes for a date, whether or not a format reads it.
_OTHER_DATE = re.compile(
    r"^\s*\d{1,4}[./]\d{1,2}[./]\d{1,4}(?:[ T]\d{1,2}:\d{2}.*)?$|^\s*\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{2,4}"
)
_ZONE = re.compile(r"(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})\s*$")


@dataclass(frozen=True)
class ColumnLook:
    """One column of a sample.

    Attributes:
        name: of the column.
        type: of its values, as Arrow says it.
        kind: "empty" (no value), "truth", "number", "time", "text", "list", "bytes" or "nested".
        count: values that are there.
        missing: share of the rows without a value, from 0 to 1.
        distinct: number of different values; 0 for lists and bytes, which are not counted.
        examples: some values, shortened.
        whole: whether all numbers are whole.
        low: smallest number (NaN: no numbers).
        high: largest number.
        words: mean number of words of a text.
        length: mean number of characters of a text.
        letters: share of the texts that have a letter.
        numeric: share of the texts that are numbers.
        separator: what divides the values of a text that looks like a list, as of `list_texts.hint`.
        media: "image" or "audio" where the values are files, addresses or content of such.
        is_address: whether the texts are URLs or paths.
        time: form of the times (`time_columns.TimeForm`) where nearly all values can be read as times.
        format: of the times, where they are texts of no standard form, or whole numbers such as 20101201082600.
        other_dates: whether the texts look like dates of a form that cannot be read.
        has_zone: whether the times name their time zone.
    """

    name: str
    type: str
    kind: str
    count: int
    missing: float
    distinct: int = 0
    examples: tuple[str, ...] = ()
    whole: bool = False
    low: float = float("nan")
    high: float = float("nan")
    words: float = 0.0
    length: float = 0.0
    letters: float = 0.0
    numeric: float = 0.0
    separator: str | None = None
    media: str | None = None
    is_address: bool = False
    time: time_columns.TimeForm | None = None
    format: FoundFormat | None = None
    other_dates: bool = False
    has_zone: bool = False

    @property
    def repeats(self) -> float:
        """How often a value stands in the column on average."""
        return self.count / max(self.distinct, 1)

    @property
    def is_unique(self) -> bool:
        """Whether hardly any value stands there twice, as in the key of a table."""
        return self.distinct > 1 and self.distinct >= 0.98 * self.count

    @property
    def may_be_id(self) -> bool:
        """Whether the values may be ids: short texts or whole numbers, of which there are several."""
        if self.distinct < 2 or self.media or self.is_address or self.has_zone:
            return False
        if self.kind == "number":
            return self.whole and self.low >= 0
        return (
            self.kind == "text" and self.words <= 2 and self.length <= 64 and not self.other_dates and self.time is None
        )


def look_at_column(name: str, column: pa.ChunkedArray, *, decimal: str | None = None) -> ColumnLook:
    """Look at a column of a sample whose numbers have a decimal sign, where they are texts (`parsing.to_numbers`)."""
    array = parsing.one_array(column)
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_null(kind) or array.null_count == len(array):
        return ColumnLook(name, str(kind), "empty", 0, 1.0)
    missing = array.null_count / len(array)
    if (lists := parsing.as_lists(array)) is not None:
        values = parsing.to_text(lists.flatten()).drop_null()
        found = len(values.unique())
        return ColumnLook(name, str(kind), "list", len(array) - array.null_count, missing, found, _examples(array))
    if pa.types.is_nested(kind):
        return ColumnLook(name, str(kind), "nested", len(array) - array.null_count, missing, 0, _examples(array))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _look_at_bytes(name, array, missing)
    texts = parsing.to_text(array)
    count = len(texts) - texts.null_count
    common = {"count": count, "missing": 1 - count / len(texts)}
    if not count:
        return ColumnLook(name, str(kind), "empty", 0, 1.0)
    distinct = len(texts.drop_null().unique())
    common |= {"distinct": distinct, "examples": _examples(texts)}
    if pa.types.is_temporal(kind):
        zone = getattr(kind, "tz", None) is not None
        stamp = time_columns.TimeForm("timestamp") if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else None
        return ColumnLook(name, str(kind), "time", time=stamp, has_zone=zone, **common)
    if pa.types.is_boolean(kind):
        return ColumnLook(name, str(kind), "truth", **common)
    numbers, wrong = parsing.to_numbers(array, np.float64, decimal=decimal)
    exact = numbers[np.isfinite(numbers)]
    if wrong.mean() == 0 and len(exact):
        if (digits := _format_in_digits(array)) is not None:
            return _of_format(name, str(kind), digits, common)
        form = _time_form(array)
        whole = bool((exact == np.floor(exact)).all())
        low, high = float(exact.min()), float(exact.max())
        return ColumnLook(name, str(kind), "number", whole=whole, low=low, high=high, numeric=1.0, time=form, **common)
    return _look_at_text(name, str(kind), array, texts, common, numeric=len(exact) / count)


def _examples(column: pa.Array) -> tuple[str, ...]:
    values = parsing.to_text(column.slice(0, 2000)).drop_null().unique().to_pylist()[:3]
    short = [" ".join(value.split()) for value in values]
    return tuple(v if len(v) <= _MOST_CHARACTERS else v[: _MOST_CHARACTERS - 3] + "..." for v in short)


def _look_at_bytes(name: str, array: pa.Array, missing: float) -> ColumnLook:
    heads = [value[:8] for value in array.slice(0, 50).drop_null().to_pylist()]
    media = None
    for kind, marks in (("audio", _AUDIO_BYTES), ("image", _IMAGE_BYTES)):
        if heads and sum(head.startswith(marks) for head in heads) >= 0.8 * len(heads):
            media = kind
    count = len(array) - array.null_count
    return ColumnLook(name, str(array.type), "bytes", count, missing, 0, (f"{media or 'bytes'}",), media=media)


def _format_in_digits(array: pa.Array) -> FoundFormat | None:
    """The format of times of 12 digits and more, such as 20101201082600, which as epoch numbers would be other times.

    Texts of 8 digits have one too, where they begin with the day or the month.
    """
    if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        return None
    texts = parsing.to_text(array).drop_null()
    lengths = pc.utf8_length(texts).unique().to_pylist()
    if lengths not in ([8], [12], [14], [17]) or not pc.all(pc.match_substring_regex(texts, "^[0-9]+$")).as_py():
        return None
    found = guess_format(texts)
    return None if found is None or found.fits < 1 or found.format == "%Y%m%d" else found


def _of_format(name: str, kind: str, found: FoundFormat, common: dict[str, Any]) -> ColumnLook:
    form = time_columns.TimeForm("format")
    return ColumnLook(name, kind, "time", time=form, format=found, has_zone=found.has_zone, **common)


def _time_form(array: pa.Array) -> time_columns.TimeForm | None:
    """The form of times where nearly all values are times of a clock; None elsewhere."""
    form = time_columns.detect_times([array])
    _, status = time_columns.to_times(array, form.unit, small=form.small)
    there = status != time_columns.TIME_MISSING
    good = (status[there] == time_columns.TIME_OK).mean() >= 0.95 if there.any() else False
    return form if good and (not form.small) else None


def _look_at_text(
    name: str, kind: str, array: pa.Array, texts: pa.Array, common: dict[str, Any], *, numeric: float
) -> ColumnLook:
    there = texts.drop_null()
    step = -(-len(there) // _LOOKED_AT)
    some = there.take(pa.array(np.arange(0, len(there), step)))
    values = some.to_pylist()
    truth = all(value.strip().lower() in ("true", "false") for value in values[:1000])
    if truth:
        return ColumnLook(name, kind, "truth", **common)
    share = {
        "image": np.mean([bool(_IMAGE.search(v)) for v in values]),
        "audio": np.mean([bool(_AUDIO.search(v)) for v in values]),
    }
    media = next((kind_ for kind_, part in share.items() if part >= 0.8), None)
    address = media is not None or float(np.mean([bool(_URL.match(v)) for v in values])) >= 0.8
    form = None if numeric > 0.5 else _time_form(some)
    has_digits = float(np.mean([any(c.isdigit() for c in v) for v in values])) > 0.9
    if form is None and numeric <= 0.5 and has_digits and (found := guess_format(there)) is not None:
        return _of_format(name, kind, found, common)
    other = form is None and float(np.mean([bool(_OTHER_DATE.match(v)) for v in values])) >= 0.9
    hint = None if form or other or media or address else list_texts.hint(pa.chunked_array([texts]))
    return ColumnLook(
        name,
        kind,
        "time" if form is not None else "text",
        words=float(np.mean([len(v.split()) for v in values])),
        length=float(np.mean([len(v) for v in values])),
        letters=float(np.mean([any(c.isalpha() for c in v) for v in values])),
        numeric=numeric,
        separator=None if hint is None else hint.separator,
        media=media,
        is_address=address,
        time=form,
        other_dates=other,
        has_zone=form is not None and float(np.mean([bool(_ZONE.search(v)) for v in values])) >= 0.5,
        **common,
    )
