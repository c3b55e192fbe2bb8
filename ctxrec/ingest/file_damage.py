"""Files of tables whose content is damaged: an error of Arrow, or a quotation mark that is not closed, as one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pyarrow as pa

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.ingest.quote_check import check_quotes

UTF_8 = "utf-8"
NAME_ITS_ENCODING = 'Name its encoding in the dataset spec, such as encoding = "cp1252"'


def open_text(path: str, encoding: str) -> pa.NativeFile:
    """The content of a text file as a stream of UTF-8."""
    stream = storage.open_stream(path)
    return stream if encoding == UTF_8 else pa.transcoding_input_stream(stream, encoding, UTF_8)


def check_csv_quotes(path: str, encoding: str, delimiter: str) -> None:
    """Check the quotation marks of a csv file.

    Raises:
        UserError: one is not closed, or swallows rows.
    """
    check_quotes(lambda: open_text(path, encoding), path, delimiter=delimiter)


@contextlib.contextmanager
def damage_named(path: str, kind: str, encoding: str = UTF_8, delimiter: str | None = None) -> Iterator[None]:
    """Errors of Arrow about the content of a file become a `UserError` that names it.

    Args:
        path: of the file.
        kind: its format.
        encoding: of a text file.
        delimiter: of a csv file; None: a comma.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
            raise
        if kind == "csv" and isinstance(error, pa.ArrowInvalid):  # such as a value that is larger than a block
            check_csv_quotes(path, encoding, delimiter or ",")
        expected = "a whole parquet file" if kind == "parquet" else f"a whole file of {encoding.upper()} {kind}"
        remedy = f". {NAME_ITS_ENCODING}" if re.search("UTF-?8 data|codec can't decode", str(error)) else ""
        raise UserError(f"{path} cannot be read: {str(error).rstrip('.')}. Expected {expected}{remedy}") from error
