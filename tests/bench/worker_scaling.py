"""Measures the gain of a second core and a second worker: events a second of both phases of training.

    python tests/bench/worker_scaling.py --data DATA [--set section.key=value ...]

Each row is a real `ctxrec.train` of a few epochs, without refit: one worker of one core, one of two, two of one core
each. Events a second are of steps alone, without evaluation, as the training's log has them. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os

from train_log import train_log

OPTIONS = ["train.tower_epochs=4", "train.encoder_epochs=1", "train.refit=false", "train.trackers=[]"]
WAYS = [(1, 1), (1, 2), (2, 1)]  # workers, cores of each


def rates(data: str, overrides: list[str]) -> dict[str, float]:
    """Median events a second of each phase."""
    found: dict[str, list[float]] = {}
    for line in train_log(data, [*OPTIONS, *overrides]):
        if "events_per_s" in line:  # not an evaluation before the first step
            found.setdefault(line["phase"], []).append(line["events_per_s"])
    return {phase: sorted(values)[len(values) // 2] for phase, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    args = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    first: dict[str, float] = {}
    for workers, cores in WAYS:
        own = [f"train.workers={workers}", f"train.cpus_per_worker={cores}"]
        made = rates(os.path.abspath(args.data), [*args.overrides, *own])
        first = first or made
        if made is first:
            print(
                f"| workers x cores | {' | '.join(f'{phase}: events/s' for phase in made)} |\n|---|{'---|' * len(made)}"
            )
        cells = [f"{rate:,.0f} ({rate / first[phase]:.2f} times)" for phase, rate in made.items()]
        print(f"| {workers} x {cores} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
