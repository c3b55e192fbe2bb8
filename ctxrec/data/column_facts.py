"""What a person wants to see of data: how much of a column is missing, what its values look like, what was rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.data import parsing

EXAMPLES = 3
_MOST_CHARACTERS = 40  # of an example


@dataclass(frozen=True)
class ColumnFacts:
    """Facts of one column of the log or of a table.

    Attributes:
        column: its name.
        use: what the spec uses it for, such as "categorical".
        missing: share of the rows without a value, from 0 to 1.
        distinct: number of different values; None: not counted.
        examples: a few values; the most frequent ones of a category, the first ones of a text, and the smallest and the
            largest number.
    """

    column: str
    use: str
    missing: float
    distinct: int | None = None
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FirstReject:
    """The first row that was rejected for a reason: where it stands, and the values that the reason speaks of."""

    file: str
    row: int  # 1 is the first data row of the file
    values: str  # as column = 'value', or the text of a line

    @property
    def place(self) -> tuple[str, int]:
        return self.file, self.row


@dataclass(frozen=True)
class TextFacts:
    """Missing values of a column of texts or ids, and its first values; parts of a column add up."""

    missing: int = 0
    examples: tuple[str, ...] = ()

    @staticmethod
    def of(column: pa.Array | pa.ChunkedArray) -> TextFacts:
        """Facts of a column of any type. A text of blanks counts as a value here."""
        array = parsing.one_array(column)
        if pa.types.is_dictionary(array.type):
            empty = array.null_count
        else:
            is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
            empty = array.null_count + (pc.sum(pc.equal(array, "")).as_py() or 0 if is_text else 0)
        return TextFacts(int(empty), tuple(examples(array.slice(0, 100))))

    def __add__(self, other: TextFacts) -> TextFacts:
        joined = dict.fromkeys((*self.examples, *other.examples))
        return TextFacts(self.missing + other.missing, tuple(joined)[:EXAMPLES])


_NO_VALUE = pa.array(["nan", "NaN", "NULL", "null", "None", "NA", "N/A", "<NA>", "\\N", "#N/A"])
_ODD = {
    "blanks": "have blanks around them, such as {example!r}; without the blanks it would be another value",
    "words": "are a word for a missing value, such as {example!r}, and count as that word. Leave the field empty where a "
    "value is missing",
    "floats": "are whole numbers written as floats, such as {example!r}; they keep their spelling, so that the number "
    "without its point is another id",
}


@dataclass(frozen=True)
class OddValues:
    """Rows whose values a person may not have meant, and one of the values."""

    rows: int
    example: str

    def __add__(self, other: OddValues) -> OddValues:
        return OddValues(self.rows + other.rows, self.example)


def odd_values(values: pa.Array, counts: np.ndarray, *, ids: bool) -> dict[str, OddValues]:
    """Values that a person may not have meant, by the kind of oddity.

    Args:
        values: distinct strings.
        counts: int64, rows that have each.
        ids: whether they are ids, which have no normal form.
    """
    tests = {"words": pc.is_in(values, value_set=_NO_VALUE.cast(values.type))}
    if ids:
        tests["blanks"] = pc.match_substring_regex(values, r"^\s|\s$")
        tests["floats"] = pc.match_substring_regex(
            values, r"^-?[0-9]+\.0+$|^-?[1-9](\.[0-9]+)?[eE]\+[0-9]+$|^-?[1-9]\.[0-9]+E[0-9]+$"
        )
    found = {}
    for kind, mask in tests.items():
        rows = mask.to_numpy(zero_copy_only=False) & (counts > 0)
        if rows.any():
            found[kind] = OddValues(int(counts[rows].sum()), values[int(np.argmax(rows))].as_py())
    return found


def notes_on(column: str, odd: Mapping[str, OddValues]) -> list[str]:
    """One line for the user about each kind of odd values of a column."""
    return [
        f"{column}: {found.rows:,} values {_ODD[kind].format(example=found.example)}" for kind, found in odd.items()
    ]


def examples(values: pa.Array | Sequence[str]) -> list[str]:
    """The first different values, shortened."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = parsing.to_text(values).drop_null().unique().to_pylist()
    return [short(value) for value in values[:EXAMPLES]]


def short(text: str) -> str:
    """A text in one line of at most 40 characters."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


def number_range(low: float, high: float) -> list[str]:
    """The smallest and the largest number as texts; nothing where there is no number."""
    if not np.isfinite(low) or not np.isfinite(high):
        return []
    return [np.format_float_positional(np.float32(x), trim="-") for x in dict.fromkeys((low, high))]


def share(part: int, whole: int) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0
