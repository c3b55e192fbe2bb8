"""The service's speed next to its bare pieces: in process, behind FastAPI, and behind plain Ray Serve.

    python tests/bench/serve_speed.py                        # 100,000 items x 128, made once
    python tests/bench/serve_speed.py --run RUN              # a run or bundle

Everything runs on this machine in one run, the load generator too, one service at a time. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(BENCH)]

from serve_load import Load, measure

NOW = 1_700_000_000
NUM_BODIES, IN_PROCESS = 1000, 300
SAME_WITHIN = 1e-3  # scores of the services may differ by so much
SERVICES = {  # by name: what it is, and options of ours or of the peer
    "fastapi": ("FastAPI + uvicorn, one request at a time", {}),
    "fastapi-threads": ("FastAPI + uvicorn, a thread a core", {}),
    "ray-serve": ("plain Ray Serve, `@serve.batch`", {}),
    "ray-serve-1ms": ("the same, batches wait for 1 ms", {"batch_wait_s": 0.001}),
    "ray-serve-3ms": ("the same, batches wait for 3 ms", {"batch_wait_s": 0.003}),
    "ray-serve-ongoing": ("the same, `max_ongoing_requests=1000`", {"max_ongoing": 1000}),
    "ctxrec": ("ctxrec, through Serve's proxy", {}),
    "ctxrec-direct": ("ctxrec, direct", {}),
    "ctxrec-unkept": ("ctxrec, direct, every history read anew", {"history_cache_mb": 0}),
    "ctxrec-bf16": ("the same in bf16", {"history_cache_mb": 0, "precision": "bf16"}),
}
DEFAULT = ["fastapi", "fastapi-threads", "ray-serve", "ctxrec", "ctxrec-direct", "ctxrec-unkept"]
NAMES = {name: title for name, (title, _) in SERVICES.items()}


def make_bodies(users: Sequence[str], histories: Sequence[Sequence[str]] | None = None) -> list[bytes]:
    """Requests of known users at random moments of a week; with `histories` these come in the body."""
    rng = random.Random(0)
    bodies = []
    for _ in range(NUM_BODIES):
        who = rng.randrange(len(users))
        body = {"user_id": users[who], "k": 10, "context": {"timestamp": NOW + rng.randrange(7 * 86_400)}}
        if histories is not None:
            body["history"] = [{"item_id": item} for item in histories[who]]
        bodies.append(json.dumps(body).encode())
    return bodies


def in_process(bundle: str, bodies: list[bytes], size: int, *, kept_mb: int = 0) -> tuple[Load, dict[str, float]]:
    """The engine without HTTP, `size` requests at once in one thread; and the mean seconds of its stages a batch.

    With `kept_mb` the histories were read before.
    """
    from ctxrec.live.opening import open_store
    from ctxrec.retrieval.retriever import load_retriever
    from serve.api import RecommendRequest
    from serve.engine import Engine, use_threads

    use_threads(1)  # as the replica, which has one CPU
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(scratch)
        engine = Engine(load_retriever(bundle), store)
        engine.warm_up(32)
        if kept_mb:
            engine.retriever.recommender.keep_histories(kept_mb << 20)
            engine.recommend([[RecommendRequest.model_validate_json(body)] for body in bodies])
        seconds, stages, start = [], Counter(), time.perf_counter()
        for first in range(0, min(IN_PROCESS * size, len(bodies)), size):
            began = time.perf_counter()
            calls = [[RecommendRequest.model_validate_json(body)] for body in bodies[first : first + size]]
            stages["parse"] += time.perf_counter() - began
            stages.update(engine.recommend(calls)[0].seconds)
            seconds.append(time.perf_counter() - began)
        wall = time.perf_counter() - start
        store.close()
    ordered = sorted(seconds)
    p50, p99 = (1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    means = {stage: value / len(seconds) for stage, value in stages.items()}
    return Load(p50, p99, size * len(seconds) / wall, 0), means


@contextmanager
def serving(service: str, bundle: str, scratch: str, options: dict[str, str]) -> Iterator[int]:
    """The port of a service that is up."""
    if service.startswith("fastapi"):
        port, how = _free_port(), ["--threads"] if service == "fastapi-threads" else []
        process = subprocess.Popen([sys.executable, str(BENCH / "serve_peers.py"), bundle, str(port), *how])
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()
        return
    import ray.serve

    from serve.app import AppArgs, build_app

    port, direct = _free_port(), _free_port()
    if service.startswith("ray-serve"):
        from serve_peers import ray_serve_app

        application = ray_serve_app(bundle, **SERVICES[service][1])
    else:
        args = {
            "run": bundle,
            "store": scratch,
            "load_encoder": False,
            "direct_port": direct,
        }
        application = build_app(AppArgs(**args | SERVICES[service][1] | options))
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray.serve.run(application, route_prefix="/")
    port = direct if service.startswith("ctxrec-") else port
    try:
        _wait_for(port)
        yield port
    finally:
        ray.serve.shutdown()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing listens at port {port}")


def ask(port: int, body: bytes) -> list[dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/recommend", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["items"]


def stages_of_metrics(port: int) -> tuple[dict[str, float], float]:
    """Seconds of each stage since the service began, and how many calls they are of."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    sums = dict(re.findall(r'ctxrec_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text))
    count = re.search(r'ctxrec_stage_seconds_count\{stage="parse"\} (\S+)', text)
    return {stage: float(value) for stage, value in sums.items()}, float(count[1]) if count else 0.0


def same(expected: list[dict], found: list[dict]) -> bool:
    """Whether two services gave the same answer, but for what rounding does to equal scores."""
    scores = [[item["score"] for item in answer] for answer in (expected, found)]
    close = len(scores[0]) == len(scores[1]) and all(
        abs(a - b) <= SAME_WITHIN * max(1, abs(a)) for a, b in zip(*scores, strict=True)
    )
    shared = {item["item_id"] for item in expected} & {item["item_id"] for item in found}
    return close and len(shared) >= len(expected) - 1


def cell(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def row(name: str, parts: Sequence[Sequence[Load] | None]) -> str:
    """Medians over the repeats."""
    cells = []
    for number, loads in enumerate(parts):
        if loads is None:
            cells += ["", "", ""][: 2 if number == 0 else 3]
            continue
        middle = [statistics.median(getattr(load, field) for load in loads) for field in ("p50_ms", "p99_ms", "per_s")]
        cells += [cell(value) for value in middle[: 2 if number == 0 else 3]]
    return f"| {name} | {' | '.join(cells)} |"


def breakdown(name: str, stages: dict[str, float]) -> str:
    return f"| {name} | " + ", ".join(f"{stage} {1000 * seconds:.2f}" for stage, seconds in stages.items()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run or bundle; without it one is made")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128, help="of the tower; vectors have one number more")
    parser.add_argument("--history-in-body", action="store_true", help="50 events come with each request")
    parser.add_argument("--services", nargs="+", choices=SERVICES, default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of serve.arguments:AppArgs")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{BENCH}"
    os.environ.setdefault("RAY_worker_niceness", "0")

    import ray
    from serve_bundle import speed_bundle

    from ctxrec.bundle.registry import find_bundle
    from ctxrec.core import ray_cluster
    from ctxrec.retrieval.retriever import load_retriever

    cache = os.path.join(tempfile.gettempdir(), "ctxrec-speed")
    ray_cluster.connect()
    try:
        bundle = find_bundle(args.run) if args.run else speed_bundle(args.items, args.dim, cache)
        recommender = load_retriever(bundle).recommender
        users, given = list(recommender.user_row), None
        if args.history_in_body:
            events = recommender.histories.events
            given = [[recommender.item_ids[i] for i in events.items[events.row(n)][-50:]] for n in range(len(users))]
        bodies = make_bodies(users, given)
        shape = recommender.vectors.shape
        results, lines = {}, []
        for size in (1, 32):
            repeats = [in_process(bundle, bodies, size) for _ in range(args.repeats)]
            results["in process", size] = [load for load, _ in repeats]
            lines.append(breakdown(f"in process, {size} at once (ms a batch)", repeats[-1][1]))
            kept = [in_process(bundle, bodies, size, kept_mb=128)[0] for _ in range(args.repeats)]
            results["kept", size] = kept
        del recommender
        answers: dict[int, list[dict]] = {}
        options = dict(option.split("=", 1) for option in args.option)
        for service in args.services:
            with tempfile.TemporaryDirectory() as scratch, serving(service, bundle, scratch, options) as port:
                for n in range(5):
                    found = ask(port, bodies[n])
                    if SERVICES[service][1].get("precision") is None:
                        assert same(answers.setdefault(n, found), found), (service, answers[n], found)
                for concurrency in (1, 32):
                    is_own = service.startswith("ctxrec")
                    before, calls_before = stages_of_metrics(port) if is_own else ({}, 0)
                    loads = [measure(port, bodies, concurrency, args.seconds) for _ in range(args.repeats)]
                    assert not any(load.failed for load in loads), loads
                    results[service, concurrency] = loads
                    print(f"{service}, {concurrency} at a time: {loads}", file=sys.stderr, flush=True)
                    if is_own:
                        after, calls = stages_of_metrics(port)
                        spent = {s: (v - before.get(s, 0)) / (calls - calls_before) for s, v in after.items()}
                        lines.append(breakdown(f"{NAMES[service]}, {concurrency} at a time (ms a request)", spent))
    finally:
        ray.shutdown()

    kept = "in the request" if args.history_in_body else "stored"
    print(f"\n{shape[0]:,} items x {shape[1]}, histories {kept}, k = 10, {os.cpu_count()} cores ({platform.machine()})")
    print(f"median of {args.repeats} runs of {args.seconds:g} s; the load generator runs on the same cores\n")
    print("| | 1 at a time: p50 ms | p99 ms | 32 at a time: p50 ms | p99 ms | requests/s |")
    print("|---|---|---|---|---|---|")
    print(row("in process, batches of 1", [results["in process", 1], None]))
    print(row("in process, batches of 32", [None, results["in process", 32]]))
    print(row("in process, histories read before", [results["kept", 1], results["kept", 32]]))
    for service in args.services:
        print(row(NAMES[service], [results[service, 1], results[service, 32]]))
    print("\n| where the time goes | ms |\n|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
