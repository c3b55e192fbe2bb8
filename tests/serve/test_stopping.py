"""`serve run` in a process of its own, as a container runs it, and SIGTERM while it is answering."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from trainings import command_env, free_ports

IN_FLIGHT = 60


def test_sigterm_finishes_what_is_in_flight_and_writes_what_is_stored(ray_cluster, tiny_run, tmp_path):
    """Sixty calls of 128 requests each wait in one replica, half of them behind Serve's proxy: all are answered."""
    import ray
    import ray.serve

    port, direct = free_ports(2)
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    command = [
        str(Path(sys.executable).with_name("serve")), "run", "--address", ray.get_runtime_context().gcs_address,
        "serve.app:build_app", f"run={tiny_run}", "cpus_per_replica=0.1", "load_encoder=false", f"direct_port={direct}",
        f"store={tmp_path / 'live'}", "history_cache_mb=0", f"max_waiting={128 * IN_FLIGHT}",
    ]  # fmt: skip
    body = {"requests": [{"user_id": f"u{n % 60}", "k": 40} for n in range(128)]}
    places = [f"http://127.0.0.1:{place}" for place in (port, direct)]
    log = tmp_path / "log"
    with open(log, "wb") as stream:
        service = subprocess.Popen(command, env=command_env(), stdout=stream, stderr=stream)

    def ask(place: str) -> int:
        return httpx.post(f"{place}/v1/recommend", json=body, timeout=300).status_code

    try:
        wait_until_ready(places, service, log)
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
    finally:
        service.kill()
        service.wait()
        ray.serve.shutdown()
    assert still > IN_FLIGHT // 4, "else the signal came too late to say anything"
    for place in places:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{place}/readyz")
    (file,) = (tmp_path / "live" / "events").glob("*.parquet")
    assert pq.read_table(file).column("user_id").to_pylist() == ["the last"]


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
