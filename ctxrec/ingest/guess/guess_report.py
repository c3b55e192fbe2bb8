"""What `ctxrec init` prints: a table of what was seen in each file, and what is not sure."""

from __future__ import annotations

import textwrap

from ctxrec.ingest.guess.guessing import Guess
from ctxrec.ingest.guess.looked_table import LookedTable
from ctxrec.ingest.guess.spec_text import time_form

_WIDTH = 120


def describe_guess(guess: Guess) -> str:
    """The guess for a person: a table for each file, then the doubts, numbered."""
    lines: list[str] = []
    for role, table in guess.tables.items():
        lines += [_head(role, table), *_rows(table, guess.uses.get(role, {})), ""]
    for table in guess.left_out:
        lines += [_head("not used", table), ""]
    if not guess.unsure:
        return "\n".join([*lines, "nothing is unsure"])
    lines.append(f"not sure ({len(guess.unsure)}):")
    for number, doubt in enumerate(guess.unsure, 1):
        first, rest = f"{number:3d}. ", " " * 5
        lines += textwrap.wrap(f"[{doubt.key}] {doubt.text}", _WIDTH, initial_indent=first, subsequent_indent=rest)
    return "\n".join(lines)


def _head(role: str, table: LookedTable) -> str:
    sample = table.sample
    parts = [f"{'' if sample.whole else 'about '}{sample.num_rows:,} rows", sample.format]
    if not sample.whole:
        parts[0] += f", of which {len(sample.rows):,} were looked at"
    if sample.num_files > 1:
        parts.insert(0, f"{sample.num_files} files")
    if sample.delimiter is not None:
        parts.append(f"delimiter {sample.delimiter!r}")
    if sample.encoding is not None:
        parts.append(sample.encoding)
    return f"{role}: {table.name} ({', '.join(parts)})"


def _rows(table: LookedTable, uses: dict[str, str]) -> list[str]:
    """Aligned lines of a table: one for each column, under a head."""
    cells = [("column", "use", "values", "missing", "distinct", "examples")]
    for column, look in table.looks.items():
        use = uses.get(column, "") or "-"
        kind = f"list by {look.separator!r}" if look.separator and "categorical" in use else look.kind
        if use == "time":
            kind = time_form(table, column)
        distinct = f"{look.distinct:,}" if look.distinct else ""
        examples = (
            f"{look.low:.7g} to {look.high:.7g}"
            if look.kind == "number" and use not in ("time", "user", "item", "id")
            else ", ".join(look.examples)
        )
        cells.append((column, use, kind, f"{look.missing:.0%}", distinct, examples))
    widths = [max(len(row[n]) for row in cells) for n in range(6)]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if n in (3, 4) else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        line = f"  {'  '.join(parts)}".rstrip()
        lines.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")
    return lines
