"""One service for all tests of this folder: Ray Serve on a free port, asked over HTTP.

The folder is a package so that the service ends with its last test, and leaves the two CPUs to the others.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rerankers import put_second_stage

from ctxrec.bundle.registry import find_bundle, publish
from ctxrec.retrieval.retriever import load_retriever

TIMEOUT_S = 180  # of whatever must come; generous, as the machine may be busy with other work


class ServiceClient(httpx.Client):
    """An HTTP client that knows what to expect."""

    def ask(self, **body: Any) -> dict:
        response = self.post("/v1/recommend", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def refuses(self, body: Any, *, status: int = 422) -> str:
        """The text of a refusal of this body, JSON or bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status, response.text
        assert response.json().keys() == {"detail"}
        return response.text

    def post_events(self, *events: dict) -> httpx.Response:
        return self.post("/v1/events", json={"events": list(events)})


@pytest.fixture(scope="package")
def retriever(tiny_run):
    return load_retriever(tiny_run)


@pytest.fixture(scope="package")
def live(tmp_path_factory) -> Path:
    """The folder of the service's store."""
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="package")
def models(tiny_run, tmp_path_factory) -> str:
    """Published models: one version, that of the tiny run, with a second stage for requests that ask for it."""
    folder = str(tmp_path_factory.mktemp("models"))
    publish(find_bundle(tiny_run), folder)
    put_second_stage(find_bundle(folder))
    return folder


@pytest.fixture(scope="package")
def access_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs") / "access.jsonl"


@pytest.fixture(scope="package")
def rule_file(tmp_path_factory) -> Path:
    """The service's rule file, without any rule."""
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text("# no rules\n")
    return path


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="package")
def direct_port() -> int:
    """The port at which the replica answers without Serve's proxy."""
    return _free_port()


@pytest.fixture(scope="package")
def client(ray_cluster, models, live, access_log, rule_file, direct_port):
    """A client of the service, which shares its two CPUs with nothing but the batch job of one test."""
    import ray.serve

    from serve.app import AppArgs, build_app

    port = _free_port()
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = AppArgs(
        run=models, cpus_per_replica=0.5, store=str(live), event_files_every_s=0.5, models_every_s=0.5,
        access_log=str(access_log), trusted_proxies=1, rate_limit=1000, rate_burst=4000, cors_origins="https://shop.example",
        rules=str(rule_file), rules_every_s=0.3, direct_port=direct_port,
        max_waiting=100_000,  # the limit of one caller is what a test of many requests at once is about
    )  # fmt: skip
    ray.serve.run(build_app(args), route_prefix="/")
    with ServiceClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as made:
        yield made
    ray.serve.shutdown()


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    def wait(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
        stop_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < stop_at, "waited in vain"
            time.sleep(0.1)

    return wait
