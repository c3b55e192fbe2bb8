"""What the first pass finds in the log, or in a part of it: counts, vocabularies, new items, shard files.

Its size is bounded by the catalogue and the vocabularies, not by the log, so the driver can hold it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ctxrec.data import parsing
from ctxrec.data.column_facts import FirstReject, OddValues, TextFacts
from ctxrec.ingest.shard_files import ShardFile


@dataclass(frozen=True)
class NumberSums:
    """Sums over the values of a numeric column, on the scale sign(x)·log(1+|x|)."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    bad: int = 0  # values that are no finite number
    bad_example: str = field(default="", kw_only=True)  # the first of them
    low: float = np.inf  # the smallest and the largest number, as they stand
    high: float = -np.inf

    @staticmethod
    def of(numbers: np.ndarray, bad: int, *, bad_example: str = "") -> NumberSums:
        """Sums of `numbers`, float32 [N] with NaN for a missing value."""
        given = numbers[~np.isnan(numbers)]
        known = signed_log(given)
        low, high = float(given.min(initial=np.inf)), float(given.max(initial=-np.inf))
        total, squares = float(known.sum()), float((known**2).sum())
        return NumberSums(len(known), total, squares, bad, low, high, bad_example=bad_example)

    def __add__(self, other: NumberSums) -> NumberSums:
        return NumberSums(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.bad + other.bad,
            min(self.low, other.low),
            max(self.high, other.high),
            bad_example=self.bad_example or other.bad_example,
        )

    def note(self, column: str, where: str) -> list[str]:
        """A line for the user where values of a column are no numbers; `where` is "log" or "table"."""
        if not self.bad:
            return []
        return [
            f"{column}: {self.bad} values of the {where} are no finite number, such as {self.bad_example!r}; they count "
            f"as missing{self._how_to_read()}"
        ]

    def _how_to_read(self) -> str:
        """What to write into a spec where a decimal sign would make the first bad value a number."""
        texts = pa.array([self.bad_example])
        signs = [sign for sign in ",." if not parsing.plain_numbers(texts, sign).null_count]
        if not signs:
            return ""
        return (
            ". To read it, write "
            + " or ".join(f'decimal = "{sign}"' for sign in signs)
            + " in its section of the spec"
        )


def signed_log(numbers: np.ndarray) -> np.ndarray:
    """sign(x)·log(1+|x|): float64 of the same shape."""
    numbers = np.asarray(numbers, np.float64)
    return np.sign(numbers) * np.log1p(np.abs(numbers))


@dataclass
class ValueCounts:
    """Distinct values of a categorical column and the number of rows that have each."""

    values: pa.Array  # large_string, distinct
    counts: np.ndarray  # int64, of each value

    @staticmethod
    def empty() -> ValueCounts:
        return ValueCounts(pa.array([], pa.large_string()), np.zeros(0, np.int64))

    def __add__(self, other: ValueCounts) -> ValueCounts:
        values = pa.concat_arrays([self.values, other.values])
        table = pa.table({"value": values, "n": np.concatenate([self.counts, other.counts])})
        table = table.group_by("value").aggregate([("n", "sum")])
        return ValueCounts(table.column("value").combine_chunks(), table.column("n_sum").to_numpy())


class DistinctIds:
    """Distinct ids in the order of their first appearance.

    Added ids wait until they are as many as the distinct ones, so each id is looked at a number of times that grows with
    the logarithm of all ids, and not once for every part of the log.
    """

    def __init__(self, ids: pa.Array | None = None) -> None:
        self._ids = pa.array([], pa.string())
        self._waiting: list[pa.Array] = []
        self._num_waiting = 0
        if ids is not None:
            self.add(ids)

    def add(self, ids: pa.Array) -> None:
        """Take in ids (string) that follow; some may be there already."""
        self._waiting.append(ids)
        self._num_waiting += len(ids)
        if self._num_waiting > len(self._ids):
            self._settle()

    @property
    def array(self) -> pa.Array:
        """All distinct ids: string."""
        self._settle()
        return self._ids

    def _settle(self) -> None:
        if self._waiting:
            self._ids = pa.concat_arrays([self._ids, *self._waiting]).unique()
            self._waiting, self._num_waiting = [], 0

    def __len__(self) -> int:
        return len(self.array)


@dataclass
class LogFacts:
    """Facts of the whole log or of consecutive rows of it."""

    rows_read: int = 0
    rows_kept: int = 0
    future: int = 0  # kept rows whose time lies in the future
    first_us: int = 2**62  # times of the first and the last kept row, microseconds since 1970
    last_us: int = -1
    rejects: Counter[str] = field(default_factory=Counter)  # rejected rows by reason
    first_rejects: dict[str, FirstReject] = field(default_factory=dict)  # by reason
    file_rows: Counter[int] = field(default_factory=Counter)  # rows read, by position of the file in the log
    texts: dict[str, TextFacts] = field(default_factory=dict)  # of ids, times and text context, by column of the log
    shards: list[ShardFile] = field(default_factory=list)
    hours: Counter[int] = field(default_factory=Counter)  # kept rows by hour since 1970
    numbers: dict[str, NumberSums] = field(default_factory=dict)  # by column of the log
    new_items: DistinctIds = field(default_factory=DistinctIds)  # in no table, by first row
    knows_items: bool = False  # whether a kept row has an item of the item table
    odd: dict[tuple[str, str], OddValues] = field(default_factory=dict)  # by column of the log and kind
    actions: ValueCounts = field(default_factory=ValueCounts.empty)
    categories: dict[str, ValueCounts] = field(default_factory=dict)  # by column of the log
    mistake: str = ""  # what is wrong with the user's files, where only reading them shows it

    def merge(self, later: LogFacts) -> None:
        """Take in the facts of the rows that follow."""
        self.rows_read += later.rows_read
        self.rows_kept += later.rows_kept
        self.future += later.future
        self.first_us = min(self.first_us, later.first_us)
        self.last_us = max(self.last_us, later.last_us)
        self.rejects.update(later.rejects)
        self.first_rejects = later.first_rejects | self.first_rejects
        self.file_rows.update(later.file_rows)
        for name, facts in later.texts.items():
            self.texts[name] = self.texts.get(name, TextFacts()) + facts
        self.shards += later.shards
        self.hours.update(later.hours)
        for name, sums in later.numbers.items():
            self.numbers[name] = self.numbers.get(name, NumberSums()) + sums
        self.new_items.add(later.new_items.array)
        self.knows_items |= later.knows_items
        for key, values in later.odd.items():
            self.odd[key] = self.odd[key] + values if key in self.odd else values
        self.actions += later.actions
        for name, found in later.categories.items():
            self.categories[name] = self.categories.get(name, ValueCounts.empty()) + found
        self.mistake = self.mistake or later.mistake
