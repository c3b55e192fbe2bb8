"""Whole sweeps on a real cluster: best.toml, early stopping, going on after a kill, failed trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import call
from trainings import command_env, read_log

from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.retrieval.load import load_recommender
from ctxrec.training import deepspeed_engine
from tune.board import reason, table
from tune.fidelity import share_of_users
from tune.sweep_options import METRIC, load_sweep
from tune.sweeping import sweep

deepspeed_engine.use_cpu_accelerator()
EXTENSIONS = {"TORCH_EXTENSIONS_DIR": os.environ["TORCH_EXTENSIONS_DIR"]}  # DeepSpeed's, compiled once for all caches
SPACE = """
[space]
"train.tower_lr" = { low = 1e-4, high = 1e-2, log = true }
"model.dropout" = { low = 0.0, high = 0.5 }
"""


def options(
    tmp_path: Path,
    encoder: str,
    *,
    trials: int,
    epochs: int,
    sweep_lines: str = "",
    space: str = SPACE,
    search="random",
) -> str:
    path = tmp_path / "sweep.toml"
    path.write_text(
        f"""[sweep]
trials = {trials}
search = "{search}"
{sweep_lines}
{space}
[encoder]
name = "{encoder}"
[model]
dim = 16
history = 10
[train]
global_batch_size = 16
tower_epochs = {epochs}
patience = {epochs}
encoder_epochs = 0
"""
    )
    return str(path)


def test_two_trials_report_to_ray_tune_and_the_better_one_is_written(tiny_data, tmp_path):
    """The smallest whole sweep, whose trials train in their own processes; the slow ones below have Ray Train workers."""
    plan = load_sweep(
        options(tmp_path, "", trials=2, epochs=1, sweep_lines="seed = 0\nretries = 0\nfinal = false\nworkers = 0")
    )
    out = tmp_path / "sweep"
    made = sweep(tiny_data, str(out), plan)
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == 2 and all(r["status"] in ("finished", "stopped") and r["valid_ndcg@10"] > 0 for r in rows)
    assert made["best"]["value"] == max(r["valid_ndcg@10"] for r in rows)
    assert load_config(str(out / "best.toml")).train.tower_lr == made["best"]["values"]["train.tower_lr"]


def test_an_error_while_reporting_ends_the_trial_and_does_not_hang_it(monkeypatch):
    """The training goes on to its end, as nobody waits for an answer, and then the trial raises the error."""
    import queue

    from tune import trial

    def fail(*_: object) -> None:
        raise RuntimeError("the report failed")

    monkeypatch.setattr(trial, "_forward", fail)
    waiting: queue.Queue = queue.Queue()
    for message in ({"valid": 0.1}, {"valid": 0.2}, None):
        waiting.put(message)
    errors: list[Exception] = []
    trial._forward_or_drain(waiting, None, None, errors)
    assert [str(error) for error in errors] == ["the report failed"] and waiting.empty()


@pytest.mark.slow
def test_a_sweep_ends_with_the_best_options_and_their_bundle(tiny_data, tiny_encoder, tmp_path):
    """Trials whose encoder is nowhere fail and are reported; the others go on."""
    space = SPACE + f'"encoder.name" = {{ choice = ["{tiny_encoder}", "/no/such/encoder"] }}\n'
    plan = load_sweep(
        options(tmp_path, tiny_encoder, trials=4, epochs=6, sweep_lines="seed = 0\nretries = 0", space=space)
    )
    out = tmp_path / "sweep"
    made = sweep(tiny_data, str(out), plan)
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    bad = [r for r in rows if r["encoder.name"] == "/no/such/encoder"]
    assert bad and all(r["status"] == "failed" and "there is no such folder" in r["error"] for r in bad)
    good = [r for r in rows if r["encoder.name"] == tiny_encoder]
    assert len(good) >= 2
    assert all(r["status"] in ("finished", "stopped") and r["valid_ndcg@10"] > 0 for r in good)
    assert made["best"]["value"] == max(r["valid_ndcg@10"] for r in good) >= made["default"]
    best = load_config(str(out / "best.toml"))
    assert best.train.tower_lr == made["best"]["values"]["train.tower_lr"] and best.train.refit
    load_recommender(str(out / "best" / "bundle"))
    assert load_config(str(out / "best" / "config.toml")) == best
    assert "Learning curves" in (out / "report.html").read_text()
    assert sweep(tiny_data, str(out), plan)["best"] == made["best"], "a finished sweep is reused"
    with pytest.raises(UserError, match="a sweep of other options"):
        sweep(tiny_data, str(out), load_sweep(None, ["sweep.trials=3"]))


@pytest.mark.slow
def test_a_population_goes_on_from_the_weights_of_its_best(tiny_data, tiny_encoder, tmp_path):
    """The worse of two trials takes over weights, epochs and log of the better one, with changed options.

    The cluster of this process runs beside that of the sweep, and CPUs of a trial that is stopped are given back.
    """
    # Epochs enough that both trials are at work at a time: the second begins seconds after the first.
    given = options(tmp_path, tiny_encoder, trials=2, epochs=60, search="pbt", sweep_lines="final = false\ngrace = 15")
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "tune.sweep", "--data", tiny_data, "--out", str(out), "--config", given]
    done = subprocess.run(command, env=command_env(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = json.loads((out / "summary.json").read_text())
    assert made["trials"] == 2 and made["failed"] == 0
    trials = out / "trials" / "full"
    taken = [path for path in trials.iterdir() if "." in path.name]
    assert taken, "no trial took over another's weights"
    first = min(taken, key=lambda path: (path / "config.toml").stat().st_mtime).name
    heir = first.split(".")[0]
    donor = next(path.name for path in trials.iterdir() if "." not in path.name and path.name != heir)
    logs = [read_log(str(trials / name)) for name in (first, donor, heir)]
    assert [line["epoch"] for line in logs[0]] == [float(n + 1) for n in range(len(logs[0]))]
    assert logs[0][0]["loss"] == logs[1][0]["loss"] != logs[2][0]["loss"], "the donor's beginning"
    assert load_config(str(trials / first / "config.toml")) != load_config(str(trials / heir / "config.toml"))


@pytest.mark.slow
def test_cheap_trials_first_and_the_best_of_them_in_full(tiny_data, tiny_encoder, tmp_path):
    lines = "final = false\n[sweep.fidelity]\nusers = 0.5\nhistory = 4\npromote = 0.3"
    out = tmp_path / "sweep"
    plan = load_sweep(options(tmp_path, tiny_encoder, trials=3, epochs=2, sweep_lines=lines))
    made = sweep(tiny_data, str(out), plan)
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    cheap, full = ([r for r in rows if r["stage"] == stage] for stage in ("cheap", "full"))
    assert (len(cheap), len(full)) == (3, 1) and made["failed"] == 0
    keys = [p.key for p in plan.space]
    best = max(cheap, key=lambda row: row["valid_ndcg@10"])
    assert {key: full[0][key] for key in keys} == {key: best[key] for key in keys} == made["best"]["values"]
    whole, part = (PreparedData.open(path).meta["counts"]["users"] for path in (tiny_data, str(out / "data")))
    assert part < 0.8 * whole
    histories = [load_config(f"{rows[0]['run']}/config.toml"), load_config(f"{full[0]['run']}/config.toml")]
    assert [config.model.history for config in histories] == [4, 10]


@pytest.mark.slow
def test_several_metrics_have_a_front_and_a_failed_trial_is_tried_again(tiny_data, tiny_encoder, tmp_path):
    lines = f'final = false\nretries = 1\nmetric = ["{METRIC}", "model.dim"]\nmode = ["max", "min"]'
    space = f'''[space]
"model.dim" = {{ choice = [8, 16] }}
"encoder.name" = {{ choice = ["{tiny_encoder}", "/no/such/encoder"] }}
'''
    out = tmp_path / "sweep"
    given = options(tmp_path, tiny_encoder, trials=4, epochs=1, sweep_lines=lines, space=space)
    made = sweep(tiny_data, str(out), load_sweep(given))
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed and all(row["failures"] == 2 and "there is no such folder" in row["error"] for row in failed)
    good = [row for row in rows if row["status"] == "finished"]
    assert len(good) >= 2 and len(good) + len(failed) == 4
    expected = [r["number"] for r in good if not any(_beats(other, r) for other in good)]
    assert made["front"] == expected


def _beats(one: dict, other: dict) -> bool:
    a, b = ((row[METRIC], -row["model.dim"]) for row in (one, other))
    return a != b and a[0] >= b[0] and a[1] >= b[1]


@pytest.mark.slow
@pytest.mark.parametrize(("search", "scheduler"), [("tpe", "median"), ("bohb", "auto")])
def test_more_trials_than_cpus_wait_for_each_other_and_all_end(search, scheduler, tiny_data, tiny_encoder, tmp_path):
    """Twice as many at a time as the cluster has CPUs: none holds one that another waits for. All share one cache."""
    lines = f'final = false\nconcurrent = 4\nscheduler = "{scheduler}"'
    given = options(tmp_path, tiny_encoder, trials=6, epochs=3, search=search, sweep_lines=lines)
    out, cache = tmp_path / "sweep", tmp_path / "cache"
    command = [sys.executable, "-m", "tune.sweep", "--data", tiny_data, "--out", str(out), "--config", given]
    done = subprocess.run(
        command,
        env=command_env() | {"CTXREC_CACHE": str(cache), **EXTENSIONS},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = json.loads((out / "summary.json").read_text())
    assert made["trials"] == 6 and made["failed"] == 0 and made["finished"] + made["stopped"] == 6
    assert "sweep: 6 of 6 trials" in done.stdout, "the live table"
    assert len(list((out / "trials" / "full").glob("*/config.toml"))) == 6
    assert 1 <= len(list((cache / "encoder-cache").rglob("*.rows.npy"))) <= 2, (
        "texts are read by those that began first"
    )


@pytest.mark.slow
def test_a_budget_ends_a_sweep_and_a_larger_one_goes_on(tiny_data, tiny_encoder, tmp_path):
    lines = 'final = false\nconcurrent = 1\nscheduler = "none"'
    given = options(tmp_path, tiny_encoder, trials=200, epochs=2, sweep_lines=lines)
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "tune.sweep", "--data", tiny_data, "--out", str(out), "--config", given]
    states = []
    for hours in (1e-4, 0.03):
        whole = [*command, "--set", f"sweep.max_hours={hours}"]
        done = subprocess.run(whole, env=command_env(), capture_output=True, text=True, timeout=900)
        states.append((done.returncode, done.stdout[-3000:] + done.stderr[-3000:]))
    assert states[0][0] == 2 and "the budget was used up before the first evaluation of a trial" in states[0][1], (
        states[0][1]
    )
    assert states[1][0] == 0, states[1][1]
    made = json.loads((out / "summary.json").read_text())
    assert 2 <= made["trials"] < 200 and made["finished"] >= 1 and (out / "best.toml").exists()
    assert made["hours"] >= 0.03 and made["trials"] < 200, "it ends by its budget"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_by_the_same_command(tiny_data, tiny_encoder, tmp_path):
    path = options(
        tmp_path, tiny_encoder, trials=3, epochs=4, sweep_lines='concurrent = 1\nscheduler = "none"\nfinal = false'
    )
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "tune.sweep", "--data", tiny_data, "--out", str(out), "--config", path]
    with open(tmp_path / "first.log", "wb") as log:
        first = subprocess.Popen(command, env=command_env(), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 600
        while not list((out / "trials" / "full").glob("*/manifest.json")):  # the first trial has ended
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()[-3000:]
            time.sleep(0.2)
        ended = max(p.stat().st_mtime for p in (out / "trials" / "full").glob("*/manifest.json"))
        while not [p for p in out.rglob("experiment_state-*.json") if p.stat().st_mtime > ended]:
            assert first.poll() is None and time.monotonic() < deadline, "Ray Tune writes its state from time to time"
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = {p.parent.name: p.stat().st_mtime for p in (out / "trials" / "full").glob("*/manifest.json")}
    again = subprocess.run(command, env=command_env(), capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == 3 and all(r["status"] == "finished" for r in rows)
    for name, written in done.items():
        assert (out / "trials" / "full" / name / "manifest.json").stat().st_mtime == written, "not trained again"


def test_a_share_of_users_keeps_the_catalogue(tiny_data, tmp_path):
    whole, part = (
        PreparedData.open(tiny_data),
        PreparedData.open(share_of_users(tiny_data, str(tmp_path / "part"), 0.5)),
    )
    ids = [
        {
            user
            for bucket in range(len(d.bucket_paths))
            for user in d.read_bucket(bucket, ["user_id"])["user_id"].to_pylist()
        }
        for d in (whole, part)
    ]
    assert ids[1] < ids[0] and 0.3 < len(ids[1]) / len(ids[0]) < 0.7
    assert part.items["item_id"] == whole.items["item_id"] and part.fingerprint != whole.fingerprint
    assert part.meta["counts"]["users"] == len(ids[1])
    assert part.meta["counts"]["train"] == sum(part.items["train_events"].to_pylist())


def test_the_live_table_says_what_failed():
    facts = [
        {
            "status": "RUNNING",
            "values": {"train.tower_lr": 0.004},
            "result": {"valid_ndcg@10": 0.12, "epoch": 2.0},
            "error": "",
        },
        {"status": "ERROR", "values": {"train.tower_lr": 9.0}, "result": {}, "error": "UserError: too high"},
    ]
    lines = table(facts, title="sweep", planned=4, metric="valid_ndcg@10", best=max)
    assert lines[0] == "sweep: 2 of 4 trials: 1 runs, 1 failed; best valid_ndcg@10 0.1200 (trial 0)"
    assert "tower_lr=0.004" in lines[2] and "UserError: too high" in lines[3]
    assert (
        reason("Traceback\n  File\nctxrec.core.errors.UserError: no such option\n")
        == "ctxrec.core.errors.UserError: no such option"
    )


@pytest.mark.parametrize(("flags", "code"), [(["--help"], 0), (["--set", "sweep.trials=0"], 2)])
def test_exit_codes(flags, code):
    done = call("tune.sweep", *flags, "--data", "d", "--out", "o")
    assert done.returncode == code and "Traceback" not in done.stderr
    assert code == 0 or done.stderr.startswith("error: sweep.trials is 0; expected at least 1")
