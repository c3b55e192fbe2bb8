"""A log as skewed as they come, through the real commands: bounded memory, sensible time, a model that works."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainings import command_env, read_log

from ctxrec.data.prepared import PreparedData

EVENTS, ITEMS, USERS, ACTIONS = 1_000_000, 1_000_000, 500, 200
SPEC = """name = "skewed"
[events]
path = "events.parquet"
action = "action"
[items]
path = "items.parquet"
categorical = ["kind"]
[split]
strategy = "last"
repeats = true
"""
OPTIONS = [
    "encoder.name=", "model.dim=16", "model.layers=1", "train.tower_epochs=1", "train.refit=false",
    "train.global_batch_size=1024", "train.valid_users=200", "train.trackers=[]",
]  # fmt: skip


@pytest.fixture
def skewed(tmp_path) -> str:
    """One user with a million events, half of all events of one item, a million items, 200 actions; and 500 users of 5."""
    rng = np.random.default_rng(0)
    users = np.concatenate([np.full(EVENTS, "whale"), np.repeat([f"u{n}" for n in range(USERS)], 5)])
    items = rng.integers(1, ITEMS, len(users))
    items[rng.random(len(users)) < 0.5] = 0
    log = {
        "user_id": users,
        "item_id": items,
        "timestamp": 1_600_000_000 + rng.permutation(len(users)),
        "action": [f"a{n}" for n in rng.integers(0, ACTIONS, len(users))],
    }
    pq.write_table(pa.table(log), tmp_path / "events.parquet")
    pq.write_table(pa.table({"item_id": np.arange(ITEMS), "kind": np.arange(ITEMS) % 50}), tmp_path / "items.parquet")
    (tmp_path / "dataset.toml").write_text(SPEC)
    return str(tmp_path / "dataset.toml")


def run(log: Path, *words: str) -> tuple[float, float]:
    """Seconds of a command and the most GiB that it and all below it have held, without what they share."""
    begin, peak = time.monotonic(), 0
    with open(log, "wb") as said:
        command = subprocess.Popen([sys.executable, "-m", *words], env=command_env(), stdout=said, stderr=said)
    while command.poll() is None:
        held = 0
        with contextlib.suppress(psutil.Error):  # some end while they are counted
            for process in [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    held += memory.rss - memory.shared
        peak = max(peak, held)
        time.sleep(0.5)
    assert command.returncode == 0, log.read_text()[-3000:]
    return time.monotonic() - begin, peak / 2**30


@pytest.mark.slow
def test_a_skewed_log_is_prepared_and_trained_on(skewed, tmp_path):
    data, out = str(tmp_path / "data"), str(tmp_path / "run")
    prepared_s, prepared_gib = run(tmp_path / "prepare.log", "ctxrec.prepare", skewed, "--out", data)
    counts = PreparedData.open(data).meta
    assert counts["counts"]["items"] == ITEMS and len(counts["features"]["actions"]) == ACTIONS
    flags = [word for option in OPTIONS for word in ("--set", option)]
    trained_s, trained_gib = run(tmp_path / "train.log", "ctxrec.train", "--data", data, "--out", out, *flags)
    losses = [line["loss"] for line in read_log(out) if "loss" in line]
    assert losses and np.isfinite(losses).all() and Path(out, "bundle").is_dir()
    print(f"prepare {prepared_s:.0f} s, {prepared_gib:.1f} GiB; train {trained_s:.0f} s, {trained_gib:.1f} GiB")
    assert prepared_gib < 4 and trained_gib < 10, "a log of a million even events takes 2 and 6"
