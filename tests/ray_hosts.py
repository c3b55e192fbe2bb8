"""A Ray cluster over hosts of `hosts`, driven as its users drive one: by jobs, over the network."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hosts import Host, HostLost, Lan

TOKEN = "0123456789abcdef" * 3
RAY_ENV = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "2000",  # so that a lost host is missed in seconds and not in a minute
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # as KubeRay sets it: how long nodes wait for a new head
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}
_OBJECT_STORE = "--object-store-memory=100000000"


def start_redis(host: Host, log: Path) -> str:
    """A Redis server that syncs before it answers; its address."""
    options = ["--bind", str(host.address), "--protected-mode", "no", "--dir", "/tmp"]
    host.start(log, "redis-server", *options, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
    return f"{host.address}:6379"


class RayHosts:
    """A head without CPUs that keeps its state in Redis, and nodes of one CPU each."""

    def __init__(self, lan: Lan, folder: Path, *, redis: str, env: dict[str, str]) -> None:
        self.lan, self.folder, self.env = lan, folder, RAY_ENV | env
        self._redis = redis
        self.start_head()

    @property
    def head(self) -> Host:
        return self.lan["head"]

    def start_head(self) -> None:
        """On the host named head, which may be a new one at the address of the one before."""
        address = str(self.head.address)
        where = [f"--node-ip-address={address}", "--port=6379", f"--dashboard-host={address}", "--num-cpus=0"]
        state = {"RAY_REDIS_ADDRESS": self._redis, "RAY_external_storage_namespace": "ctxrec"}
        self._start("head", "--head", *where, **state)
        self.until(lambda: self.get("/api/version") is not None, 180, "the head")

    def replace_head(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """The host of the head is lost; after a while another one takes its address."""
        address = str(self.head.address)
        self.head.kill()
        meanwhile()
        self.lan.add("head", address)
        self.start_head()

    def join(self, name: str) -> None:
        """A node on a host."""
        own = f"--node-ip-address={self.lan[name].address}"
        self._start(name, f"--address={self.head.address}:6379", own, "--num-cpus=1")

    def _start(self, name: str, *words: str, **env: str) -> None:
        common = ["--block", "--disable-usage-stats", _OBJECT_STORE]
        self.lan[name].start(self.folder / f"{name}.log", "ray", "start", *words, *common, **self.env, **env)

    def get(self, path: str, host: Host | None = None) -> dict | None:
        """A JSON answer of the dashboard, asked from `host`; None where there is none."""
        url = f"http://{self.head.address}:8265{path}"
        words = ["curl", "-s", "-f", "-m", "10", "-H", f"Authorization: Bearer {TOKEN}", url]
        done = subprocess.run((host or self.head).command(*words), capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None

    def nodes(self) -> list[str]:
        """Addresses of the nodes that are alive."""
        found = self.get("/api/v0/nodes") or {"data": {"result": {"result": []}}}
        return [n["node_ip"] for n in found["data"]["result"]["result"] if n["state"] == "ALIVE"]

    def wait_for_nodes(self, *names: str, timeout_s: float = 180) -> None:
        """Wait until exactly the head and the hosts of these names are nodes."""
        wanted = sorted(str(self.lan[name].address) for name in ("head", *names))
        self.until(lambda: sorted(self.nodes()) == wanted, timeout_s, f"nodes {names}")

    def submit(self, *command: str, timeout_s: float = 600) -> str:
        """Run a command as a job to its end; its output. Raises where the job fails."""
        return self._job(*command, timeout_s=timeout_s)

    def start_job(self, job: str, *command: str, cpus: float = 0) -> None:
        """With `cpus` the command itself runs on a node that has them, else on the head."""
        self._job(*command, flags=["--no-wait", f"--submission-id={job}", f"--entrypoint-num-cpus={cpus}"])

    def _job(self, *command: str, flags: list[str] | None = None, timeout_s: float = 120) -> str:
        words = ["ray", "job", "submit", f"--address=http://{self.head.address}:8265", *(flags or []), "--", *command]
        return self.head.run(*words, timeout_s=timeout_s, **self.env)

    def status(self, job: str) -> str:
        """What the head knows of a job. A head that has just begun is asked until it answers."""
        told: dict[str, str] = {}
        self.until(lambda: bool(told.update(self.get(f"/api/jobs/{job}") or {}) or told), 180, f"status of {job}")
        return told["status"]

    def log_of(self, job: str) -> str:
        return (self.get(f"/api/jobs/{job}/logs") or {"logs": ""})["logs"]

    def processes(self, name: str) -> dict[str, list[str]]:
        """Numbers of the processes whose command begins with `name`, by host, of those that have one."""
        script = f"grep -ls '^{name}' /proc/[0-9]*/cmdline"
        found = {
            where: host.run("sh", "-c", script, check=False) for where, host in self.lan.hosts.items() if host.alive
        }
        return {where: text.split() for where, text in found.items() if text}

    def until(self, reached: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log")))
                raise HostLost(f"{what}: not reached in {timeout_s:.0f} s\n{logs}")
            time.sleep(0.5)
