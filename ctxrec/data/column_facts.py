"""What a person wants to see of data: how much of a column is missing, what its values look like, what was rejected."""

from __future__ import annotations

from collections.abc import Sequence
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


def examples(values: pa.Array | Sequence[str]) -> list[str]:
    """The first different values, shortened."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = parsing.to_text(values).drop_null().unique().to_pylist()
    return [short(value) for value in values[:EXAMPLES]]


def short(text: str) -> str:
    """A text in one line of at most 40 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


def number_range(low: float, high: float) -> list[str]:
    """The smallest and the largest number as texts; nothing where there is no number."""
    if not np.isfinite(low) or not np.isfinite(high):
        return []
    return [np.format_float_positional(np.float32(x), trim="-") for x in dict.fromkeys((low, high))]


def share(part: int, whole: int) -> float:
    """A part of a whole, 0 of nothing."""
    return part / whole if whole else 0.0
