"""What tests of trainings share: their commands, their logs, and when two of them are the same."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from paths import REPO
from safetensors.numpy import load_file

from ctxrec.core.config import to_toml
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.load import load_recommender
from ctxrec.training.trackers import PHASES

NO_AGENT = "No available agent to submit job"  # Ray's answer until an agent of its dashboard has registered


def submit_job(command: list[str], *, env: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `ray job submit` to the job's end, and again while the cluster has no agent that could take it."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=left_s)
        if done.returncode == 0 or NO_AGENT not in done.stdout + done.stderr or time.monotonic() > deadline - 1:
            return done
        time.sleep(1)


def read_log(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "train_log.jsonl").read_text().splitlines()]


def assert_same_training(found: str, expected: str, *, atol: float = 3e-3) -> None:
    """Losses within 1e-4 relative at every evaluation, item vectors of the result within `atol`.

    Sums run in another order on two workers, and AdamW divides by the root of tiny second moments, so
    float32 rounding grows from 1e-7 in a gradient to at most this in a weight, most where text does not vary.
    """
    logs = read_log(found), read_log(expected)
    assert [(a["phase"], a["step"]) for a in logs[0]] == [(b["phase"], b["step"]) for b in logs[1]]
    for a, b in zip(*logs, strict=True):
        if "loss" in b:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    vectors = [load_file(Path(run) / "bundle" / "vectors.safetensors")["items"] for run in (found, expected)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=atol)


def command_env() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    return env | {"PYTHONPATH": str(REPO), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


STARTED: list[subprocess.Popen] = []  # by tests; those that fail leave theirs running


def start(config, data: str, run: Path, log: Path, *, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Start the training command; what it prints is appended to `log`."""
    settings = log.with_suffix(".toml")
    settings.write_text(to_toml(config))
    command = [sys.executable, "-m", "ctxrec.train", "--data", data, "--out", str(run), "--config", str(settings)]
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            command, env=command_env() | (env or {}), stdout=stream, stderr=stream, start_new_session=True
        )
    STARTED.append(process)
    return process


def end_all() -> None:
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            kill_command(process)


def finish(config, data: str, run: Path, log: Path, *, env: dict[str, str] | None = None) -> None:
    assert start(config, data, run, log, env=env).wait(1800) == 0, log.read_text()[-3000:]


def done_so_far(run: Path) -> tuple[int, int]:
    """Phase and step of the newest checkpoint that can be read; (-1, 0) before the first."""
    for newest in sorted((run / "checkpoints").glob("checkpoint_2*/state.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, TypeError):  # it is just being written or deleted
            progress = json.loads(newest.read_text())["progress"]
            return PHASES.index(progress["phase"]), progress["step"]
    return -1, 0


def wait_until(process: subprocess.Popen, run: Path, log: Path, *, beyond: tuple[int, int]) -> None:
    """Wait until a checkpoint beyond a phase and step is there."""
    deadline = time.monotonic() + 900
    while done_so_far(run) <= beyond:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def training_workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Ray Train's workers below a command that has a cluster of its own."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline() and child.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(child)
    return found


def kill_command(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lose_power(process: subprocess.Popen) -> None:
    """Kill a command and all that it has started, at once."""
    if process.poll() is None:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def same_result(run: Path, expected: str) -> None:
    """On another number of workers, over a training of 90 steps: one axis of text that hardly varies differs most."""
    assert_same_training(str(run), expected, atol=1e-2)


def same_to_the_digit(run: Path, expected: str) -> None:
    """On the same number of workers nothing may differ but the order of sums inside a library."""
    assert_same_training(str(run), expected)
    ours, theirs = (load_file(Path(r) / "bundle" / "towers.safetensors") for r in (run, expected))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)


def wait_for_silence(run: Path) -> None:
    """Wait until what a killed command has left behind writes no more."""
    before, seen = None, sorted((run / "checkpoints").rglob("*"))
    while before != seen:
        time.sleep(2)
        before, seen = seen, sorted((run / "checkpoints").rglob("*"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Nodes:
    """A Ray cluster of several raylets on this machine, each of one CPU unless told; closing it ends all of them."""

    def __init__(self, logs: Path, *, token: str = "", head_cpus: int = 1, env: dict[str, str] | None = None) -> None:
        """`token`: what a caller must know; empty: nothing. `env`: variables of every node."""
        # Ray's sockets need a path below 107 bytes, which pytest's folders can exceed.
        self._folder, self._logs = tempfile.mkdtemp(prefix="ctxrec-ray-"), logs
        gcs, self.dashboard, client = free_ports(3)
        # A head alone would want a token.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        self.env = {"RAY_ADDRESS": f"127.0.0.1:{gcs}", **auth}
        self._node_env = auth | (env or {})
        options = [
            "--head",
            f"--port={gcs}",
            f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={client}",
        ]
        self.processes: list[subprocess.Popen] = []
        self.head = self._start([*options, f"--temp-dir={self._folder}", "--include-dashboard=true"], head_cpus)

    def add(self, cpus: int = 1) -> subprocess.Popen:
        return self._start([f"--address={self.env['RAY_ADDRESS']}"], cpus)

    def _start(self, options: list[str], cpus: int) -> subprocess.Popen:
        agent, metrics = free_ports(2)
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            f"--num-cpus={cpus}",
            "--disable-usage-stats",
        ]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", *options]
        log = self._logs / f"node{len(self.processes)}.log"
        with open(log, "wb") as stream:
            env = command_env() | self._node_env
            process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
        self.processes.append(process)
        deadline = time.monotonic() + 600
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        return process

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_error: object) -> None:
        for process in reversed(self.processes):
            lose_power(process)
        shutil.rmtree(self._folder, ignore_errors=True)


def assert_bundle_gives_its_item_vectors_again(bundle: str, items: pa.Table) -> None:
    """From the pretrained encoder, the bundle's adapter and its towers: what is exported is what was trained."""
    recommender = load_recommender(bundle)
    again = ItemEncoder(bundle, recommender).encode(items).vectors[:, : sum(recommender.widths)]
    np.testing.assert_allclose(again, recommender.item_vectors, atol=1e-5)
