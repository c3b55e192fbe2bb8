"""Requests straight to the replicas: the same answers as through Serve's proxy, and a port that nobody else shares."""

from __future__ import annotations

import socket
import time

import httpx
import psutil
import pytest
from tolerance import assert_same_json

from ctxrec.retrieval.retriever import load_retriever


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_direct_requests_get_the_answers_of_the_proxy(ray_cluster, tiny_run, tmp_path):
    import ray.serve

    from serve.app import AppArgs, build_app

    port, direct = free_port(), free_port()
    args = AppArgs(run=tiny_run, cpus_per_replica=0.1, store=str(tmp_path), load_encoder=False, direct_port=direct)
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        ray.serve.run(build_app(args), route_prefix="/")
        other = args.model_copy(update={"store": str(tmp_path / "other")})
        ray.serve.run(build_app(other), name="other", route_prefix="/other")  # goes without the port that is taken
        with httpx.Client(timeout=30) as client:
            item = load_retriever(tiny_run).recommender.item_ids[0]
            body = {"history": [{"item_id": item}], "k": 3, "context": {"timestamp": 1_700_000_000}}
            answers = [
                client.post(f"http://127.0.0.1:{place}/v1/recommend", json=body).json()
                for place in (port, direct, f"{port}/other")
            ]
            assert len(answers[0]["items"]) == 3
            for other_answer in answers[1:]:
                assert_same_json(other_answer, answers[0])
            heard = {
                c.laddr.ip for c in psutil.net_connections("tcp4") if c.status == "LISTEN" and c.laddr.port == direct
            }
            assert heard == {"127.0.0.1"} == {ray.serve.config.HTTPOptions().host}, (
                "from this machine alone, unless told"
            )
            refused = client.post(f"http://127.0.0.1:{direct}/v1/recommend", json={"k": 3})
            assert refused.status_code == 422 and "user_id or history" in refused.text
            counts = client.get(f"http://127.0.0.1:{direct}/metrics").text
            asked = 'ctxrec_requests_total{route="/v1/recommend",status="200"}'
            assert [line.split()[-1] for line in counts.splitlines() if line.startswith(asked)] == [
                "2.0"
            ]  # not the other's
        ray.serve.delete("default")
        with pytest.raises(OSError):
            for _ in range(100):
                socket.create_connection(("127.0.0.1", direct), timeout=1).close()
                time.sleep(0.1)
    finally:
        ray.serve.shutdown()
