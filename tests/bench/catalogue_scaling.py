"""Training and evaluation on catalogues of 10^3 to 10^6 items: loss, events a second, peak memory.

    python tests/bench/catalogue_scaling.py --items 1000 10000 100000 1000000 [--events 200000]

Each row is made by the real commands (prepare, train, evaluate) on a synthetic log without texts, one epoch of the
towers. Memory is the peak of all processes of a command, without what they share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prepare_rows import Memory, make_log

from ctxrec.core.config import TrainConfig
from ctxrec.model.network import choose_loss

SPEC = """name = "bench"
[events]
path = "events/*.parquet"
[items]
path = "items.parquet"
categorical = ["kind"]
[split]
strategy = "last"
"""
OPTIONS = ["encoder.name=", "train.tower_epochs=1", "train.refit=false", "train.valid_users=2000"]


def command(*words: str) -> tuple[float, float]:
    """Run a command of ctxrec; its seconds and its peak memory in GiB."""
    memory = Memory()
    memory.start()
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    seconds, gib = time.perf_counter() - begin, memory.stop()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds, gib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument(
        "--requests", type=int, default=500, help="users, each with one validation and one test request"
    )
    args = parser.parse_args()
    print(
        "| items | loss | events/s | prepare | train: all, memory | evaluate: all, memory |\n| --- | --- | --- | --- | --- | --- |"
    )
    for items in args.items:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_log(scratch, events=args.events, users=args.requests, items=items)
            table = pa.table({"item_id": np.arange(items), "kind": np.arange(items) % 50})
            pq.write_table(table, folder / "items.parquet")
            (folder / "dataset.toml").write_text(SPEC)
            data, run = str(folder / "data"), str(folder / "run")
            prepared, _ = command("ctxrec.prepare", str(folder / "dataset.toml"), "--out", data)
            flags = [word for option in OPTIONS for word in ("--set", option)]
            train_s, train_gib = command("ctxrec.train", "--data", data, "--out", run, *flags)
            evaluate_s, evaluate_gib = command("ctxrec.evaluate", "--run", run)
            found = json.loads(Path(data, "meta.json").read_text())["counts"]["items"]
            line = json.loads(Path(run, "train_log.jsonl").read_text().splitlines()[-1])
            print(
                f"| {found:,} | {choose_loss(TrainConfig(), found)} | {line['events_per_s']:,.0f} | {prepared:.0f} s | {train_s:.0f} s, {train_gib:.1f} GiB "
                f"| {evaluate_s:.0f} s, {evaluate_gib:.1f} GiB |",
                flush=True,
            )


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    main()
