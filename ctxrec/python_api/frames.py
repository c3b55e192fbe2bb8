"""Tables of pandas, polars and Arrow to Arrow, and Arrow back to the kind that came in."""

from __future__ import annotations

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
    if kind == "pandas":
        named = [name for name in table.index.names if name is not None]
        table = table.reset_index() if named else table
        if twice := next((name for name in table.columns if list(table.columns).count(name) > 1), None):
            raise UserError(f"{what} has two columns {twice!r}; expected each name once. Rename one of them")
        try:
            return pa.Table.from_pandas(table, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            told = " ".join(str(part) for part in error.args)
            raise UserError(
                f"{what} has a column whose values are of several types ({told}); expected one type a column. "
                "Convert it, for example with .astype(str)"
            ) from error
    if kind == "polars":
        return (table.collect() if hasattr(table, "collect") else table).to_arrow()
    return pa.table(table)


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
