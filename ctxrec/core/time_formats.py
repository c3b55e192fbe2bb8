"""Formats of times as texts, in the directives of `strptime`: which ones a dataset spec may name."""

from __future__ import annotations

import calendar
import re

from ctxrec.core.errors import UserError

EXAMPLE = '"%d/%m/%Y %H:%M" for 31/12/2010 08:26'
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_KNOWN = frozenset("aAbBdfHIjmMpSyYzZ%")  # directives that mean a part of a time; those of locales are none of them
_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "I": 2, "M": 2, "S": 2, "j": 3}

_PATTERNS = {"%Y": r"(?P<year>\d{4})", "%y": r"(?P<year>\d{1,2})", "%j": r"(?P<j>\d{1,3})", "%%": "%"}
_SAME_PART = (("Yy", "the year"), ("mbB", "the month"), ("HI", "the hour"), ("zZ", "the offset or zone"))


def directives(time_format: str) -> list[str]:
    """The letters of a format's directives in order.

    >>> directives("%d/%m/%Y, 100 %%")
    ['d', 'm', 'Y', '%']
    """
    return _DIRECTIVE.findall(time_format)


def names_zone(time_format: str) -> bool:
    """Whether texts of a format name their offset or zone."""
    return bool({"z", "Z"} & set(directives(time_format)))


def digits(time_format: str) -> int | None:
    """How many digits a text of a format has, where it has nothing but digits; None for other formats.

    >>> digits("%Y%m%d%H%M%S"), digits("%d/%m/%Y")
    (14, None)
    """
    found = directives(time_format)
    if _DIRECTIVE.sub("", time_format) or not all(letter in _WIDTHS for letter in found):
        return None
    return sum(_WIDTHS[letter] for letter in found)


def is_day_of_no_year(text: str, time_format: str) -> bool:
    """Whether a text names day 366 of a year that has 365, which pandas and `strptime` read as the first day of the next.

    >>> is_day_of_no_year("366/2023", "%j/%Y"), is_day_of_no_year("366/2024", "%j/%Y")
    (True, False)
    """
    parts = re.split(r"(%.)", time_format)
    found = re.fullmatch(
        "".join(_PATTERNS.get(part, ".+?" if part[:1] == "%" else re.escape(part)) for part in parts), text
    )
    if found is None or int(found["j"]) != 366:
        return False
    year = int(found["year"])
    return not calendar.isleap(year if "%Y" in parts else year + (1900 if year >= 69 else 2000))


def check_time_format(time_format: str, key: str) -> None:
    """Check that a format is one that tells the day of a time.

    Raises:
        UserError: a directive is unknown, or a part of the time is missing; it names the key.
    """
    if not isinstance(time_format, str):  # as Python may give it
        raise UserError(f"{key} is {time_format!r}; expected a text such as {EXAMPLE}")
    found = directives(time_format)
    told = f"{key} is {time_format!r}"
    unknown = next((letter for letter in found if letter not in _KNOWN), None)
    if unknown is not None:
        known = " ".join(
            f"%{letter}" for letter in sorted(_KNOWN - {"%"}, key=lambda letter: (letter.lower(), letter.isupper()))
        )
        raise UserError(f"{told}, and %{unknown} is no directive; expected some of {known}, such as {EXAMPLE}")
    twice = next((letter for letter in found if letter != "%" and found.count(letter) > 1), None)
    if twice is not None:
        raise UserError(f"{told}, which has %{twice} twice; expected each part of a time once, such as {EXAMPLE}")
    if not {"Y", "y"} & set(found):
        raise UserError(f"{told}, which has no year; expected %Y (2010) or %y (10), such as {EXAMPLE}")
    if "d" in found and not {"m", "b", "B"} & set(found):
        what = "%M is the minutes, and %m the month" if "M" in found else "%m is the month as a number, %b as a word"
        raise UserError(f"{told}, which has a day and no month; {what}. Expected a format such as {EXAMPLE}")
    if {"H", "I"} & set(found) and not {"d", "j"} & set(found):
        raise UserError(f"{told}, which has an hour and no day; expected %d (1 to 31), such as {EXAMPLE}")
    if "M" in found and not {"H", "I"} & set(found):
        raise UserError(f"{told}, which has minutes and no hour; %M is the minutes, and %m the month")
    for letters, what in _SAME_PART:
        if len(given := [f"%{letter}" for letter in found if letter in letters]) > 1:
            raise UserError(
                f"{told}, where {' and '.join(given)} are both {what}; expected one of them, such as {EXAMPLE}"
            )
    if ("I" in found) != ("p" in found):
        raise UserError(f"{told}; expected %I (1 to 12) and %p (AM or PM) together, or %H (0 to 23) alone")
