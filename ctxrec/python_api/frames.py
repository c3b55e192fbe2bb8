"""Tables of pandas, polars and Arrow to Arrow, and Arrow back to the kind that came in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa

from ctxrec.core.errors import UserError

Kind = Literal["pandas", "polars", "arrow"]


def kind_of(table: Any) -> Kind | None:
    """Which kind of table this is; None where it is none."""
    package = type(table).__module__.partition(".")[0]
    if package == "pandas" and type(table).__name__ == "DataFrame":
        return "pandas"
    if package == "polars" and type(table).__name__ in ("DataFrame", "LazyFrame"):
        return "polars"
    if isinstance(table, (pa.Table, pa.RecordBatch)) or hasattr(table, "__arrow_c_stream__"):
        return "arrow"
    return None


def to_arrow(table: Any, *, what: str) -> pa.Table:
    """A table of any kind as Arrow.

    Args:
        table: a pandas, polars or Arrow table, or anything that gives an Arrow stream.
        what: its name for messages.

    Raises:
        UserError: it is no table, or a column has values that Arrow has no type for.
    """
    kind = kind_of(table)
    if kind is None:
        raise UserError(
            f"{what} is a {type(table).__name__}; expected a pandas, polars or pyarrow table, or the path of a file"
        )
    if hasattr(table, "collect"):
        table = table.collect()
    if kind == "pandas":
        named = [name for name in table.index.names if name is not None]
        _check_names([*named, *table.columns], what)
        table = table.reset_index() if named else table
    try:
        made = _arrow_of(table, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        told = " ".join(" ".join(str(part) for part in error.args).split())
        raise UserError(
            f"{what} has a column whose values are of several types, or of one that Arrow does not have ({told}); expected "
            "one type a column. Convert it, for example with .astype(str)"
        ) from error
    _check_names(made.column_names, what)
    return made


def _check_names(names: Iterable[Any], what: str) -> None:
    """Check that each name stands once, as text: Arrow has texts alone, so 0 and "0" are one name."""
    seen: set[str] = set()
    for name in map(str, names):
        if name in seen:
            raise UserError(f"{what} has two columns {name!r}; expected each name once. Rename one of them")
        seen.add(name)


def _arrow_of(table: Any, kind: Kind) -> pa.Table:
    if kind == "pandas":
        return pa.Table.from_pandas(table, preserve_index=False)
    if kind == "arrow":
        return pa.table(table)
    if objects := [name for name, held in table.schema.items() if str(held) == "Object"]:
        raise TypeError(f"column {objects[0]} holds Python objects")  # polars would write their places in memory
    return table.to_arrow()


def from_arrow(table: pa.Table, kind: Kind) -> Any:
    """An Arrow table as a table of another kind.

    Raises:
        UserError: the package of that kind is not installed.
    """
    try:
        if kind == "pandas":
            return table.to_pandas()
        if kind == "polars":
            import polars

            return polars.from_arrow(table)
    except ImportError as error:
        raise UserError(
            f'tables are asked for as {kind}, which is not installed; install it, or take "arrow"'
        ) from error
    return table
