"""Measures what early stopping saves: the same trials run to the end, and stopped by the scheduler of sweeps.

    OMP_NUM_THREADS=1 python tests/bench/sweep_saving.py --data DATA --out DIR [--set section.key=value ...]

Every configuration that the sweep of sweep.toml draws is trained to the end, one after the other in this process, by
the function that a training's workers run. Then Ray Tune's own scheduler, made as `tune.sweep` makes it, is given the
curves in the order in which trials that run side by side would report them, and says where each one stops; a stopped
trial is charged the epoch in which it is told. That is repeated for other orders of the trials, as the order decides
what asynchronous halving sees first. Goal: the best value within 1 % of the best of the trials run to the end, for at
most 30 % of their epochs. An interrupted bench goes on by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import logging
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.training.phase_setup import keep_nothing
from ctxrec.training.worker import train_worker
from tune.search import first_points, make_scheduler, make_searcher
from tune.space import with_values
from tune.sweep_options import METRIC, Sweep, load_sweep

HERE = Path(__file__).resolve().parent
ORDERS = 200
Curve = list[tuple[float, float]]  # epochs done, best validation value so far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--out", required=True, help="folder for the trials and figures.json")
    parser.add_argument("--config", default=str(HERE / "sweep.toml"), help="SWEEP.toml")
    parser.add_argument("--concurrent", type=int, default=2, help="trials that would run side by side")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    plan = load_sweep(args.config, args.overrides)
    events = PreparedData.open(args.data).meta["counts"]["train"]
    plan = dataclasses.replace(plan, base=plan.base.for_events(events))  # as `tune.sweep` does
    curves = []
    for number, values in enumerate(configurations(plan)):
        run = os.path.join(args.out, f"trial-{number:02d}")
        train_to_the_end(plan, values, os.path.abspath(args.data), run)
        curves.append(read_curve(run))
        print(f"trial {number}: {curves[-1][-1][1]:.4f} after {curves[-1][-1][0]:.0f} epochs {values}", flush=True)
    figures = compare(plan, curves, args.concurrent)
    Path(args.out, "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def configurations(plan: Sweep) -> list[dict[str, Any]]:
    """What the sweep would try, in its order."""
    searcher = make_searcher(plan, first_points(plan))
    return [searcher.suggest(str(n)) for n in range(plan.options.trials)]


def train_to_the_end(plan: Sweep, values: dict[str, Any], data: str, run: str) -> None:
    """Train a trial in this process; one that has ended is kept."""
    done = Path(run, "done")
    if done.exists():
        return
    Path(run, "train_log.jsonl").unlink(missing_ok=True)
    config = with_values(plan.base, values)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    train_worker(
        {
            "config": config.to_dict(),
            "data": data,
            "run": os.path.abspath(run),
            "start": "",
            "profile": False,
            "warm": "",
        },
        Place(0, 1, 0, 1, torch.device("cpu")),
        keep_nothing,
    )
    done.touch()


def read_curve(run: str) -> Curve:
    best, curve = 0.0, []
    for line in map(json.loads, Path(run, "train_log.jsonl").read_text().splitlines()):
        if METRIC in line:
            best = max(best, line[METRIC])
            curve.append((line["epoch"], best))
    return curve


def compare(plan: Sweep, curves: list[Curve], concurrent: int) -> dict[str, Any]:
    """Figures of the trials to the end, and stopped in their own order and in others with the default first."""
    whole, epochs = max(curve[-1][1] for curve in curves), sum(curve[-1][0] for curve in curves)
    rng = random.Random(0)
    orders = [list(range(len(curves)))] + [
        [0, *rng.sample(range(1, len(curves)), len(curves) - 1)] for _ in range(ORDERS)
    ]
    found = [replay(plan, [curves[n] for n in order], concurrent) for order in orders]
    losses = np.array([100 * (1 - best / whole) for best, _ in found])
    shares = np.array([100 * used / epochs for _, used in found])
    default = curves[0][-1][1]
    return {
        "trials": len(curves),
        "best_to_the_end": whole,
        "default": default,
        "epochs_to_the_end": epochs,
        "best_with_early_stopping": found[0][0],
        "below_the_best_percent": losses[0],
        "share_of_epochs_percent": shares[0],
        "gain_over_default_percent": 100 * (found[0][0] / default - 1),
        "other_orders": {
            "orders": ORDERS,
            "share_of_epochs_percent": {"mean": shares[1:].mean(), "p90": np.percentile(shares[1:], 90)},
            "below_the_best_percent": {"mean": losses[1:].mean(), "p90": np.percentile(losses[1:], 90)},
            "orders_within_1_percent": float((losses[1:] <= 1).mean()),
            "orders_that_meet_both": float(((losses[1:] <= 1) & (shares[1:] <= 30)).mean()),
        },
    }


def replay(plan: Sweep, curves: list[Curve], concurrent: int) -> tuple[float, float]:
    """Best value and epochs where the sweep's scheduler stops trials that run side by side, an epoch as long as another."""
    scheduler = make_scheduler(plan, plan.epochs_of({}))
    waiting, best, used = list(range(len(curves)))[::-1], 0.0, 0.0
    running: list[tuple[float, int, int]] = []  # when the next evaluation is due, trial, which evaluation

    def begin(now: float) -> None:
        if waiting:
            trial = waiting.pop()
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=str(trial)))
            heapq.heappush(running, (now + curves[trial][0][0], trial, 0))

    for _ in range(concurrent):
        begin(0.0)
    while running:
        now, trial, step = heapq.heappop(running)
        epoch, value = curves[trial][step]
        best = max(best, value)
        told = SimpleNamespace(trial_id=str(trial))
        decision = scheduler.on_trial_result(None, told, {"epoch": epoch, METRIC: value})
        if decision == scheduler.CONTINUE and step + 1 < len(curves[trial]):
            heapq.heappush(running, (now + curves[trial][step + 1][0] - epoch, trial, step + 1))
            continue
        used += epoch
        begin(now)
    return best, used


if __name__ == "__main__":
    main()
