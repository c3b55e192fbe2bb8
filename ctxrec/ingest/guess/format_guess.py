"""The format of times that are texts of no standard form: guessed from one value, and checked on all others.

Of 01/12/2010 nobody can tell the day from the month. A value whose first number is above 12 decides it for the column.
"""

from __future__ import annotations

import calendar
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.time_formats import check_time_format, directives, names_zone
from ctxrec.data import calendar_times, parsing

_FITS = 0.95  # share of the values that a format has to read
_TRIED = 5  # values whose spelling suggests formats
_MOST = 200_000  # distinct values that are read
_LEAST_US = 1  # later than 1970, as numbers such as 00:00 are no times
_CLOCK = re.compile(
    r"(?<!\d)(?P<hour>\d{1,2})(?P<colon>[:.h])(?P<minute>\d{2})(?:(?P<colon2>[:.])(?P<second>\d{2})(?:(?P<point>[.,])\d{1,9})?)?"
    r"(?![\d.])(?P<half>\s*[AaPp][Mm]\b)?(?P<zone>\s*(?:Z\b|UTC\b|GMT\b|[+-]\d{2}:?\d{2}(?!\d)))?"
)
_ZONE = re.compile(r"(?<=\s)[+-]\d{4}(?!\d)")  # that stands apart from the clock
_MONTHS, _DAYS = list(calendar.month_name)[1:], list(calendar.day_name)
_UNUSUAL = (
    ("Y", "d", "m"),
    ("y", "b", "d"),
    ("y", "B", "d"),
    ("y", "m", "d"),
)  # orders that are taken only where no other fits as well
_NUMBER = re.compile(r"\d+")
_IN_DIGITS = {  # times of digits alone, by their number
    6: ("%y%m%d", "%d%m%y", "%m%d%y"),
    8: ("%Y%m%d", "%d%m%Y", "%m%d%Y"),
    12: ("%Y%m%d%H%M", "%d%m%Y%H%M", "%y%m%d%H%M%S"),
    14: ("%Y%m%d%H%M%S", "%d%m%Y%H%M%S"),
    17: ("%Y%m%d%H%M%S%f",),
}


@dataclass(frozen=True)
class FoundFormat:
    """A format that reads nearly all values.

    Attributes:
        format: in the directives of `strptime`.
        fits: share of the values that it reads, from 0 to 1.
        other: another format that reads as many; None: the format is sure.
        example: a value.
        decided_by: a value that the format reads and its nearest rival does not; None: there is no rival, or none such.
        strays: distinct values that only the rival reads.
    """

    format: str
    fits: float
    example: str
    other: str | None = None
    decided_by: str | None = None
    strays: int = 0

    @property
    def has_zone(self) -> bool:
        return names_zone(self.format)

    @property
    def doubts(self) -> list[str]:
        """What is not sure, and what other values are."""
        told = []
        if self.other is not None:
            told.append(
                f"{self.example!r} may be {self.format} or {self.other}: the values do not tell, as both read all of them. "
                "Check which one it is, since the wrong one gives wrong times without an error"
            )
        if self.strays:
            told.append(f"{self.strays:,} values fit another order of day and month; they are rejected")
        elif self.fits < 1:
            told.append(f"{1 - self.fits:.1%} of the values do not fit {self.format}; they are rejected")
        return told


def guess_format(column: pa.Array | pa.ChunkedArray) -> FoundFormat | None:
    """The format of a column of texts or whole numbers; None where no format reads nearly all values.

    Formats that read equally many values differ in day and month. Then the one under which times go back less often
    from row to row is taken, or the day comes first; AM and PM are American, so the month comes first there.
    """
    texts = pc.utf8_trim_whitespace(parsing.to_text(column)).drop_null()
    values = texts.unique()[:_MOST]
    if not len(values):
        return None
    some = values.take(pa.array(np.linspace(0, len(values) - 1, min(len(values), _TRIED)).astype(int))).to_pylist()
    formats = list(dict.fromkeys(itertools.chain.from_iterable(_formats_of(value) for value in some)))
    read = {form: calendar_times.formatted_times(values, form) for form in formats}
    fitting = {form: known & _plausible(times) for form, (times, known) in read.items()}
    shares = {form: float(known.mean()) for form, known in fitting.items()}
    good = sorted(
        (form for form in formats if shares[form] >= _FITS),
        key=lambda form: (-shares[form], _order_of(form) in _UNUSUAL),
    )
    if not good:
        return None
    best = good[0]
    rivals = [form for form in good[1:] if shares[form] == shares[best] and _order_of(form) not in _UNUSUAL]
    if rivals:
        best, *rivals = sorted((best, *rivals), key=lambda form: _steps_back(texts, form))
        return FoundFormat(best, shares[best], values[0].as_py(), other=rivals[0])
    others = [form for form in formats if form != best and 0 < shares[form] < shares[best]]
    rival = max(others, key=lambda form: shares[form], default=None)
    if rival is None:
        return FoundFormat(best, shares[best], values[0].as_py())
    first = np.flatnonzero(fitting[best] & ~fitting[rival])
    strays = int((fitting[rival] & ~fitting[best]).sum())
    decided = values[int(first[0])].as_py() if len(first) else None
    return FoundFormat(best, shares[best], values[0].as_py(), decided_by=decided, strays=strays)


def _order_of(time_format: str) -> tuple[str, ...]:
    """The directives of a format's date in order."""
    return tuple(letter for letter in directives(time_format) if letter in "YymbBd")


def _plausible(times: np.ndarray) -> np.ndarray:
    return (times >= _LEAST_US) & (times < calendar_times.MAX_TIME_US)


def _steps_back(texts: pa.Array, time_format: str) -> int:
    """How often a time is before that of the row above it."""
    some = texts.slice(0, _MOST).dictionary_encode()
    times, known = calendar_times.formatted_times(some.dictionary, time_format)
    rows = some.indices.to_numpy()
    rows = rows[known[rows]]
    return int((np.diff(times[rows]) < 0).sum())


def _formats_of(value: str) -> list[str]:
    """Formats that a value may have, the more usual ones first.

    >>> _formats_of("31.12.2010"), _formats_of("12/1/10 8:26 PM")
    (['%d.%m.%Y', '%m.%d.%Y'], ['%m/%d/%y %I:%M %p', '%d/%m/%y %I:%M %p', '%y/%m/%d %I:%M %p'])
    """
    value = value.strip()
    if value.isdigit():
        return list(_IN_DIGITS.get(len(value), ()))
    if re.fullmatch(r"\d{8}[T ]\d{6}", value):
        return [f"%Y%m%d{value[8]}%H%M%S"]
    clock = _clock_of(value)
    before, after, time, half = (value, "", "", False) if clock is None else clock
    parts = [_words(_escaped(part)) for part in (before, after)]
    parts = [_ZONE.sub("%z", part) for part in parts]
    found = []
    for order in _orders(" ".join(parts), american=half):
        wanted = iter(order)
        filled = [_NUMBER.sub(lambda _: next(wanted), part) for part in parts]  # noqa: B023
        found.append(filled[0] + time + filled[1])
    return [form for form in found if _is_format(form)]


def _clock_of(value: str) -> tuple[str, str, str, bool] | None:
    """What stands before and after the time of day, its format, and whether it has AM or PM; None where there is none."""
    found = None
    for match in _CLOCK.finditer(value):
        # A date such as 31.12.10 has points too; a clock with points comes after the date and a blank.
        if match["colon"] == "." and not (match.start() > 5 and value[match.start() - 1] == " "):
            continue
        found = match
    if found is None:
        return None
    form = f"{'%I' if found['half'] else '%H'}{found['colon']}%M"
    form += f"{found['colon2']}%S" if found["second"] else ""
    form += f"{found['point']}%f" if found["point"] else ""
    for part, sign in (("half", "%p"), ("zone", "%Z" if (found["zone"] or "").strip() in ("UTC", "GMT") else "%z")):
        if text := found[part]:
            form += text[: len(text) - len(text.lstrip())] + sign
    return value[: found.start()], value[found.end() :], form, bool(found["half"])


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _words(text: str) -> str:
    """A text with directives in the place of months and weekdays."""
    for names, short, long in ((_MONTHS, "%b", "%B"), (_DAYS, "%a", "%A")):
        for name in names:
            text = re.sub(rf"(?i)(?<![A-Za-z%]){name}(?![A-Za-z])", long if len(name) > 3 else short, text)
            text = re.sub(rf"(?i)(?<![A-Za-z%]){name[:3]}(?![A-Za-z])", short, text)
    return text


def _orders(text: str, *, american: bool) -> Sequence[tuple[str, ...]]:
    """What the numbers of a date may be, in order."""
    numbers = _NUMBER.findall(text)
    lengths = [len(number) for number in numbers]
    if "%b" in text or "%B" in text:
        if len(numbers) != 2:
            return []
        return (
            [("%Y", "%d")] if lengths[0] == 4 else [("%d", "%Y")] if lengths[1] == 4 else [("%d", "%y"), ("%y", "%d")]
        )
    if len(numbers) != 3:
        return []
    if lengths[0] == 4:
        return [("%Y", "%m", "%d"), ("%Y", "%d", "%m")]
    year = "%Y" if lengths[2] == 4 else "%y"
    orders = [("%d", "%m", year), ("%m", "%d", year)]
    return (orders[::-1] if american else orders) + ([] if year == "%Y" else [("%y", "%m", "%d")])


def _is_format(time_format: str) -> bool:
    try:
        check_time_format(time_format, "time_format")
    except ValueError:
        return False
    return True
