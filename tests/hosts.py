"""Several hosts on one machine: network, mount, process and host-name namespaces, joined by a bridge.

Each host has an address, a name, a loopback, a `/tmp` and a `/dev/shm` of its own, so that nothing but the network
joins them: no shared disk, no shared memory, no signal. The bridge lies in a namespace too; this machine's own
network is left alone, and commands reach a host only by running in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import REPO
from trainings import NO_AGENT

from ctxrec.training import deepspeed_engine

deepspeed_engine.use_cpu_accelerator()
EXTENSIONS = os.environ["TORCH_EXTENSIONS_DIR"]  # DeepSpeed's, compiled once and not on each host
SUBNET = "10.213.7"


class HostLost(AssertionError):
    """A command did not do what the test needs; has its output."""


def require(*tools: str) -> None:
    """Skip, with the reason, where namespaces cannot be made or a program is missing."""
    if Path(__file__).resolve().is_relative_to("/tmp") or Path(sys.prefix).is_relative_to("/tmp"):
        pytest.skip("this checkout or its environment lies in /tmp, and each host has a /tmp of its own")
    for tool in ("ip", "nsenter", "unshare", "mount", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install iproute2 util-linux curl redis-server)")
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", "ip link add ctxrec0 type bridge"],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        pytest.skip(f"namespaces are not allowed here (CAP_NET_ADMIN, CAP_SYS_ADMIN): {tried.stderr.strip()[-200:]}")


class Host:
    """One host: a process that sleeps in namespaces of its own; killing it kills all that runs there."""

    def __init__(self, name: str, address: str | None = None) -> None:
        self.name, self.address = name, address
        setup = (
            "mount --make-rprivate / && mount -t tmpfs tmpfs /tmp && mount -t tmpfs -o size=2g tmpfs /dev/shm "
            f"&& hostname {name} && ip link set lo up && echo ready && exec sleep infinity"
        )
        flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc"]
        self._process = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", setup], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"
        pid = self._process.pid
        self.pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        self._logs: list = []

    def command(self, *words: str) -> list[str]:
        inside = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--ipc"]
        return [*inside, f"--wdns={REPO}", *words]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            "HOME": "/tmp",
            "CTXREC_CACHE": "/tmp/ctxrec-cache",
            "TORCH_EXTENSIONS_DIR": EXTENSIONS,
            "NO_PROXY": "*",
            **more,
        }

    def run(self, *words: str, timeout_s: float = 300, check: bool = True, **env: str) -> str:
        """Run a command there to its end; its output. A job that no agent of Ray's can take yet is submitted again."""
        deadline = time.monotonic() + timeout_s
        done = subprocess.run(
            self.command(*words), env=self.environment(**env), capture_output=True, text=True, timeout=timeout_s
        )
        output = done.stdout + done.stderr
        if NO_AGENT in output and done.returncode and time.monotonic() < deadline:
            time.sleep(1)
            return self.run(*words, timeout_s=deadline - time.monotonic(), check=check, **env)
        if check and done.returncode:
            raise HostLost(f"{self.name}: {' '.join(words)} ended with {done.returncode}:\n{output[-6000:]}")
        return output

    def start(self, log: Path, *words: str, **env: str) -> subprocess.Popen:
        """Start a command there; its output goes to `log`."""
        stream = open(log, "ab")  # noqa: SIM115 - closed with the host
        self._logs.append(stream)
        return subprocess.Popen(
            self.command(*words), env=self.environment(**env), stdout=stream, stderr=stream, start_new_session=True
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """As if the power went: everything there is gone at once."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)  # the first process of its namespace takes all others with it
            self._process.wait()
        for stream in self._logs:
            stream.close()


class Lan:
    """A bridge and the hosts on it, each with an address of one subnet on an interface named net0."""

    def __init__(self, names: list[str]) -> None:
        self._next = 10
        self.hosts: dict[str, Host] = {}
        self._switch = Host("switch")
        try:
            self._switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self._switch.run("ip", "link", "set", "bridge", "up")
            for name in names:
                self.add(name)
        except BaseException:
            self.close()  # else the hosts would outlive the test
            raise

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def add(self, name: str, address: str | None = None) -> Host:
        """One more host, at the next free address or at the one given."""
        self._next += 1
        host = self.hosts[name] = Host(name, address or f"{SUBNET}.{self._next}")
        port = f"p{self._next}"
        # By nsenter without the process namespace: the number of a process is this machine's.
        command = ["nsenter", f"--target={self._switch.pid}", "--net", "ip", "link", "add", port, "type", "veth"]
        command += ["peer", "name", "net0", "netns", str(host.pid)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        self._switch.run("ip", "link", "set", port, "master", "bridge", "up")
        # One card an address: others take up to a minute to see that an address has moved to another card.
        card = ":".join(f"{int(part):02x}" for part in str(host.address).split("."))
        host.run("ip", "link", "set", "net0", "address", f"02:00:{card}")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "net0")
        host.run("ip", "link", "set", "net0", "up")
        return host

    def cut_off(self, name: str) -> None:
        """Pull the cable: the host runs on and reaches nobody."""
        self.hosts[name].run("ip", "link", "set", "net0", "down")

    def close(self) -> None:
        for host in [*self.hosts.values(), self._switch]:
            host.kill()


def start_storage(host: Host, log: Path, bucket: str) -> dict[str, str]:
    """An S3-compatible server on `host` with one bucket; the variables that lead to it."""
    host.start(log, "moto_server", "-H", str(host.address), "-p", "9000")
    env = {
        "AWS_ENDPOINT_URL": f"http://{host.address}:9000",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    script = f"import boto3; boto3.client('s3').create_bucket(Bucket='{bucket}')"
    deadline = time.monotonic() + 60
    while True:
        try:
            host.run("python", "-c", script, **env)
            return env
        except HostLost:
            if time.monotonic() > deadline:
                raise HostLost(log.read_text()[-3000:]) from None
            time.sleep(1)
