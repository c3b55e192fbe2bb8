"""What early stopping saves: the same trials to the end and with a scheduler.

    python tests/bench/sweep_saving.py --data DATA --out DIR [--scheduler asha] [--set section.key=value ...]

Goal: the best value within 1 % of the best of the same trials run to the end, for at most 30 % of their epochs. An
interrupted bench goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
METRIC = "valid_ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--out", required=True, help="folder for both sweeps and figures.json")
    parser.add_argument("--config", default=str(HERE / "sweep.toml"), help="SWEEP.toml of both")
    parser.add_argument("--scheduler", default="asha", choices=["asha", "hyperband", "median"])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    args = parser.parse_args()
    found = {name: run(args, name) for name in ("none", args.scheduler)}
    figures = compare(found["none"], found[args.scheduler])
    Path(args.out, "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def run(args: argparse.Namespace, scheduler: str) -> list[dict]:
    """The trials of a sweep."""
    out = os.path.join(args.out, scheduler)
    command = [sys.executable, "-m", "tune.sweep", "--data", args.data, "--out", out, "--config", args.config]
    for override in (*args.overrides, f"sweep.scheduler={scheduler}"):
        command += ["--set", override]
    subprocess.run(command, check=True)
    return pq.read_table(os.path.join(out, "trials.parquet")).to_pylist()


def compare(whole: list[dict], stopped: list[dict]) -> dict:
    """Figures of both; the trials must be the same configurations, in the same order."""
    keys = [name for name in whole[0] if "." in name]
    same = [[row[key] for key in keys] for row in whole] == [[row[key] for key in keys] for row in stopped]
    if not same:
        raise SystemExit("error: the two sweeps tried different configurations; expected the same seed and space")
    best = [max(row[METRIC] for row in rows if row[METRIC] is not None) for rows in (whole, stopped)]
    epochs = [sum(row["epochs"] for row in rows) for rows in (whole, stopped)]
    default = whole[0][METRIC]  # the first trial has the options as they are
    return {
        "trials": len(whole),
        "best_to_the_end": best[0],
        "best_with_early_stopping": best[1],
        "difference_percent": 100 * (best[1] / best[0] - 1),
        "epochs_to_the_end": epochs[0],
        "epochs_with_early_stopping": epochs[1],
        "share_of_epochs_percent": 100 * epochs[1] / epochs[0],
        "default": default,
        "gain_over_default_percent": 100 * (best[1] / default - 1),
    }


if __name__ == "__main__":
    main()
