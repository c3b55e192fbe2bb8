"""What the values of one column are: numbers, times, words, lists, pictures; how many differ and how many are missing."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ctxrec.data import list_texts, parsing

_MOST_CHARACTERS = 30  # of an example
_LOOKED_AT = 10_000  # values whose spelling is looked at
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|avif)(?:\?.*)?$", re.IGNORECASE)
_AUDIO = re.compile(r"\.(?:mp3|wav|flac|ogg|m4a|opus|aac)(?:\?.*)?$", re.IGNORECASE)
_URL = re.compile(r"^(?:https?|s3|gs|hdfs)://", re.IGNORECASE)
_IMAGE_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
_AUDIO_BYTES = (b"ID3", b"\xff\xfb", b"fLaC", b"OggS")
# A date that a reader cannot tell: which of 03/04/2020 is the month?
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
        time: form of the times (`parsing.TimeForm`) where nearly all values can be read as times.
        other_dates: whether the texts look like dates of a form that cannot be read, such as 03/04/2020.
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
    time: parsing.TimeForm | None = None
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


def look_at_column(name: str, column: pa.ChunkedArray) -> ColumnLook:
    """Look at a column of a sample."""
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
        stamp = parsing.TimeForm("timestamp") if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else None
        return ColumnLook(name, str(kind), "time", time=stamp, has_zone=zone, **common)
    if pa.types.is_boolean(kind):
        return ColumnLook(name, str(kind), "truth", **common)
    numbers, wrong = parsing.to_numbers(array)
    exact = numbers[np.isfinite(numbers)].astype(np.float64)
    if wrong.mean() == 0 and len(exact):
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


def _time_form(array: pa.Array) -> parsing.TimeForm | None:
    """The form of times where nearly all values are times of a clock; None elsewhere."""
    form = parsing.detect_times([array])
    _, status = parsing.to_times(array, form.unit, small=form.small)
    there = status != parsing.TIME_MISSING
    good = (status[there] == parsing.TIME_OK).mean() >= 0.95 if there.any() else False
    return form if good and (not form.small) else None


def _look_at_text(
    name: str, kind: str, array: pa.Array, texts: pa.Array, common: dict[str, object], *, numeric: float
) -> ColumnLook:
    there = texts.drop_null()
    step = -(-len(there) // _LOOKED_AT)
    some = there.take(pa.array(np.arange(0, len(there), step)))
    values = some.to_pylist()
    truth = all(value.strip().lower() in ("true", "false") for value in values[:1000])
    if truth:
        return ColumnLook(name, kind, "truth", **common)  # type: ignore[arg-type]
    share = {
        "image": np.mean([bool(_IMAGE.search(v)) for v in values]),
        "audio": np.mean([bool(_AUDIO.search(v)) for v in values]),
    }
    media = next((kind_ for kind_, part in share.items() if part >= 0.8), None)
    address = media is not None or float(np.mean([bool(_URL.match(v)) for v in values])) >= 0.8
    other = float(np.mean([bool(_OTHER_DATE.match(v)) for v in values])) >= 0.9
    form = None if other or numeric > 0.5 else _time_form(some)
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
        **common,  # type: ignore[arg-type]
    )
