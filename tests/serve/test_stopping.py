"""`serve run` in a process of its own, as a container runs it: its ports, a second service, and SIGTERM while it answers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from trainings import command_env, free_ports

IN_FLIGHT = 60
SERVE = [sys.executable, "-m", "serve.command", "run"]


@contextmanager
def running(command: list[str], log: Path, places: list[str]) -> Iterator[subprocess.Popen]:
    """A service of its own Ray, ready for requests at all places."""
    env = {name: value for name, value in command_env().items() if name != "RAY_ADDRESS"}
    with open(log, "wb") as stream:
        service = subprocess.Popen([*SERVE, *command], env=env, stdout=stream, stderr=stream)
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


def test_sigterm_finishes_what_is_in_flight_and_writes_what_is_stored(tiny_run, tmp_path):
    """Sixty calls of 128 requests each wait in one replica, half of them behind Serve's proxy: all are answered."""
    port, direct, dashboard = free_ports(3)
    command = [
        "serve.app:build_app", f"run={tiny_run}", "cpus_per_replica=0.1", "load_encoder=false", f"direct_port={direct}",
        f"store={tmp_path / 'live'}", "history_cache_mb=0", f"max_waiting={128 * IN_FLIGHT}", f"port={port}",
        f"dashboard_port={dashboard}",
    ]  # fmt: skip
    body = {"requests": [{"user_id": f"u{n % 60}", "k": 40} for n in range(128)]}
    places = [f"http://127.0.0.1:{place}" for place in (port, direct)]
    log = tmp_path / "log"

    def ask(place: str) -> int:
        return httpx.post(f"{place}/v1/recommend", json=body, timeout=300).status_code

    with running(command, log, places) as service:
        heard = listening(service.pid)
        assert {port, direct, dashboard} <= {port for address, port, _ in heard if address == "127.0.0.1"}
        # Ray's own ports too, but for the one between replicas, which Ray binds to all addresses whatever it is told.
        wide = {name for address, _, name in heard if address != "127.0.0.1"}
        assert all(name.startswith("ray::ServeReplica") for name in wide), wide
        event = {"user_id": "the last", "item_id": "i3"}
        assert httpx.post(f"{places[1]}/v1/events", json={"events": [event]}).json() == {"accepted": 1}
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            asking = [threads.submit(ask, places[n % 2]) for n in range(IN_FLIGHT)]
            while waiting(places[1]) < 128 * IN_FLIGHT // 2:
                assert not any(each.done() and each.exception() for each in asking)
                time.sleep(0.01)
            service.send_signal(signal.SIGTERM)
            still = sum(not each.done() for each in asking)
            assert [each.result() for each in asking] == [200] * IN_FLIGHT
        assert service.wait(300) == 0, log.read_text()[-2000:]
    assert still > IN_FLIGHT // 4, "else the signal came too late to say anything"
    for place in places:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{place}/readyz")
    (file,) = (tmp_path / "live" / "events").glob("*.parquet")
    assert pq.read_table(file).column("user_id").to_pylist() == ["the last"]


def test_a_config_file_drains_too_and_a_second_service_at_its_port_is_refused(tiny_run, tmp_path):
    port, other = free_ports(2)
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"proxy_location: HeadOnly\nhttp_options: {{host: 127.0.0.1, port: {port}}}\napplications:\n"
        "  - name: ctxrec\n    route_prefix: /\n    import_path: serve.app:build_app\n    args:\n"
        f"      {{run: {tiny_run}, direct_port: 0, load_encoder: false, cpus_per_replica: 0.1, max_waiting: 4096, store: {tmp_path / 'live'}}}\n"
    )
    place, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    body = {"requests": [{"user_id": f"u{n % 60}", "k": 40} for n in range(128)]}
    with running([str(config)], log, [place]) as service:
        before = listening(service.pid)
        seconds = (
            [str(config)],
            ["serve.app:build_app", f"run={tiny_run}", f"port={port}"],
            ["serve.app:build_app", f"run={tiny_run}", f"port={other}", f"dashboard_port={port}"],
        )
        for second in seconds:
            asked = subprocess.run([*SERVE, *second], env=command_env(), capture_output=True, text=True, timeout=300)
            last = asked.stderr.strip().splitlines()[-1]
            assert asked.returncode == 2 and "Traceback" not in asked.stderr, asked.stderr
            assert last.startswith(f"error: 127.0.0.1:{port} cannot be used: Address already in use"), last
            assert httpx.get(f"{place}/readyz").status_code == 200
        assert listening(service.pid) == before
        with ThreadPoolExecutor(8) as threads:
            asking = [threads.submit(httpx.post, f"{place}/v1/recommend", json=body, timeout=300) for _ in range(8)]
            while not any(each.done() for each in asking):
                time.sleep(0.01)
            service.send_signal(signal.SIGTERM)
            assert [each.result().status_code for each in asking] == [200] * 8
        assert service.wait(300) == 0, log.read_text()[-2000:]
    assert "SIGTERM: finishing what is in flight" in log.read_text()


def waiting(place: str) -> float:
    return float(re.search(r"^ctxrec_waiting (\S+)", httpx.get(f"{place}/metrics").text, re.M)[1])


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
