"""A service that a demo starts, asks and stops: `serve run` as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from ctxrec.bundle import registry
from ctxrec.core import storage
from ctxrec.core.errors import UserError

START_TIMEOUT_S = 300  # of a busy machine; a service that ends before is noticed at once


def check_free(port: int) -> None:
    """Refuse a port at which another service would answer what a demo asks.

    Raises:
        UserError: something listens there.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(
                f"something listens at port {port} already; stop it, or set another --port (make: PORT=...)"
            )


def publish(run: str, models: str) -> str:
    """Publish a run's bundle; returns its version."""
    return registry.publish(registry.find_bundle(run), models).version


def await_version(client: httpx.Client, version: str) -> None:
    """Wait until the service answers with a version (user "1" is asked for, known or not).

    Raises:
        RuntimeError: it still answers with another one after START_TIMEOUT_S.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while (answered := client.post("/v1/recommend", json={"user_id": "1"}).json()["model_version"]) != version:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service answers with version {answered}, and {version} is published")
        time.sleep(0.2)


def say_where(url: str, process: subprocess.Popen[bytes], log: str, request: Mapping[str, Any]) -> None:
    """Print where a service that stays up is, how to stop it, and how to ask it `request`."""
    print(f"\nthe service stays up at {url} (docs: {url}/docs, log: {log}); stop it with: kill {process.pid}")
    print(f"curl -s {url}/v1/recommend -H 'content-type: application/json' -d '{json.dumps(request)}'")


@contextlib.contextmanager
def service(
    run: str, port: int, log: str, *, keep: bool, args: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`serve run serve.app:build_app run=RUN` as a process of its own, ready for requests.

    Args:
        run: what is served; `serve.yaml` is written beside it.
        port: of the service.
        log: file for what it prints.
        keep: whether it stays up afterwards, unless an error ends the demo.
        args: other arguments of the service.

    Yields:
        Its URL, and its process.

    Raises:
        RuntimeError: it does not become ready.
    """
    url = f"http://127.0.0.1:{port}"
    config = os.path.join(os.path.dirname(run), "serve.yaml")
    storage.write_text(
        config,
        f"proxy_location: HeadOnly\nhttp_options:\n  host: 127.0.0.1\n  port: {port}\n"
        "controller_options:\n  runtime_env:\n    env_vars:\n"
        "      RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: serve.port_guard.guard_proxy\napplications:\n"
        f"  - name: ctxrec\n    route_prefix: /\n    import_path: serve.app:build_app\n"
        f"    args: {json.dumps({'run': run, **(args or {})})}\n",
    )
    command = [sys.executable, "-m", "serve.command", "run", config]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=env, start_new_session=True)
    done = False
    try:
        _wait_ready(url, process, log)
        yield url, process
        done = True
    finally:
        if not (keep and done):
            _stop(process)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError(f"the service did not become ready; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the service as Ctrl-C does, and make sure of it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print("service stopped")


def title(text: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {text}", flush=True)


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
