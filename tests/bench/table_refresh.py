"""What the table of items costs in accuracy: the encoder's phase with the table encoded anew after 1, 4, 16 ... steps.

    python tests/bench/table_refresh.py --data DATA [--every 0 16 4 1] [--seeds 0 1] [--set section.key=value ...]

Each row is a real `ctxrec.train` of both phases, without refit. Every run of a seed has the same first phase, so the
rows differ by the refresh alone; 0 is the default, before evaluations and checkpoints. Prints Markdown: best validation
NDCG@10 of the encoder's phase and what it began with, seconds of its steps, each with every seed's own figure.
"""

from __future__ import annotations

import argparse
import os

from train_log import train_log

OPTIONS = ["train.refit=false", "train.trackers=[]", "train.patience=1000"]


def encoder_phase(data: str, overrides: list[str]) -> tuple[float, float, float]:
    """NDCG@10 at the start of the encoder's phase, its best after that, and the phase's seconds."""
    lines = train_log(data, [*OPTIONS, *overrides])
    first, *rest = [line for line in lines if line["phase"] == "encoder"]
    return first["valid_ndcg@10"], max(line["valid_ndcg@10"] for line in rest), rest[-1]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--every", type=int, nargs="+", default=[0, 16, 4, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    args = parser.parse_args()
    print("| table encoded anew every | NDCG@10 before the phase | after it | seconds |\n| --- | --- | --- | --- |")
    for every in args.every:
        runs = [
            encoder_phase(
                os.path.abspath(args.data), [*args.overrides, f"train.refresh_every={every}", f"train.seed={seed}"]
            )
            for seed in args.seeds
        ]
        before, after, seconds = (", ".join(f"{value:.4g}" for value in column) for column in zip(*runs, strict=True))
        print(f"| {f'{every} steps' if every else 'evaluation'} | {before} | {after} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
