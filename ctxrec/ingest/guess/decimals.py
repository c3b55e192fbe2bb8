"""The decimal sign of a table whose numbers are texts: 2,55 has a comma, and 1,234 may be thousands."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.data import parsing
from ctxrec.ingest.guess import names

_LOOKED_AT = 100_000  # distinct values of a column


@dataclass(frozen=True)
class Decimals:
    """The decimal sign of a table's texts, "," or "."; None: a point, and nothing is grouped. And what is not sure of it."""

    sign: str | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Numbers:
    """A column all of whose values are numbers for some decimal sign, with one value that shows it."""

    name: str
    example: str
    signs: frozenset[str]  # those under which all values are numbers
    is_plain: bool  # whether they are numbers without a sign that is named


def decimals_of(rows: pa.Table, delimiter: str | None) -> Decimals:
    """The decimal sign of a sample of a table.

    A column with 2,55 or 1.234,5 has a decimal comma, and one with 1,234.50 or 1,234,567 a decimal point. Where no value
    decides, the comma is taken for the decimal sign if it does not divide the columns, and the guess is not sure.

    Args:
        rows: the sample.
        delimiter: what divides the columns of a text file; None: no text file.
    """
    found = [numbers for name in rows.column_names if (numbers := _look(name, rows.column(name))) is not None]
    spelled = [n for n in found if not n.is_plain]
    if not spelled:
        return Decimals()
    comma, point = ([n for n in spelled if n.signs == {sign}] for sign in ",.")
    unused = delimiter not in (None, ",")
    plain = [n for n in found if n.is_plain and "," not in n.signs]  # such as 1.5
    if comma or point:
        sign = "," if len(comma) >= len(point) and comma else "."
    else:
        sign = "," if unused and not plain else "."
    doubts = []
    for n in spelled:
        if sign not in n.signs:
            doubts.append(f"{n.name} has numbers such as {n.example!r}, which are none with decimal = {sign!r}")
        elif len(n.signs) == 2:
            doubts.append(
                f"{n.name} has numbers such as {n.example!r}, which may have a decimal comma or grouped thousands; it is "
                f"read with decimal = {sign!r}, as {_read(n.example, sign)}. Check it, since the other sign gives another number"
            )
        elif sign == "," and not unused:
            doubts.append(f"{n.name} is taken for numbers with a decimal comma, such as {n.example!r}")
    if sign == ",":
        doubts += [f"{n.name} has numbers such as {n.example!r}, which are none with a decimal comma" for n in plain]
        doubts += [
            f"{n.name} has numbers such as {n.example!r}, which are read with a decimal comma, as {_read(n.example, sign)}"
            for n in found
            if n.is_plain and "," in n.signs
        ]
    return Decimals(sign, tuple(doubts))


def _read(text: str, sign: str) -> str:
    return f"{parsing.to_numbers(pa.array([text]), decimal=sign)[0][0]:.7g}"


def _look(name: str, column: pa.ChunkedArray) -> _Numbers | None:
    """What a column says of the decimal sign; None where it says nothing."""
    array = parsing.without_dictionary(column)
    if not parsing.is_text(array.type) or names.says(name, names.WORDY):
        return None
    texts = parsing.to_text(array).drop_null().unique()[:_LOOKED_AT]
    marked = texts.filter(pc.match_substring_regex(texts, rf"[.,'’]|[0-9][{parsing.BLANKS}][0-9]"))
    if not len(marked):
        return None
    signs = frozenset(sign for sign in ",." if not parsing.plain_numbers(texts, sign).null_count)
    is_plain = not parsing.parse_matching(texts, parsing.NUMBER, pa.float64()).null_count
    if not signs and not is_plain:
        return None
    return _Numbers(name, marked[0].as_py(), signs, is_plain)
