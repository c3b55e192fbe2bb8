"""Trainings that go wrong: what is said, what is kept, and where the same command goes on."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainings import (
    Nodes,
    done_so_far,
    end_all,
    finish,
    kill_command,
    lose_power,
    read_log,
    same_result,
    same_to_the_digit,
    start,
    training_workers,
    wait_for_silence,
    wait_until,
    with_train,
)

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.training import checkpoint, faults
from ctxrec.training.driver import train

SEED = int(os.environ.get("CTXREC_CHAOS_SEED", random.SystemRandom().randrange(1000)))  # printed where a test fails


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


def test_before_an_attempt_the_newest_checkpoints_are_kept_and_rays_record_of_them_is_forgotten(tmp_path):
    checkpoints = str(tmp_path / "checkpoints")
    assert checkpoint.folders(checkpoints) == []
    checkpoint.tidy(checkpoints, 2)
    names = [f"checkpoint_2026-11-24_20-13-{second}.371825" for second in (54, 55, 53)]
    for name in names:
        storage.write_text(f"{checkpoints}/{name}/state.json", "{}")
    for name in ("checkpoint_manager_snapshot.json", "best-towers.safetensors", "before/manifest.json"):
        storage.write_text(f"{checkpoints}/{name}", "{")
    checkpoint.tidy(checkpoints, 2)
    assert [os.path.basename(path) for path in checkpoint.folders(checkpoints)] == [names[1], names[0]]
    assert sorted(os.listdir(checkpoints)) == ["before", "best-towers.safetensors", names[0], names[1]]
    checkpoint.tidy(checkpoints, 1)
    assert checkpoint.folders(checkpoints) == [f"{checkpoints}/{names[1]}"], "the newest stays"


def test_a_weight_that_is_not_whole_is_never_saved():
    """What a ZeRO-3 shard that nobody gathered looks like: a parameter without numbers."""
    import torch

    engine = torch.nn.Module()
    engine.module = torch.nn.ParameterDict({"lora_A": torch.nn.Parameter(torch.empty(0))})
    with pytest.raises(RuntimeError, match=r"lora_A came out empty"):
        checkpoint.full_weights(engine)


def test_failures_that_a_user_can_do_something_about_are_told():
    full = "OSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"
    stuck = "RuntimeError: [../gloo/unbound_buffer.cc:78] Timed out waiting 40000ms for recv operation to complete"
    assert "no space is left for /run" in faults.explain(full, "/run", 40)
    assert "train.timeout_s = 40 s" in faults.explain(stuck, "/run", 40)
    assert faults.explain("ValueError: else", "/run", 40) is None


@pytest.mark.slow  # above, what is recorded is told; test_text_encoder.py has encoders whose weights are cut off
def test_a_mistake_that_a_worker_finds_is_told_and_is_not_tried_again(ray_cluster, tiny_data, tiny_config, tmp_path):
    """A text encoder whose weights are cut off: found when a worker loads it."""
    broken = tmp_path / "encoder"
    shutil.copytree(tiny_config.encoder.name, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = dataclasses.replace(tiny_config, encoder=dataclasses.replace(tiny_config.encoder, name=str(broken)))
    with pytest.raises(UserError, match=str(broken)) as told:
        train(tiny_data, str(tmp_path / "run"), with_train(config, workers=1, max_failures=3))
    assert told.value.__context__ is None, "no attempt failed, so none was made again"


@pytest.fixture(autouse=True)
def no_command_outlives_its_test():
    yield
    end_all()


@pytest.fixture(scope="module")
def long_config(tiny_config):
    """A training with a checkpoint after every step, and without dropout, so that any number of workers may go on."""
    model = dataclasses.replace(tiny_config.model, dropout=0.0, id_dropout=0.0, text_dropout=0.0)
    config = dataclasses.replace(tiny_config, model=model)
    options = {"tower_epochs": 8, "patience": 100, "workers": 1, "cpus_per_worker": 1.0}
    return with_train(config, max_failures=1, checkpoint_every=1, **options)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, tiny_data, long_config, tmp_path_factory) -> str:
    return train(tiny_data, str(tmp_path_factory.mktemp("undisturbed") / "run"), long_config)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_ends_where_an_undisturbed_one_ends(
    tiny_data, long_config, undisturbed, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(long_config, tiny_data, run, log)
    wait_until(first, run, log, beyond=(0, 3))
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(300) == 1, log.read_text()[-3000:]
    text = log.read_text()
    assert "stopped as asked, and saved" in text and "ERROR ctxrec" not in text  # Ray's own cleaner may print
    assert not (run / "manifest.json").exists()
    finish(long_config, tiny_data, run, log)
    assert "going on from phase" in log.read_text()
    same_to_the_digit(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(tiny_data, long_config, undisturbed, tmp_path, damaged):
    """The newest one is cut off, as is Ray Train's own record of them."""
    run, log = tmp_path / "run", tmp_path / "log"
    first = start(long_config, tiny_data, run, log)
    wait_until(first, run, log, beyond=(0, 3))
    kill_command(first)
    wait_for_silence(run)
    newest = max((run / "checkpoints").glob("checkpoint_2*"))
    for path in (newest / damaged, run / "checkpoints" / "checkpoint_manager_snapshot.json"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    finish(long_config, tiny_data, run, log)
    text = log.read_text()
    assert f"{newest.name} is damaged ({damaged}" in text and "going on from phase" in text
    same_to_the_digit(run, undisturbed)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tiny_data, long_config, undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    command = start(long_config, tiny_data, run, log)
    wait_until(command, run, log, beyond=(0, random.Random(SEED).randint(0, 20)))
    (worker,) = training_workers(command)
    worker.kill()
    assert command.wait(300) == 0, log.read_text()[-3000:]
    assert "going on from phase" in log.read_text()
    same_to_the_digit(run, undisturbed)


@pytest.mark.slow
def test_a_worker_that_does_not_answer_ends_the_training_with_one_line(tiny_data, long_config, undisturbed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    config = with_train(long_config, workers=2, timeout_s=40, max_failures=0)
    command = start(config, tiny_data, run, log)
    wait_until(command, run, log, beyond=(0, 3))
    stopped = training_workers(command)[-1]
    stopped.suspend()
    assert command.wait(600) == 1, log.read_text()[-3000:]
    assert told_in_one_line(log, "train.timeout_s = 40"), log.read_text()[-3000:]
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    finish(with_train(config, timeout_s=600), tiny_data, run, log)
    same_result(run, undisturbed)


def told_in_one_line(log: Path, text: str) -> bool:
    """Whether a command said it, without a traceback of its own; what workers printed before may come behind it."""
    lines = log.read_text().splitlines()
    return sum(text in line for line in lines) == 1 and not any("ERROR ctxrec" in line for line in lines)


@pytest.mark.slow
def test_a_full_disk_ends_the_training_with_one_line(tiny_data, long_config, undisturbed, tmp_path, small_disk):
    run, log = small_disk / "run", tmp_path / "log"
    command = start(long_config, tiny_data, run, log)
    wait_until(command, run, log, beyond=(0, 3))
    filler, deadline = small_disk / "filler", time.monotonic() + 300
    with open(filler, "wb", buffering=0) as stream:
        while command.poll() is None and time.monotonic() < deadline:
            try:
                stream.write(bytes(65536))
            except OSError:  # full, until an old checkpoint is deleted
                time.sleep(0.01)
    assert command.wait(5) == 1, log.read_text()[-3000:]
    assert told_in_one_line(log, "no space is left"), log.read_text()[-3000:]
    filler.unlink()
    finish(long_config, tiny_data, run, log)
    same_to_the_digit(run, undisturbed)


@pytest.mark.slow
def test_two_workers_then_one_then_two_follow_one_curve(tiny_data, long_config, undisturbed, tmp_path):
    run, log, reached = tmp_path / "run", tmp_path / "log", (0, 3)
    for workers in (2, 1):
        command = start(with_train(long_config, workers=workers), tiny_data, run, log)
        wait_until(command, run, log, beyond=reached)
        kill_command(command)
        wait_for_silence(run)
        reached = done_so_far(run)
    finish(with_train(long_config, workers=2), tiny_data, run, log)
    assert log.read_text().count("going on from phase") == 2
    same_result(run, undisturbed)


def wait_for_line(command: subprocess.Popen, log: Path, line: str, *, workers: int = 1) -> None:
    """Wait until so many workers said it; the monitors of nodes on one machine each repeat what all workers say."""
    deadline = time.monotonic() + 300
    while len(set(re.findall(rf"pid=(\d+)[^)]*\)\S* {line}", log.read_text()))) < workers:
        assert command.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_machine_leaves_fewer_workers_and_a_new_one_joins(tiny_data, long_config, undisturbed, tmp_path):
    """`train.workers = [1, 2]` on two raylets, of which one is killed; then another one comes."""
    run, log = tmp_path / "run", tmp_path / "log"
    config = with_train(long_config, workers=(1, 2), max_failures=5)
    with Nodes(tmp_path) as nodes:
        second = nodes.add()
        command = start(config, tiny_data, run, log, env=nodes.env)
        wait_until(command, run, log, beyond=(0, 3))
        wait_for_line(command, log, "training on 2 workers")
        lose_power(second)
        wait_for_line(command, log, "training on 1 worker\n")
        wait_until(command, run, log, beyond=done_so_far(run))
        (worker,) = training_workers(nodes.head)
        worker.suspend()  # or it is done before Ray Train looks for more room, once a minute
        nodes.add()
        wait_for_line(command, log, "training on 2 workers", workers=2)
        assert command.wait(300) == 0, log.read_text()[-3000:]
    same_result(run, undisturbed)


@pytest.fixture
def poisoned_data(tiny_data, tmp_path) -> tuple[str, str]:
    """Prepared data with one event whose action weighs more than float32 can add up; and its user."""
    folder = tmp_path / "poisoned"
    shutil.copytree(tiny_data, folder)
    meta = storage.read_json(str(folder / schema.META))
    meta["features"]["actions"].append("gift")
    meta["spec"]["events"]["actions"]["gift"] = 1e38
    storage.write_json(str(folder / schema.META), meta)
    path = min((folder / schema.HISTORIES).glob("**/*.parquet"))
    table = pq.read_table(path)
    actions = table.column(schema.EVENT_ACTIONS).to_pylist()
    actions[0][0] = len(meta["features"]["actions"])  # code 0 is for none
    place = table.column_names.index(schema.EVENT_ACTIONS)
    table = table.set_column(place, table.schema.field(place), pa.array(actions, table.schema.field(place).type))
    pq.write_table(table, path)
    return str(folder), str(table.column(schema.USER_ID)[0].as_py())


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


@pytest.mark.slow
def test_chaos_ten_killed_workers_and_commands(tiny_data, long_config, undisturbed, tmp_path):
    """Workers and commands with all they have started are killed, each time after at least one step more, at a random moment."""
    run, log, rng = tmp_path / "run", tmp_path / "log", random.Random(SEED)
    config = with_train(long_config, max_failures=10)
    print("seed", SEED)
    command, reached = start(config, tiny_data, run, log), (-1, 0)
    for kill in range(10):
        wait_until(command, run, log, beyond=reached)
        time.sleep(rng.uniform(0, 0.3))
        workers = training_workers(command)
        if kill % 2:
            workers[0].kill()
            gone = time.monotonic() + 60
            while training_workers(command) == workers:  # it is the next one's checkpoint that is waited for
                assert time.monotonic() < gone
                time.sleep(0.05)
        else:
            lose_power(command)
            command = start(config, tiny_data, run, log)
        reached = done_so_far(run)
    assert command.wait(600) == 0, log.read_text()[-3000:]
    assert log.read_text().count("going on from phase") >= 6, "four commands may be killed before they print the line"
    same_to_the_digit(run, undisturbed)
