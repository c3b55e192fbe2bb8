"""What the data sets share: finding their files, reading tables of any format, writing tables with their spec."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import logging
import os
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
SOURCE_RECORD = "source.json"  # where the tables came from, and their hashes
Kind = Literal["text", "number", "whole", "time"]


@dataclass(frozen=True)
class Made:
    """A data set in memory: its tables by file name without ending, its `dataset.toml`, and where it came from."""

    tables: dict[str, pa.Table]
    spec: str
    source: str


def write_dataset(out: str, source: str | None, *, writer: str, make: Callable[[], Made]) -> bool:
    """Write what `make` gives to the folder `out`; returns False when it was there, unchanged.

    Args:
        out: local folder.
        source: what the user gave with --source, if anything.
        writer: data set and version of the code that makes its tables; another one writes them again.
        make: called when something must be written.

    Raises:
        UserError: what was made has no event.
    """
    if _unchanged(out, source, writer):
        return False
    made = make()
    if not made.tables["events"].num_rows:
        raise UserError(f"found no event in {made.source}; expected the data set's own log")
    os.makedirs(out, exist_ok=True)
    for name, table in made.tables.items():
        pq.write_table(table, os.path.join(out, f"{name}.parquet"))
    storage.write_text(os.path.join(out, "dataset.toml"), made.spec)
    names = ["dataset.toml", *(f"{name}.parquet" for name in made.tables)]
    sums = {name: storage.sha256_file(os.path.join(out, name)) for name in names}
    given = os.path.abspath(source) if source else None
    manifest = {"source": made.source, "given": given, "writer": writer, "sha256": sums}
    storage.write_json(os.path.join(out, SOURCE_RECORD), manifest)
    return True


def source_name(out: str) -> str:
    """Where the tables in a folder came from."""
    return storage.read_json(os.path.join(out, SOURCE_RECORD))["source"]


def _unchanged(out: str, source: str | None, writer: str) -> bool:
    path = os.path.join(out, SOURCE_RECORD)
    if not os.path.exists(path):
        return False
    manifest = storage.read_json(path)
    if manifest.get("writer") != writer or (source and manifest["given"] != os.path.abspath(source)):
        return False
    files = {os.path.join(out, name): digest for name, digest in manifest["sha256"].items()}
    return all(os.path.exists(name) and storage.sha256_file(name) == digest for name, digest in files.items())


def download(url: str, name: str, *, what: str, md5: str | None = None) -> str:
    """The local path of a file on the web; a copy downloaded before is taken again.

    Args:
        url: where it lies.
        name: name of the copy in the cache.
        what: what to call it in messages.
        md5: its sum where the publisher gives one.

    Raises:
        UserError: it cannot be had, or differs from the published sum.
    """
    folder = os.path.join(storage.cache_dir(), "downloads")
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"{what} is not reachable ({getattr(error, 'reason', error)})") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise UserError(f"{what} has md5 {found}, expected {md5}")
    os.makedirs(folder, exist_ok=True)
    storage.write_bytes(path, data)
    return path


def find_files(path: str, wanted: Sequence[str], *, what: str) -> dict[str, bytes]:
    """The first file that fits each pattern of names, from a folder, a zip (also one alone in a folder), or a file.

    Args:
        path: what the user gave.
        wanted: patterns of base names, several in one with "|" between: "events.parquet|events.csv".
        what: the data set, for messages.

    Returns:
        Base name -> content, in the order of `wanted`.

    Raises:
        UserError: a pattern finds nothing.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no {path}; expected a file, folder or zip with {_listed(wanted)} of {what}")
    if os.path.isdir(path):
        inside = {name: os.path.join(path, name) for name in sorted(os.listdir(path))}
        archives = [name for name in inside if name.endswith(".zip")]
        if len(archives) == 1 and not any(_fits(name, patterns) for patterns in wanted for name in inside):
            return find_files(inside[archives[0]], wanted, what=what)
        return _pick(inside, wanted, storage.read_bytes, path=path, what=what)
    if zipfile.is_zipfile(path) and not path.endswith(".xlsx"):  # a workbook is a zip too
        with zipfile.ZipFile(path) as archive:
            inside = {name.rsplit("/", 1)[-1]: name for name in archive.namelist()}
            try:
                return _pick(inside, wanted, archive.read, path=path, what=what)
            except zipfile.BadZipFile as error:
                raise UserError(f"{path} is damaged ({error}); take an unchanged copy of {what}") from error
    return _pick({os.path.basename(path): path}, wanted, storage.read_bytes, path=path, what=what)


def _pick(
    inside: dict[str, str], wanted: Sequence[str], read: Callable[[str], bytes], *, path: str, what: str
) -> dict[str, bytes]:
    found = {}
    for patterns in wanted:
        names = [n for pattern in patterns.split("|") for n in inside if _fits(n, pattern)]
        if not names:
            raise UserError(
                f"found {', '.join(sorted(inside)[:8]) or 'no file'} in {path}; expected {_listed([patterns])} of {what}"
            )
        found[names[0]] = read(inside[names[0]])
    return found


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns.split("|"))


def _listed(wanted: Sequence[str]) -> str:
    return " and ".join(patterns.replace("|", " or ") for patterns in wanted)


def read_frame(name: str, data: bytes, columns: Mapping[str, Kind]) -> pd.DataFrame:
    """A table file (parquet, csv or xlsx by its ending) with at least `columns`, which alone are returned.

    Every column has the type of its kind whatever the file's own is; what is missing (in a text: empty) is NA.

    Args:
        name: the file's name.
        data: its content.
        columns: kind of each wanted column: "text" (also for ids), "number" (float64), "whole" (Int64), "time".

    Raises:
        UserError: the file cannot be read, a column is missing, or a value is not of its column's kind.
    """
    try:
        frame = _read_table(name, data)
    except (pa.ArrowInvalid, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{name} cannot be read ({error}); take an unchanged copy of the data set's own file"
        ) from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(
            f"{name} has the columns {', '.join(map(str, frame.columns[:12])) or 'none'}; expected also "
            f"{', '.join(missing)}. Take the data set's own file"
        )
    return pd.DataFrame({column: typed(frame[column], kind, where=name) for column, kind in columns.items()})


def _read_table(name: str, data: bytes) -> pd.DataFrame:
    ending = name.rsplit(".", 1)[-1].lower()
    if ending == "parquet":
        return pq.read_table(io.BytesIO(data)).to_pandas()
    # By the cells or the csv rules alone: an id may be "007", and a film may be called "NA" or "None".
    if ending == "xlsx":
        return pd.read_excel(io.BytesIO(data), dtype=object, keep_default_na=False)
    return pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)


def typed(values: pd.Series, kind: Kind, *, where: str) -> pd.Series:
    """Values as one kind of column; see `read_frame`.

    Raises:
        UserError: a value is not of the kind.
    """
    if kind == "text":
        return values.map(str, na_action="ignore").astype("str").replace("", None)
    given = values.mask(values == "") if values.dtype == object or pd.api.types.is_string_dtype(values) else values
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of a format that cannot be inferred; wrong values are named below
        parsed = pd.to_datetime(given, errors="coerce") if kind == "time" else pd.to_numeric(given, errors="coerce")
    wrong = parsed.isna() & given.notna()
    if kind == "whole":
        wrong |= parsed.notna() & (parsed % 1 != 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        asked = {"number": "a number", "whole": "a whole number", "time": "a time"}[kind]
        raise UserError(
            f"{where} has {given.iloc[row]!r} as {values.name} in row {row + 1}; expected {asked}. "
            "Take an unchanged copy of the data set's own file"
        )
    return parsed if kind == "time" else parsed.astype("Int64" if kind == "whole" else "float64")
