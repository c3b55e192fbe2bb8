"""Whether the ids of the log are those of a table, and what differs where they are not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.errors import UserError

WARNING = "warning: "  # begins a note that a person must not overlook
_WARN_FROM = 0.1  # share of the training events whose items no table has
_SHOWN = 3
_LOOKED_AT = 100_000


def check_any_match(missing: pa.Array, table: pa.Array, *, knows_any: bool, column: str, key: str) -> None:
    """Check that at least one item of the log is in the item table.

    Args:
        missing: ids of the log that the table lacks.
        table: ids of the table.
        knows_any: whether the log has an id of the table.
        column: of the log.
        key: of the table.

    Raises:
        UserError: none is, so that no item of the log has content, and no item of the table an event.
    """
    if knows_any or not len(missing) or not len(table):
        return
    raise UserError(
        f"no item of the log is in the item table: column {column!r} of [events] has {_some(missing)}, and {key!r} of "
        f"[items] {_some(table)}. {_remedy(missing, table)}"
    )


def note_on_missing(missing: pa.Array, table: pa.Array, train_events: np.ndarray) -> list[str]:
    """A note on items of the log that no table has; a warning where they have a tenth of the training events or more,
    or the table is empty.

    Args:
        missing: ids of the log that the table lacks.
        table: ids of the table.
        train_events: int64, training events of the items of the table and then of those that it lacks.
    """
    if not len(missing):
        return []
    if not len(table):
        return [
            f"{WARNING}the item table has no row, so no item has content. Leave [items] out where there is none, else give "
            "the whole table"
        ]
    share = float(train_events[len(table) :].sum() / max(train_events.sum(), 1))
    told = (
        f"{len(missing)} items of the log are in no item table, such as {missing[0].as_py()!r}; kept with empty content"
    )
    if share < _WARN_FROM:
        return [told]
    return [
        f"{WARNING}{len(missing)} items of the log are in no item table, with {share:.1%} of the training events; kept with "
        f"empty content. The log has {_some(missing)}, the table {_some(table)}. {_remedy(missing, table)}"
    ]


def _some(ids: pa.Array) -> str:
    return ", ".join(repr(value) for value in ids[:_SHOWN].to_pylist())


_SAME_BUT = {
    "leading zeros": lambda ids: pc.utf8_ltrim(ids, "0"),
    "capitals": pc.utf8_lower,
    "blanks around them": pc.utf8_trim_whitespace,
    'an ending ".0"': lambda ids: pc.replace_substring_regex(ids, r"\.0+$", ""),
}


def _remedy(missing: pa.Array, table: pa.Array) -> str:
    """What to do; it names the difference in spelling that the most ids have."""
    some = missing[:_LOOKED_AT].cast(pa.string())
    found = {}
    for what, plain in _SAME_BUT.items():
        same = pc.is_in(plain(some), value_set=plain(table.cast(pa.string())))
        found[what] = pc.sum(same).as_py() or 0
    best = max(found, key=lambda what: found[what])
    if not found[best]:
        return "Write both ids in the same way, or name the column of the other ids"
    return f"{found[best]} of them differ by {best} alone: write both ids in the same way"
