"""Trainings that go wrong: what is said, what is kept, and where the same command goes on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from trainings import assert_same_training, command_env, read_log

from ctxrec import checkpoint, faults
from ctxrec.config import to_toml
from ctxrec.errors import UserError
from ctxrec.training import train


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def test_a_stop_is_asked_by_sigterm_and_only_while_it_is_listened_to(tmp_path):
    run = str(tmp_path)
    watch, before = faults.StopWatch(run), signal.getsignal(signal.SIGTERM)
    with faults.stop_on_sigterm(run):
        assert not watch.look()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert faults.stop_asked(run)
        assert faults.StopWatch(run).look()
    assert signal.getsignal(signal.SIGTERM) is before
    faults.record_mistake(run, UserError("wrong"))
    assert str(faults.mistake(run)) == "wrong"
    faults.skip(run, "towers", 3)
    faults.skip(run, "towers", 1)
    faults.clear(run)
    assert not faults.stop_asked(run) and faults.mistake(run) is None
    assert faults.skipped(run) == {("towers", 1), ("towers", 3)}


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_a_cut_off_or_missing_file_is_found(tmp_path, name):
    import torch

    folder = str(tmp_path / "whole")
    os.makedirs(folder)
    checkpoint.save(folder, {"w": torch.ones(3)}, {"w/exp_avg": torch.ones(3)}, {"step": 1})
    assert checkpoint.damage(folder) is None
    path = Path(folder) / name
    path.write_bytes(path.read_bytes()[:-5])
    assert name in checkpoint.damage(folder)
    path.unlink()
    assert name in checkpoint.damage(folder)


def test_a_mistake_that_a_worker_finds_is_one_line_and_is_not_tried_again(tiny_data, tiny_config, tmp_path):
    """A text encoder whose weights are cut off: found when a worker loads it."""
    broken = tmp_path / "encoder"
    shutil.copytree(tiny_config.encoder.name, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    options = ["--data", tiny_data, "--out", str(tmp_path / "run"), "--set", f"encoder.name={broken}"]
    done = subprocess.run(
        [sys.executable, "-m", "ctxrec.train", *options], env=command_env(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(broken) in last and "UserError" not in done.stderr


@pytest.fixture(scope="module")
def long_config(tiny_config):
    return with_train(tiny_config, tower_epochs=8, patience=100, workers=1, max_failures=1)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, tiny_data, long_config, tmp_path_factory) -> str:
    return train(tiny_data, str(tmp_path_factory.mktemp("undisturbed") / "run"), long_config)


def start(config, data: str, run: Path, log: Path, *, workers: int | None = None) -> subprocess.Popen:
    config = config if workers is None else with_train(config, workers=workers)
    (run.parent / "config.toml").write_text(to_toml(config))
    command = [sys.executable, "-m", "ctxrec.train", "--data", data, "--out", str(run)]
    command += ["--config", str(run.parent / "config.toml")]
    with open(log, "ab") as stream:
        return subprocess.Popen(command, env=command_env(), stdout=stream, stderr=stream, start_new_session=True)


def wait_for_checkpoints(process: subprocess.Popen, run: Path, log: Path) -> None:
    record = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 180
    while not (record.exists() and len(list(record.parent.glob("checkpoint_2*"))) == 2):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def same_result(run: Path, expected: str) -> None:
    assert_same_training(str(run), expected)
    ours, theirs = (load_file(Path(r) / "bundle" / "towers.safetensors") for r in (run, expected))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_ends_where_an_undisturbed_one_ends(
    tiny_data, long_config, undisturbed, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(long_config, tiny_data, run, log)
    wait_for_checkpoints(first, run, log)
    asked = time.monotonic()
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(60) == 1, log.read_text()[-3000:]
    assert time.monotonic() - asked < 30, "Kubernetes kills after 30 s"
    text = log.read_text()
    assert "stopped as asked, and saved" in text and "ERROR ctxrec" not in text  # Ray's own cleaner may print
    assert not (run / "manifest.json").exists()
    steps_before = read_log(str(run))[-1]["step"]
    assert start(long_config, tiny_data, run, log).wait(300) == 0, log.read_text()[-3000:]
    assert "going on from phase towers, step" in log.read_text() and steps_before > 0
    same_result(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(tiny_data, long_config, undisturbed, tmp_path, damaged):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(long_config, tiny_data, run, log)
    wait_for_checkpoints(first, run, log)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    latest = max((run / "checkpoints").glob("checkpoint_2*"))
    content = (latest / damaged).read_bytes()
    (latest / damaged).write_bytes(content[: len(content) // 2])
    assert start(long_config, tiny_data, run, log).wait(300) == 0, log.read_text()[-3000:]
    assert f"{latest.name} is damaged ({damaged}" in log.read_text()
    same_result(run, undisturbed)


@pytest.fixture
def poisoned_data(tiny_data, tmp_path) -> tuple[str, str]:
    """Prepared data in which one user's age is not a number that any model could take; and that user."""
    folder = tmp_path / "poisoned"
    shutil.copytree(tiny_data, folder)
    path = sorted((folder / "histories").glob("**/*.parquet"))[0]
    table = pq.read_table(path)
    name = next(n for n in table.column_names if n.endswith("age"))
    ages = table.column(name).to_pylist()
    ages[0] = float("inf")
    column = pa.array(ages, table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), table.schema.field(name), column), path)
    return str(folder), str(table.column("user_id")[0].as_py())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_names_the_users_or_is_left_out(
    ray_cluster, poisoned_data, long_config, tmp_path
):
    data, user = poisoned_data
    with pytest.raises(
        UserError, match=rf"loss is (nan|inf) at step \d+ of phase towers.*users .*\b{user}\b.*not_finite"
    ):
        train(data, str(tmp_path / "stops"), with_train(long_config, global_batch_size=4, tower_epochs=1))
    run = str(tmp_path / "skips")
    skipping = with_train(
        long_config,
        global_batch_size=4,
        tower_epochs=1,
        encoder_epochs=0,
        refit=False,
        max_failures=3,
        not_finite="skip",
    )
    train(data, run, skipping)
    assert len(faults.skipped(os.path.join(run, "checkpoints"))) == 1
    assert all(np.isfinite(line["loss"]) for line in read_log(run) if "loss" in line)
