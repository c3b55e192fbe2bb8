"""What the live sources cost a request: the same engine asked with and without them, in turns.

    python tests/bench/live_speed.py                 # 100,000 items x 128, made once
    python tests/bench/live_speed.py --run RUN       # a run or bundle

Events of many items come before, and ten come in each second between two batches. Times are those that one thread computes, so that other
processes do not count. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

SECOND_US = 1_000_000  # between two batches


def measured(run: str, *, num_events: int, turns: int, batch: int) -> dict[str, list[float]]:
    """Seconds of computing time of each batch with ("live") and without ("still") live sources."""
    from ctxrec.memory.live_counts import LIVE_COUNTS
    from ctxrec.memory.live_sources import LiveWeights
    from ctxrec.retrieval.live_statistics import LiveStatistics, Seen
    from serve.api import RecommendRequest
    from serve.engine import load_engine, use_threads

    use_threads(1)
    engine = load_engine(run, batch)
    model = engine.retriever.recommender
    num = len(LIVE_COUNTS.half_lives_s)
    if model.live_weights is None:
        sources = 1 if model.blend is None else model.blend.weights_2K.shape[1]
        own = np.zeros((2, sources), np.float32) if model.blend is None else model.blend.weights_2K
        model.live_weights = LiveWeights(
            LIVE_COUNTS.half_lives_s, own, np.array([[0.3] * num, [0.0] * num], np.float32)
        )
    statistics, rng = LiveStatistics(model), np.random.default_rng(0)
    live, newest = model.live, statistics.counts.newest_us or 0

    def events(count: int, at_us: int) -> list[Seen]:
        items = np.minimum(rng.zipf(1.2, count), len(model.item_ids)) - 1
        return [Seen(f"new {n}", model.item_ids[item], at_us) for n, item in enumerate(items.tolist())]

    statistics.add(events(num_events, newest), now_us=newest)
    users, seconds = sorted(model.user_row), {"live": [], "still": []}
    for turn in range(turns):
        at_us = newest + turn * SECOND_US
        statistics.add(events(10, at_us), now_us=at_us)  # so that nothing is taken from an earlier request
        who = rng.integers(len(users), size=batch).tolist()
        asked = [
            RecommendRequest.model_validate({"user_id": users[n], "k": 10, "context": {"timestamp": at_us / 1e6}})
            for n in who
        ]
        for name in ("live", "still") if turn % 2 else ("still", "live"):
            model.live = live if name == "live" else None
            begin = time.thread_time()
            engine.recommend([asked])
            seconds[name].append(time.thread_time() - begin)
    return seconds


def main() -> None:
    """Read the arguments, ask, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run or bundle; none: a bundle of random weights")
    parser.add_argument("--events", type=int, default=100_000, help="posted before the first request")
    parser.add_argument("--turns", type=int, default=200, help="batches of each kind")
    args = parser.parse_args()
    from serve_bundle import speed_bundle

    scratch = os.path.join(tempfile.gettempdir(), "ctxrec-speed")
    run = args.run or speed_bundle(100_000, 128, scratch)
    print("| requests at once | p50 without, ms | p50 with, ms | p50 of the paired differences, ms | share |")
    print("| --- | --- | --- | --- | --- |")
    for batch in (1, 32):
        found = measured(run, num_events=args.events, turns=args.turns, batch=batch)
        still, live = (np.array(found[name]) * 1e3 for name in ("still", "live"))
        gap = float(np.median(live - still))
        print(
            f"| {batch} | {np.median(still):.2f} | {np.median(live):.2f} | {gap:+.2f} | {gap / np.median(still):+.1%} |"
        )


if __name__ == "__main__":
    main()
