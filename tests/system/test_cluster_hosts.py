"""Several hosts on this machine: they share nothing but the network, and storage by URI is enough for them."""

from __future__ import annotations

import socket
import time

import hosts
import psutil
import pytest


@pytest.fixture(scope="module")
def lan():
    hosts.require()
    made = hosts.Lan(["a", "b", "store"])
    yield made
    made.close()


def test_an_address_leads_to_its_interface():
    from ctxrec.training.process_group import interface_of

    own = {h.address: name for name, held in psutil.net_if_addrs().items() for h in held if h.family == socket.AF_INET}
    for address, name in own.items():
        assert interface_of(address) == (None if address.startswith("127.") else name)
    assert interface_of("203.0.113.9") is None, "another machine's"


def test_hosts_share_nothing_but_the_network(lan):
    lan["a"].run("sh", "-c", "echo secret > /tmp/mine && echo secret > /dev/shm/mine")
    assert "No such file" in lan["b"].run("ls", "/tmp/mine", "/dev/shm/mine", check=False)
    assert lan["a"].run("hostname").strip() == "a" and lan["b"].run("hostname").strip() == "b"
    for host in (lan["a"], lan["b"]):
        found = host.run("python", "-c", "import psutil; print(sorted(psutil.net_if_addrs()), len(psutil.pids()))")
        interfaces, processes = found.rsplit(" ", 1)
        assert interfaces == "['lo', 'net0']" and int(processes) < 10, "no interface and no process of this machine"


def test_data_goes_from_host_to_host_by_uri(lan, tmp_path):
    """One writes to an S3-compatible server, another reads; folders are whole, and deleted ones are gone."""
    env = hosts.start_storage(lan["store"], tmp_path / "moto.log", "ctxrec")
    write = """
import os, tempfile
from ctxrec.core import storage
storage.write_text("s3://ctxrec/a/b.txt", "from a")
def fill(folder):
    os.makedirs(os.path.join(folder, "deep", "er"))
    for name in ("manifest.json", "deep/er/x"):
        with open(os.path.join(folder, name), "w") as out:
            out.write("{}")
storage.write_dir("s3://ctxrec/run", fill, scratch=tempfile.mkdtemp())
"""
    read = """
import tempfile
from ctxrec.core import storage
print(storage.read_text("s3://ctxrec/a/b.txt"), len(storage.list_files("s3://ctxrec/run")))
print(storage.local_files(storage.fetch_dir("s3://ctxrec/run", scratch=tempfile.mkdtemp())))
storage.delete("s3://ctxrec/run")
print(storage.exists("s3://ctxrec/run"))
"""
    lan["a"].run("python", "-c", write, **env)
    found = lan["b"].run("python", "-c", read, **env)
    assert found.split("\n")[:3] == ["from a 2", "['deep/er/x', 'manifest.json']", "False"]


def test_a_host_that_is_cut_off_reaches_nobody(lan, tmp_path):
    """It runs on, but no connection comes through; the others still reach each other."""
    lan["a"].start(tmp_path / "listen.log", "python", "-m", "http.server", "7000", "--bind", str(lan["a"].address))
    gone, listener = lan.add("gone"), lan["a"].address
    connect = f"import socket; socket.create_connection(('{listener}', 7000), timeout=20)"
    _until(lambda: "Error" not in gone.run("python", "-c", connect, check=False))
    lan.cut_off("gone")
    with pytest.raises(hosts.HostLost, match=r"Network is unreachable|timed out|No route"):
        gone.run("python", "-c", connect)
    assert gone.run("hostname").strip() == "gone"
    lan["b"].run("python", "-c", connect)


def _until(true, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_processes_reduce_over_the_network_by_the_interface_of_their_address(lan, tmp_path):
    """gloo, which trains without GPUs, takes the address that a host's own name leads to, unless told the interface.

    `ctxrec.training.process_group` tells Ray Train's workers (see test_cluster_jobs.py).
    """
    program = (
        "import datetime, torch, torch.distributed as d\n"
        "d.init_process_group('gloo', timeout=datetime.timedelta(seconds=240))\n"
        "x = torch.ones(1) * (d.get_rank() + 1); d.all_reduce(x); print('sum', x.item()); d.destroy_process_group()"
    )
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": str(lan["a"].address), "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
    logs, started = [tmp_path / "a.log", tmp_path / "b.log"], []
    for rank, (name, log) in enumerate(zip("ab", logs, strict=True)):
        command = ("python", "-c", program)
        started.append(lan[name].start(log, *command, RANK=str(rank), GLOO_SOCKET_IFNAME="net0", **env))
    for process, log in zip(started, logs, strict=True):
        assert process.wait(300) == 0, log.read_text()[-2000:]
        assert "sum 3.0" in log.read_text()
