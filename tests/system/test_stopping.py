"""`serve run` in a process of its own, as a container runs it: its ports, a second service, and SIGTERM while it answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from serve_commands import serve_run_mistake
from trainings import command_env, free_ports

IN_FLIGHT = 60  # calls
IN_A_CALL = 32  # requests
SERVE = [sys.executable, "-m", "serve.command", "run"]


@contextmanager
def running(command: list[str], log: Path, places: list[str]) -> Iterator[subprocess.Popen]:
    """A service of its own Ray, ready for requests at all places."""
    env = {name: value for name, value in command_env().items() if name != "RAY_ADDRESS"}
    with open(log, "wb") as stream:
        service = subprocess.Popen([*SERVE, *command], env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_until_ready(places, service, log)
        yield service
    finally:
        own = psutil.Process(service.pid).children(recursive=True) if service.poll() is None else []
        service.kill()
        service.wait()
        for process in own:
            process.kill() if process.is_running() else None


def listening(pid: int) -> set[tuple[str, int, str]]:
    """Addresses and ports at which a process and all processes below it listen, with their names."""
    tree = {child.pid: child.name() for child in psutil.Process(pid).children(recursive=True)} | {pid: "serve run"}
    found = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in tree]
    return {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port, tree[c.pid]) for c in found}


@pytest.mark.slow  # below, the same by a config file
def test_a_command_line_sets_the_ports_and_drains(tiny_run, tmp_path):
    port, direct, dashboard = free_ports(3)
    command = [
        "serve.app:build_app", f"run={tiny_run}", "cpus_per_replica=0.1", "load_encoder=false", f"direct_port={direct}",
        f"port={port}", f"dashboard_port={dashboard}",
    ]  # fmt: skip
    places, log = [f"http://127.0.0.1:{place}" for place in (port, direct)], tmp_path / "log"
    with running(command, log, places) as service:
        assert {port, direct, dashboard} <= {at for address, at, _ in listening(service.pid) if address == "127.0.0.1"}
        service.send_signal(signal.SIGTERM)
        assert service.wait(300) == 0, log.read_text()[-2000:]


@pytest.mark.slow  # above and below, the signals that end as they should
def test_a_signal_to_the_processes_of_ray_too_ends_the_service_with_a_reason(tiny_run, tmp_path):
    """As systemd sends it without KillMode=mixed."""
    (port,), log = free_ports(1), tmp_path / "log"
    command = ["serve.app:build_app", f"run={tiny_run}", "cpus_per_replica=0.1", "load_encoder=false", f"port={port}"]
    with running(command, log, [f"http://127.0.0.1:{port}"]) as service:
        for process in [*psutil.Process(service.pid).children(recursive=True), psutil.Process(service.pid)]:
            process.send_signal(signal.SIGTERM)
        assert service.wait(300) == 1
    said = log.read_text()
    assert "SIGTERM went to the processes of Ray too" in said and "Failed to connect to GCS" not in said, said[-2000:]


def test_a_service_of_a_config_file_keeps_its_ports_and_drains_on_sigterm(tiny_run, tmp_path, monkeypatch, capsys):
    """Sixty calls of 32 requests each wait in one replica, half of them behind Serve's proxy: all are answered."""
    port, direct, other = free_ports(3)
    args = {
        "run": tiny_run, "cpus_per_replica": 0.1, "load_encoder": False, "direct_port": direct, "store": str(tmp_path / "live"),
        "history_cache_mb": 0, "max_waiting": IN_A_CALL * IN_FLIGHT,
    }  # fmt: skip
    config, log = tmp_path / "serve.yaml", tmp_path / "log"
    config.write_text(
        f"proxy_location: HeadOnly\nhttp_options: {{host: 127.0.0.1, port: {port}}}\napplications:\n"
        f"  - {{name: ctxrec, route_prefix: /, import_path: serve.app:build_app, args: {json.dumps(args)}}}\n"
    )
    body = json.dumps({"requests": [{"user_id": f"u{n % 60}", "k": 40} for n in range(IN_A_CALL)]})
    sent = threading.Semaphore(0)
    places = [f"http://127.0.0.1:{place}" for place in (port, direct)]

    def ask(at: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", at, timeout=300)
        connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
        sent.release()
        return connection.getresponse().status

    with running([str(config)], log, places) as service:
        heard = listening(service.pid)
        assert {port, direct} <= {port for address, port, _ in heard if address == "127.0.0.1"}
        # Ray's own ports too, but for the one between replicas, which Ray binds to all addresses whatever it is told.
        wide = {name for address, _, name in heard if address != "127.0.0.1"}
        assert all(name.startswith("ray::ServeReplica") for name in wide), wide
        taken = f"error: 127.0.0.1:{port} cannot be used: Address already in use"
        second = [*SERVE, str(config)]
        refused = subprocess.run(second, env=command_env(), capture_output=True, text=True, timeout=300)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith(taken), refused.stderr
        for ports in ([f"port={port}"], [f"port={other}", f"dashboard_port={port}"]):
            line = serve_run_mistake(["serve.app:build_app", f"run={tiny_run}", *ports], monkeypatch, capsys)
            assert line.startswith(taken), line
        assert httpx.get(f"{places[0]}/readyz").status_code == 200
        places_now = {(address, at) for address, at, _ in listening(service.pid)}  # Ray renames its processes
        assert places_now == {(address, at) for address, at, _ in heard}
        event = {"user_id": "the last", "item_id": "i3"}
        assert httpx.post(f"{places[1]}/v1/events", json={"events": [event]}).json() == {"accepted": 1}
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            still = 0
            while not still:  # else another process kept this one from sending the signal in time
                asking = [threads.submit(ask, (port, direct)[n % 2]) for n in range(IN_FLIGHT)]
                assert all(sent.acquire(timeout=300) for _ in range(IN_FLIGHT))
                wait(asking, return_when=FIRST_COMPLETED)
                still = sum(not each.done() for each in asking)
            os.killpg(service.pid, signal.SIGTERM)  # the whole group, as `timeout` does
            assert [each.result() for each in asking] == [200] * IN_FLIGHT
        assert service.wait(300) == 0, log.read_text()[-2000:]
    assert "SIGTERM: finishing what is in flight" in log.read_text()
    for place in places:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{place}/readyz")
    (file,) = (tmp_path / "live" / "events").glob("*.parquet")
    assert pq.read_table(file).column("user_id").to_pylist() == ["the last"]


def wait_until_ready(places: list[str], service: subprocess.Popen, log: Path) -> None:
    stop_at = time.monotonic() + 300
    while True:
        assert service.poll() is None and time.monotonic() < stop_at, log.read_text()[-2000:]
        try:
            if all(httpx.get(f"{place}/readyz").status_code == 200 for place in places):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
