"""A sample of a table with a look at each of its columns."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.data import parsing
from ctxrec.data.column_facts import short
from ctxrec.ingest import readers
from ctxrec.ingest.file_damage import UTF_8
from ctxrec.ingest.guess.column_look import ColumnLook, look_at_column
from ctxrec.ingest.guess.decimals import Decimals, decimals_of
from ctxrec.ingest.guess.table_sample import TableSample


@dataclass(frozen=True, eq=False)
class LookedTable:
    """A table as far as it was looked at."""

    sample: TableSample
    looks: dict[str, ColumnLook]  # by column, in the table's order
    decimals: Decimals = field(default_factory=Decimals)
    _texts: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.sample.name

    @property
    def stem(self) -> str:
        """The table's name without folder and endings."""
        return os.path.basename(self.name.rstrip("/")).split(".")[0]

    @property
    def doubts(self) -> list[str]:
        """What is not sure about the file itself."""
        sample, doubts = self.sample, []
        if not sample.has_header:
            doubts.append(
                f"the first line of {self.name} looks like values and not like names of columns; expected a line of "
                "names. Add one"
            )
        if not sample.encoding_is_sure:
            shown = next((f", as in {word!r}" for word in map(_beyond_ascii, sample.rows.columns) if word), "")
            doubts.append(
                f"{self.name} is no UTF-8; its letters look like {sample.encoding}{shown}. Check how they are written"
            )
        return [*doubts, *self.decimals.doubts]

    @property
    def form(self) -> dict[str, Any]:
        """The keys of a section of the spec that say where the files lie and how they are written."""
        sample = self.sample
        usual = readers.DELIMITERS.get(sample.format)
        return {
            "path": sample.name,
            "delimiter": None if sample.delimiter == usual else sample.delimiter,
            "encoding": None if sample.encoding == UTF_8 else sample.encoding,
            "decimal": self.decimals.sign,
        }

    def texts(self, column: str) -> pa.Array:
        """A column of the sample as texts, with null where a value is missing."""
        if column not in self._texts:
            self._texts[column] = parsing.to_text(self.sample.rows.column(column))
        return self._texts[column]


def _beyond_ascii(column: pa.ChunkedArray) -> str | None:
    """The first value of a column of texts with a letter that ASCII lacks, shortened."""
    if not parsing.is_text(column.type):
        return None
    found = column.filter(pc.match_substring_regex(column, r"[^\x00-\x7f]"))
    return short(found[0].as_py()) if len(found) else None


def look_at_table(sample: TableSample) -> LookedTable:
    """Look at every column of a sample."""
    rows = sample.rows
    found = decimals_of(rows, sample.delimiter)
    looks = {name: look_at_column(name, rows.column(name), decimal=found.sign) for name in rows.column_names}
    return LookedTable(sample, looks, found)


def found_in(log: LookedTable, column: str, table: LookedTable, key: str) -> float:
    """About which share of the different values of a column of the log are keys of a table, from 0 to 1.

    Where the table was not read whole, so much more is taken to be there.
    """
    values, keys = log.texts(column).drop_null().unique(), table.texts(key).drop_null().unique()
    if not len(values) or not len(keys):
        return 0.0
    part = (pc.sum(pc.is_in(values, value_set=keys)).as_py() or 0) / len(values)
    return min(part / max(table.sample.share, 1e-9), 1.0)
