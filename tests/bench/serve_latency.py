"""Latency and throughput of the service, next to the same requests computed in this process, and where the time goes.

    python tests/bench/serve_latency.py --run RUN

Starts the service on 127.0.0.1, asks it from a client process of its own, and stops it. On a machine with few
cores the client, Serve's proxy and the replica share them, so these are lower bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MAX_SECONDS = 60  # of one measurement
NOW = 1_700_000_000


def make_bodies(users: list[str], num: int) -> list[bytes]:
    """Known users at random moments of a week."""
    rng = random.Random(0)
    return [
        json.dumps(
            {"user_id": rng.choice(users), "k": 10, "context": {"timestamp": NOW + rng.randrange(7 * 86_400)}}
        ).encode()
        for _ in range(num)
    ]


def summary(name: str, seconds: list[float], wall_s: float) -> str:
    ordered = sorted(seconds)
    p50, p99 = (1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99))
    return f"{name:<28} {len(seconds):>6} requests   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   {len(seconds) / wall_s:8.0f}/s"


def breakdown(stages: dict[str, float], num: int) -> str:
    """Mean time of each stage; of a batch in process, and of a request over HTTP."""
    parts = "   ".join(f"{stage} {1000 * seconds / max(num, 1):.2f}" for stage, seconds in stages.items())
    return f"{'':<28} ms: {parts}"


def stages_of_metrics(port: int) -> tuple[dict[str, float], float]:
    """Seconds of each stage since the service began, and how many calls they are of."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    sums = dict(re.findall(r'ctxrec_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text))
    count = re.search(r'ctxrec_stage_seconds_count\{stage="parse"\} (\S+)', text)
    return {stage: float(value) for stage, value in sums.items()}, float(count[1]) if count else 0.0


async def measure(port: int, bodies: list[bytes], concurrency: int) -> tuple[list[float], float]:
    """`concurrency` connections, each asking one request after the other; plain sockets, as a client
    library would take more of the shared cores than the service."""
    waiting, seconds = iter(bodies), []
    stop_at = time.perf_counter() + MAX_SECONDS

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            start = time.perf_counter()
            if start > stop_at:
                break
            head = f"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines if line)
            answer = await reader.readexactly(int(fields["content-length"]))
            seconds.append(time.perf_counter() - start)
            assert " 200 " in status, (status, answer)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(concurrency)))
    return seconds, time.perf_counter() - start


def client(port: int, path: str) -> None:
    bodies = Path(path).read_bytes().split(b"\n")
    asyncio.run(measure(port, bodies[:200], 8))  # warm up connections and caches
    for concurrency in (1, 32):
        before, calls_before = stages_of_metrics(port)
        print(summary(f"HTTP, {concurrency} at a time", *asyncio.run(measure(port, bodies, concurrency))))
        after, calls = stages_of_metrics(port)
        spent = {stage: seconds - before.get(stage, 0) for stage, seconds in after.items()}
        print(breakdown(spent, calls - calls_before), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run or bundle")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--client", nargs=2, metavar=("PORT", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        client(int(args.client[0]), args.client[1])
        return

    import tempfile

    import ray
    import ray.serve

    from ctxrec import runtime
    from ctxrec.history_store import open_store
    from ctxrec.retrieval import load_retriever
    from serve.api import RecommendRequest
    from serve.app import AppArgs, build_app
    from serve.engine import Engine, use_threads

    retriever = load_retriever(args.run)
    bodies = make_bodies(list(retriever.recommender.user_row), args.requests)
    use_threads(1)  # as the replica, which has one CPU
    scratch = tempfile.mkdtemp()
    engine = Engine(retriever, open_store(scratch))
    engine.warm_up(32)
    for size in (1, 32):
        seconds, stages, start = [], Counter(), time.perf_counter()
        for first in range(0, len(bodies), size):
            began = time.perf_counter()
            calls = [[RecommendRequest.model_validate_json(body)] for body in bodies[first : first + size]]
            stages["parse"] += time.perf_counter() - began
            stages.update(engine.recommend(calls)[0].seconds)
            seconds += [time.perf_counter() - began] * len(calls)
        print(summary(f"in process, batches of {size}", seconds, time.perf_counter() - start))
        print(breakdown(stages, -(-len(bodies) // size)), flush=True)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime.connect()
    try:
        ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray.serve.run(build_app(AppArgs(run=args.run, store=scratch, load_encoder=False)), route_prefix="/")
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\n".join(bodies))
            file.flush()
            subprocess.run([sys.executable, __file__, "--run", args.run, "--client", str(port), file.name], check=True)
        ray.serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
