"""Measures CPU milliseconds of a worker for a step of the towers' phase, with one and with two workers.

    python tests/bench/step_cpu.py --data DATA [--steps 30] [--set section.key=value ...]

Waiting for another worker takes no CPU time, so the figures can be had on a machine that does other work, within some 20 %:
caches are shared, and so the lowest tenth of the steps counts. They say what idle cores could give at most;
`worker_scaling.py` measures the wall clock. Without Ray: each worker is a process of one
thread, over gloo. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

OPTIONS = ["train.encoder_epochs=0", "train.trackers=[]", "train.precision=fp32"]
FIRST = 5  # steps that do not count, as they allocate


def worker(data: str, folder: str, rank: int, world: int, steps: int, overrides: list[str]) -> None:
    """Run the steps, and print the lowest tenth of their CPU milliseconds and the mean of their events."""
    import torch
    import torch.distributed as dist

    from ctxrec.core.config import load_config
    from ctxrec.encoder.cache import Place
    from ctxrec.model.network import Network
    from ctxrec.model.two_tower import Towers
    from ctxrec.training import deepspeed_engine
    from ctxrec.training.export import Chosen
    from ctxrec.training.phase_trainer import PhaseRun
    from ctxrec.training.window_sampler import TrainStream
    from ctxrec.training.worker_setup import set_up

    deepspeed_engine.use_cpu_accelerator()
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    config = load_config(None, [*OPTIONS, f"train.workers={world}", *overrides])
    place = Place(rank, world, rank, world, torch.device("cpu"))
    setup = set_up(config, data, f"{folder}/run-{world}", f"{folder}", place)
    train, log = config.train, setup.log
    stream = TrainStream(
        log.data, log.scan, log.batcher, global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size, seed=train.seed, rank=rank, world=world,
    )  # fmt: skip
    torch.manual_seed(train.seed)
    network = Network(Towers(config.model, setup.catalogue.shape, temperature=train.temperature), None)
    chosen = Chosen(setup.catalogue.frozen, None, 1.0)
    run = PhaseRun(setup, "towers", network, stream, steps, f"{folder}/best-{world}", chosen, None)
    run.start(None)
    times, events = [], 0
    for step in itertools.islice((s for epoch in itertools.count() for s in stream.epoch(epoch)), steps):
        begin = time.process_time()
        run._step(step)
        times.append(time.process_time() - begin)
        run.progress.step += 1
        events += sum(int((batch.weights_BS != 0).sum()) for batch in step.micro_batches)
    dist.barrier()
    counted = sorted(times[FIRST:])
    print(json.dumps({"ms": 1e3 * counted[len(counted) // 10], "events": events / steps}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that ctxrec.prepare wrote")
    parser.add_argument("--steps", type=int, default=30, help=f"steps; the first {FIRST} do not count (default: 30)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "RANK", "WORLD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, rank, world = args.worker[0], int(args.worker[1]), int(args.worker[2])
        worker(os.path.abspath(args.data), folder, rank, world, args.steps, args.overrides)
        return
    print("| workers | events of a step | CPU ms of the slowest worker | times |\n|---|---|---|---|")
    alone = None
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            own = [["--worker", folder, str(rank), str(world)] for rank in range(world)]
            ranks = [
                subprocess.Popen([sys.executable, *sys.argv, *more], stdout=subprocess.PIPE, text=True) for more in own
            ]
            said = [rank.communicate()[0] for rank in ranks]
            if any(rank.returncode for rank in ranks):
                raise SystemExit("a worker failed; what it said is above")
        found = [json.loads(text.splitlines()[-1]) for text in said]
        slowest = max(one["ms"] for one in found)
        alone = alone or slowest
        print(f"| {world} | {sum(one['events'] for one in found):.0f} | {slowest:.1f} | {alone / slowest:.2f} |")


if __name__ == "__main__":
    main()
