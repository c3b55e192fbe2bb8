"""How much the check for stray quotation marks adds to reading a CSV: python tests/bench/csv_quotes.py [--mb 200]

Each file lies on disk. It is read by Arrow alone and with the check, in turns, and the quickest of five turns counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ctxrec.core import storage
from ctxrec.ingest.quote_check import LineCount, check_quotes

BLOCK = 8 << 20  # as `ctxrec.ingest.readers` reads


def log(megabytes: int, kind: str) -> bytes:
    """A log as CSV: without quotation marks, with one in each row, with all values quoted, or one of two lines in each row."""
    rng = np.random.default_rng(0)
    lines, made, size = [], [b"user_id,item_id,timestamp,action,query\n"], 0
    for user, item, second in zip(*(rng.integers(0, 10**6, 10_000) for _ in range(3)), strict=True):
        values = [f"user{user}", f"item{item}", f"{1_600_000_000 + second}", "view", "red shoes, size 42"]
        if kind == "none":
            values[4] = "red shoes"
        if kind == "lines":
            values[4] = "red shoes,\nsize 42"
        quoted = [f'"{v}"' if kind == "all" or "," in v else v for v in values]
        lines.append(",".join(quoted))
    block = ("\n".join(lines) + "\n").encode()
    while size < megabytes << 20:
        made.append(block)
        size += len(block)
    return b"".join(made)


def rows(stream: pa.NativeFile) -> int:
    """Read a stream as CSV with the options of `ctxrec.ingest.readers`; the number of rows."""
    names = ["user_id", "item_id", "timestamp", "action"]
    reader = pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        ),
    )
    return sum(batch.num_rows for batch in reader)


def plain(path: str) -> None:
    """Arrow alone."""
    with storage.open_stream(path) as stream:
        rows(stream)


def checked(path: str) -> None:
    """Arrow, and the check of each file; it is read again where there are fewer rows than lines."""
    with storage.open_stream(path) as stream:
        lines = LineCount(stream)
        if not lines.may_hide_rows(rows(pa.PythonFile(lines, mode="r")) + 1):
            return
    check_quotes(lambda: storage.open_stream(path), path)


def main() -> None:
    """Print megabytes a second and the cost of the check for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200, help="size of each file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log.csv")
        for kind in ("none", "one", "all", "lines"):
            with open(path, "wb") as file:
                file.write(log(args.mb, kind))
            size = os.path.getsize(path) / 1e6
            best = dict.fromkeys((plain, checked), float("inf"))
            for _ in range(5):
                for read in best:
                    begin = time.perf_counter()
                    read(path)
                    best[read] = min(best[read], time.perf_counter() - begin)
            speeds = ", ".join(f"{read.__name__} {size / took:,.0f} MB/s" for read, took in best.items())
            print(f"quotes: {kind}; {size:,.0f} MB; {speeds}; the check adds {best[checked] / best[plain] - 1:.0%}")


if __name__ == "__main__":
    main()
