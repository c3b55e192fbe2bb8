"""Rows a second of `ctxrec.prepare` on a synthetic log, next to polars building the same sequences in one process.

python tests/bench/prepare_rows.py --events 10000000 --dir build/bench
python tests/bench/prepare_rows.py --events 100000000 --users 5000000 --no-polars
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

SPEC = """name = "bench"
[events]
path = "events/*.parquet"
[split]
strategy = "{strategy}"
"""
FILE_ROWS = 5_000_000


def make_log(folder: str, *, events: int, users: int, items: int) -> None:
    """A log in order of time: zipf items, uniform users, some duplicates; kept for the next run."""
    path = os.path.join(folder, "events")
    if os.path.isdir(path):
        return
    os.makedirs(path + ".part")
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 1.05
    cumulated = np.cumsum(weights / weights.sum())
    names = rng.permutation(items)
    for number, start in enumerate(range(0, events, FILE_ROWS)):
        n = min(FILE_ROWS, events - start)
        item = names[np.minimum(np.searchsorted(cumulated, rng.random(n)), items - 1)]
        log = {
            "user_id": rng.integers(0, users, n),
            "item_id": item,
            "timestamp": 1_600_000_000 + np.sort(rng.integers(0, 30_000_000, n)) + number * 30_000_000,
        }
        again = np.flatnonzero(rng.random(n - 1) < 0.001) + 1  # events logged twice
        for values in log.values():
            values[again] = values[again - 1]
        pq.write_table(
            pa.table(log), os.path.join(path + ".part", f"part-{number:03d}.parquet"), row_group_size=1 << 20
        )
    os.rename(path + ".part", path)


class Memory(threading.Thread):
    """Peak memory of this process and all below it, without what they share."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self.running = 0, True

    def run(self) -> None:
        while self.running:
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_info().rss - process.memory_info().shared
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.1)

    def stop(self) -> float:
        self.running = False
        self.join()
        return self.peak_bytes / 2**30


def run_ctxrec(folder: str, strategy: str) -> None:
    from ctxrec.core import ray_cluster
    from ctxrec.core.config import Config
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    spec = os.path.join(folder, f"{strategy}.toml")
    with open(spec, "w") as stream:
        stream.write(SPEC.format(strategy=strategy))
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    ray_cluster.connect()
    connected = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        data = prepare(load_spec(spec), out, Config())
        done = time.perf_counter()
    counts = data.meta["counts"]
    report("ctxrec", counts["events"], done - connected, memory.stop(), f"and {connected - start:.1f} s to start Ray")
    print(f"        counts {counts}")


def run_polars(folder: str, strategy: str) -> None:
    import polars as pl

    memory = Memory()
    memory.start()
    start = time.perf_counter()
    # Ids stay integers until the end, which is the best case for one process; ctxrec takes ids of any kind.
    log = pl.read_parquet(os.path.join(folder, "events/*.parquet"))
    log = log.unique(["user_id", "item_id", "timestamp"], keep="first", maintain_order=True)
    items = log.select(pl.col("item_id").unique(maintain_order=True)).with_row_index("item")
    log = log.join(items, on="item_id", how="left", maintain_order="left").drop("item_id")
    stamp = pl.from_epoch("timestamp", time_unit="s")
    log = log.sort("user_id", "timestamp", maintain_order=True).with_columns(
        stamp.dt.hour().alias("hour"), stamp.dt.weekday().alias("weekday"), stamp.dt.month().alias("month"),
        (pl.col("timestamp") - pl.col("timestamp").shift(1).over("user_id")).cast(pl.Float32).alias("gap_s"),
    )  # fmt: skip
    if strategy == "temporal":
        cuts = log["timestamp"].sort()
        valid, test = cuts[int(len(cuts) * 0.8)], cuts[int(len(cuts) * 0.9)]
        split = (pl.col("timestamp") >= valid).cast(pl.Int8) + (pl.col("timestamp") >= test).cast(pl.Int8)
    else:
        left = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
        split = pl.when(left == 1).then(2).when(left == 2).then(1).otherwise(0).cast(pl.Int8)
    log = log.with_columns(split.alias("split"))
    sequences = log.group_by("user_id", maintain_order=True).agg(pl.all()).cast({"user_id": pl.String})
    with tempfile.TemporaryDirectory(dir=folder) as out:
        sequences.write_parquet(os.path.join(out, "histories.parquet"), compression="zstd", compression_level=1)
        seconds = time.perf_counter() - start
    report("polars", len(log), seconds, memory.stop(), f"{len(sequences)} users")


def report(name: str, events: int, seconds: float, gib: float, note: str) -> None:
    print(f"{name}: {events:,} events in {seconds:.1f} s = {events / seconds:,.0f} rows/s, peak {gib:.2f} GiB; {note}")
    print(f"SECONDS {seconds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--strategy", choices=("temporal", "last"), default="temporal")
    parser.add_argument("--dir", help="folder for the log, kept between runs; default: a temporary one")
    parser.add_argument("--no-polars", action="store_true", help="ctxrec alone, for logs that one process cannot hold")
    parser.add_argument("--only", choices=("ctxrec", "polars"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        {"ctxrec": run_ctxrec, "polars": run_polars}[args.only](args.dir, args.strategy)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.abspath(args.dir) if args.dir else scratch
        folder = os.path.join(folder, f"{args.events}-{args.users}-{args.items}")
        os.makedirs(folder, exist_ok=True)
        make_log(folder, events=args.events, users=args.users, items=args.items)
        seconds = {}
        for name in ("ctxrec",) if args.no_polars else ("ctxrec", "polars"):
            command = [sys.executable, __file__, "--only", name, "--dir", folder, "--strategy", args.strategy]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("SECONDS")), flush=True)
            seconds[name] = next(float(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("SECONDS"))
        if not args.no_polars:
            print(f"ratio ctxrec / polars: {seconds['ctxrec'] / seconds['polars']:.2f}")


if __name__ == "__main__":
    main()
