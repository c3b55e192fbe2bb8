"""What a sweep leaves, from the record and the logs of trials written here by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tune import sweep_results
from tune.sweep_options import METRIC, Sweep, load_sweep

EPOCHS = 6
# trial: learning rate, width, validation NDCG@10 by epoch. Trials 1, 3 and 4 were stopped, trial 5 failed at once.
TRIALS = [
    (0.004, 64, [0.05, 0.06, 0.08, 0.08, 0.09, 0.10]),
    (0.001, 32, [0.01]),
    (0.008, 64, [0.06, 0.09, 0.07, 0.11, 0.12, 0.12]),
    (0.002, 32, [0.03, 0.04]),
    (0.003, 128, [0.02, 0.05]),
    (0.009, 128, []),
    (0.006, 32, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07]),
]
DONE = sum(len(curve) for _, _, curve in TRIALS)


def write_sweep(folder: Path, *overrides: str) -> tuple[Sweep, list[dict]]:
    """A folder as the board and the trials leave it; the plan, and the rows."""
    (folder / "sweep.toml").write_text(
        f'[space]\n"train.tower_lr" = {{ low = 1e-3, high = 1e-2, log = true }}\n"model.dim" = {{ choice = [32, 64, 128] }}\n'
        f"[train]\ntower_epochs = {EPOCHS}\n"
    )
    plan = load_sweep(str(folder / "sweep.toml"), overrides)
    record = []
    for number, (rate, dim, curve) in enumerate(TRIALS):
        result = (
            {METRIC: max(curve), "epoch": float(len(curve)), "seconds": 2.0 * len(curve), "model.dim": dim}
            if curve
            else {}
        )
        record.append(
            {
                "trial_id": f"t{number}",
                "status": "TERMINATED" if curve else "ERROR",
                "values": {"train.tower_lr": rate, "model.dim": dim},
                "result": result,
                "failures": 0 if curve else 2,
                "error": "" if curve else "UserError: no room <here>",
            }
        )
        run = folder / "trials" / "full" / f"t{number}"
        run.mkdir(parents=True)
        lines = [{"phase": "towers", "step": n, "epoch": n + 1.0, METRIC: v} for n, v in enumerate(curve)]
        (run / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if len(curve) == EPOCHS:
            (run / "manifest.json").write_text("{}")
    (folder / "tune").mkdir()
    (folder / "tune" / "full.json").write_text(json.dumps(record))
    return plan, sweep_results.collect(str(folder), ["full"], plan)


def write_results(folder: Path, *overrides: str) -> dict:
    plan, rows = write_sweep(folder, *overrides)
    account = {"hours": 0.5, "gpu_hours": 0.0}
    return sweep_results.write(str(folder), rows, sweep_results.best_of(rows, plan.options), plan, account=account)


def test_the_summary_counts_what_was_run_and_what_was_not(tmp_path):
    made = write_results(tmp_path)
    assert (made["trials"], made["finished"], made["stopped"], made["failed"]) == (7, 3, 3, 1)
    assert made["best"] == {"number": 2, "value": 0.12, "values": {"train.tower_lr": 0.008, "model.dim": 64}}
    assert made["default"] == 0.10, "the first trial has the options as they are"
    assert (made["epochs"], made["epochs_to_the_end"]) == (DONE, 7 * EPOCHS)
    assert made["share_of_epochs"] == pytest.approx(DONE / (7 * EPOCHS))
    assert made["errors"] == [{"number": 5, "error": "UserError: no room <here>"}]
    said = sweep_results.say(made)
    assert "trial 5 failed: UserError: no room <here>" in said and "best valid_ndcg@10 0.1200, trial 2" in said


def test_the_table_has_a_row_a_trial_with_its_options_and_curve(tmp_path):
    write_results(tmp_path)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(row["train.tower_lr"], row["model.dim"]) for row in rows] == [trial[:2] for trial in TRIALS]
    assert [row["status"] for row in rows] == [
        "finished",
        "stopped",
        "finished",
        "stopped",
        "stopped",
        "failed",
        "finished",
    ]
    assert rows[2]["curve_epochs"] == [1, 2, 3, 4, 5, 6] and rows[2]["curve_values"] == [
        0.06,
        0.09,
        0.09,
        0.11,
        0.12,
        0.12,
    ]
    assert rows[5][METRIC] is None and rows[5]["failures"] == 2 and rows[5]["error"] == "UserError: no room <here>"


def test_the_report_has_every_picture(tmp_path):
    write_results(tmp_path)
    page = (tmp_path / "report.html").read_text()
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == [
        "The best options",
        "Learning curves",
        "Parallel coordinates",
        "What mattered",
        "Saved by early stopping",
        "Trials",
    ]
    parts = dict(zip(titles, re.split(r"<h2[^>]*>.*?</h2>", page)[1:], strict=True))
    with_curve = sum(bool(curve) for _, _, curve in TRIALS)
    assert len(re.findall(r'class="curve ', parts["Learning curves"])) == with_curve
    assert len(re.findall(r'class="thread', parts["Parallel coordinates"])) == with_curve
    assert parts["Parallel coordinates"].count('class="thread best"') == 1
    assert "tower_lr" in parts["What mattered"] and "dim" in parts["What mattered"] and "<svg" in parts["What mattered"]
    saved = 100 * (1 - DONE / (7 * EPOCHS))
    assert f"{saved:.1f} % of the epochs were not run" in parts["Saved by early stopping"]
    assert "no room &lt;here&gt;" in parts["Trials"] and "no room <here>" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page, "nothing is fetched"


def test_several_metrics_have_a_front_in_the_report(tmp_path):
    made = write_results(tmp_path, f'sweep.metric=["{METRIC}", "model.dim"]', 'sweep.mode=["max", "min"]')
    assert made["front"] == [2, 6], "of the width of 32 the best, and the best of all"
    assert "Pareto front" in (tmp_path / "report.html").read_text()


def test_tensorboard_has_each_trials_options_and_result(tmp_path):
    write_results(tmp_path)
    assert not list((tmp_path / "trials" / "full" / "t5").glob("events*")), (
        "nothing is known of a trial that failed at once"
    )
    folder = tmp_path / "trials" / "full" / "t2"
    board = EventAccumulator(str(folder))
    board.Reload()
    assert [event.value for event in board.Scalars(f"sweep/{METRIC}")] == [pytest.approx(0.12)]
    started = plugin_data_pb2.HParamsPluginData.FromString(
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert started["train.tower_lr"].number_value == 0.008 and started["model.dim"].number_value == 64
