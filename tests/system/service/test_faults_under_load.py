"""Faults while requests come at a steady rate, whether they are answered or not. All of them slow:

    python -m pytest tests/system/service/test_faults_under_load.py -m slow -s

Each has an application of its own, whose replicas are asked straight (`direct_port`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from trainings import free_ports

from ctxrec.bundle.registry import find_bundle, publish, roll_back
from ctxrec.retrieval.retriever import load_retriever
from serve.api import RecommendRequest
from serve.engine import Engine

pytestmark = pytest.mark.slow

RETRY_STATUSES = (429, 503)
SWAP_BODY = {"k": 12, "context": {"timestamp": 1_700_000_000}, "history": [{"item_id": "i3"}, {"item_id": "i7"}]}


@dataclass(frozen=True)
class Sent:
    """What became of a request. `status`: 0 where the connection broke."""

    at: float  # seconds since the load began
    took_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> dict:
        return json.loads(self.body)


@contextmanager
def application(name: str, **options) -> Iterator[str]:
    """The address of replicas of an application of its own."""
    import ray.serve

    from serve.app import AppArgs, build_app

    args = {"cpus_per_replica": 0.2, "load_encoder": False, "page": False, "direct_port": free_ports(1)[0]} | options
    ray.serve.run(build_app(AppArgs(**args)), name=name, route_prefix=f"/{name}")
    address = f"http://127.0.0.1:{args['direct_port']}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{address}/readyz").raise_for_status()
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        ray.serve.delete(name)


def load(
    address: str, body: dict, *, rate: float, seconds: float, meanwhile: Callable[[], None] | None = None
) -> list[Sent]:
    """`rate` requests a second, each sent at its time whatever became of those before; runs `meanwhile` besides.

    Plain sockets: a client library would take more of the cores than the service that refuses it.
    """
    content = json.dumps(body).encode()
    head = f"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    request = head.encode() + b"\r\n\r\n" + content
    host, port = address.removeprefix("http://").split(":")

    async def send() -> list[Sent]:
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        start = time.perf_counter()

        async def one(at: float) -> Sent:
            await asyncio.sleep(start + at - time.perf_counter())
            began = time.perf_counter()
            try:
                while idle and idle[-1][0].at_eof():
                    idle.pop()[1].close()
                reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port))
                writer.write(request)
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines if line)
                answer = await reader.readexactly(int(headers["content-length"]))
            except (OSError, asyncio.IncompleteReadError):
                return Sent(began - start, time.perf_counter() - began)
            idle.append((reader, writer))
            return Sent(began - start, time.perf_counter() - began, int(first.split()[1]), headers, answer)

        sent = await asyncio.gather(*(one(n / rate) for n in range(round(rate * seconds))))
        for _, writer in idle:
            writer.close()
        return sent

    with ThreadPoolExecutor(2) as threads:
        sending = threads.submit(asyncio.run, send())
        if meanwhile is not None:
            threads.submit(meanwhile).result()
        return sending.result()


def per_second(address: str, body: dict, *, seconds: float, at_once: int = 6) -> float:
    """Calls a second that are answered when so many wait for an answer at every moment."""

    def ask_on(stop_at: float) -> int:
        answered = 0
        with httpx.Client(base_url=address, timeout=30) as own:
            while time.perf_counter() < stop_at:
                own.post("/v1/recommend", json=body).raise_for_status()
                answered += 1
        return answered

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        asking = [threads.submit(ask_on, began + seconds) for _ in range(at_once)]
        total = sum(each.result() for each in asking)
    return total / (time.perf_counter() - began)


def statuses(sent: list[Sent]) -> dict[int, int]:
    return dict(Counter(one.status for one in sent))


def replicas(name: str) -> dict[str, int]:
    """Process ids of the running replicas of an application, by actor."""
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    return {a.actor_id: a.pid for a in actors if a.class_name == f"ServeReplica:{name}:Service"}


def test_a_swap_under_200_requests_a_second_fails_none_and_mixes_no_versions(
    client, tiny_run, make_variant, tmp_path, wait_for
):
    models = str(tmp_path / "models")
    first = publish(find_bundle(tiny_run), models).version
    second = make_variant(find_bundle(tiny_run), tmp_path / "second")
    wanted = {}
    for version, bundle in ((first, find_bundle(tiny_run)), (second, str(tmp_path / "second"))):
        (answer,) = Engine(load_retriever(bundle)).recommend([[RecommendRequest.model_validate(SWAP_BODY)]])[0].answers
        wanted[version] = dict(zip(answer.item_ids, answer.scores, strict=True))
    options = {"run": models, "models_every_s": 0.5, "store": str(tmp_path / "live")}
    with application("swapped", **options) as address:

        def serving() -> str:
            return httpx.get(f"{address}/readyz", timeout=30).json()["model_version"]

        def swap_and_back() -> None:
            time.sleep(2)
            publish(str(tmp_path / "second"), models)
            wait_for(lambda: serving() == second, 25)
            roll_back(models)
            wait_for(lambda: serving() == first, 25)

        began = time.perf_counter()
        sent = load(address, SWAP_BODY, rate=200, seconds=20, meanwhile=swap_and_back)
        per_s = len(sent) / (time.perf_counter() - began)
    print(f"\n{len(sent)} requests, {per_s:.0f} a second: {statuses(sent)}")
    assert statuses(sent) == {200: len(sent)} and per_s > 100
    versions = Counter()
    for one in sent:
        answer = one.json()
        found = {item["item_id"]: item["score"] for item in answer["items"]}
        scores = wanted[answer["model_version"]]
        assert found.keys() == scores.keys() and all(abs(found[i] - scores[i]) < 1e-3 for i in found)
        versions[answer["model_version"]] += 1
    print(versions)
    assert versions.keys() == {first, second} and min(versions.values()) > 10


def test_overload_is_refused_and_costs_no_more_than_a_fifth_of_the_peak(client, tiny_run, tmp_path):
    """Five times what the service can do: the rest is told when to come back, and memory stays."""
    users = [{"user_id": f"u{n % 60}", "k": 40, "context": {"timestamp": 1_650_000_000 + n}} for n in range(128)]
    body = {"requests": users}
    options = {"run": tiny_run, "max_waiting": 16, "store": str(tmp_path), "history_cache_mb": 0}
    with application("flooded", **options) as address:
        (pid,) = replicas("flooded").values()

        def resident_mb() -> float:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

        per_second(address, body, seconds=3)  # warms up
        peak = per_second(address, body, seconds=6)
        before = resident_mb()
        flood = load(address, body, rate=5 * peak, seconds=10)
        after = resident_mb()
        assert httpx.post(f"{address}/v1/recommend", json={"user_id": "u1"}, timeout=30).status_code == 200
    ok = [one for one in flood if one.status == 200]
    refused = [one for one in flood if one.status in RETRY_STATUSES]
    goodput = len(ok) / max(one.at + one.took_s for one in ok)
    print(f"\npeak {peak:.1f}/s; at {5 * peak:.0f}/s: {goodput:.1f}/s answered, {statuses(flood)}")
    print(f"memory {before:.0f} MB before, {after:.0f} MB after")
    assert len(ok) + len(refused) == len(flood) and refused
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
    assert goodput >= 0.8 * peak
    assert after < before + 200


def test_a_killed_replica_takes_only_its_requests_in_flight_with_it(client, tiny_run, tmp_path, wait_for):
    with application("halved", run=tiny_run, replicas=2, cpus_per_replica=0.1, store=str(tmp_path)) as address:
        wait_for(lambda: len(replicas("halved")) == 2)
        old = replicas("halved")
        killed_at = 0.0
        began = time.perf_counter()

        def kill() -> None:
            nonlocal killed_at
            time.sleep(3)
            os.kill(next(iter(old.values())), signal.SIGKILL)
            killed_at = time.perf_counter() - began

        sent = load(address, {"user_id": "u1"}, rate=60, seconds=12, meanwhile=kill)
        wait_for(lambda: len(replicas("halved")) == 2 and replicas("halved") != old, 60)
        assert httpx.post(f"{address}/v1/recommend", json={"user_id": "u1"}, timeout=30).status_code == 200
    failed = [one for one in sent if one.status != 200]
    print(f"\n{len(sent)} requests, killed at {killed_at:.1f} s: {statuses(sent)}")
    assert all(one.status == 0 and one.at < killed_at + 1 < 12 for one in failed)
    assert len(failed) <= 60, "what was under way, and what came on connections that had just broken"


def test_a_store_that_is_slow_holds_up_nobody_for_longer_than_its_time_limit(client, tiny_run, redis_server):
    redis = pytest.importorskip("redis")
    server = redis_server()
    with application("patient", run=tiny_run, store=server.url, history_cache_mb=0) as address:
        event = {"events": [{"user_id": "somebody", "item_id": "i3"}]}
        assert httpx.post(f"{address}/v1/events", json=event, timeout=30).json() == {"accepted": 1}
        silent_s = 6.0
        refused: list[httpx.Response] = []

        def silence() -> None:
            time.sleep(2)
            redis.Redis.from_url(server.url).client_pause(round(1000 * silent_s), all=True)
            refused.append(httpx.post(f"{address}/v1/events", json=event, timeout=30))

        sent = load(address, {"user_id": "somebody"}, rate=40, seconds=12, meanwhile=silence)
    answers = [one.json() for one in sent]
    degraded = [one.at for one, answer in zip(sent, answers, strict=True) if answer.get("degraded") == "history"]
    print(f"\n{statuses(sent)}, longest {max(one.took_s for one in sent):.1f} s, {len(degraded)} without the store")
    assert statuses(sent) == {200: len(sent)}
    assert 40 < len(degraded) < len(sent) and answers[-1]["fallback"] is False and "degraded" not in answers[-1]
    assert refused[0].status_code == 503 and int(refused[0].headers["retry-after"]) >= 1
