"""A training's figures as TensorBoard, W&B and MLflow have them; each read back by its own tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.training.trackers import Tracker, check_trackers

FIGURES = {
    "loss": 3.5, "lr": 1e-3, "events_per_s": 900.0, "tokens_per_s": 4000.0, "padding": 0.02, "distinct_items": 0.4,
    "utilisation": 0.3, "eta_s": 12.0, "valid_ndcg@10": 0.1,
}  # fmt: skip


def log_two_attempts(run: str, tracker: str) -> None:
    """Three evaluations, of which the last is lost with its attempt and made again by the next one."""
    config = load_config().to_dict()
    first = Tracker(run, config, (tracker,))
    for step in (10, 20, 30):
        first.log({"phase": "towers", "step": step} | FIGURES)
    first.close()
    again = Tracker(run, config, (tracker,))
    again.forget_after("towers", 20)
    again.log({"phase": "towers", "step": 30} | FIGURES | {"loss": 3.0})
    again.close()
    lines = [json.loads(line) for line in Path(RunPaths(run).train_log).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 3.5), (20, 3.5), (30, 3.0)]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_two_attempts(str(tmp_path), "tensorboard")
    board = EventAccumulator(str(tmp_path)).Reload()
    assert {f"towers/{name}" for name in FIGURES} <= set(board.Tags()["scalars"])
    for name, value in FIGURES.items():
        found = {scalar.step: scalar.value for scalar in board.Scalars(f"towers/{name}")}
        assert found[10] == pytest.approx(value) and set(found) == {10, 20, 30}
    assert board.Scalars("towers/loss")[-1].value == pytest.approx(3.0)


def test_mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    log_two_attempts(str(tmp_path / "run"), "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ctxrec")
    (run,) = client.search_runs([experiment.experiment_id])  # the second attempt goes on with the first one's
    assert run.info.run_name == "run" and run.data.params["train.zero_stage"] == "2"
    for name, value in FIGURES.items():
        history = client.get_metric_history(run.info.run_id, f"towers/{name.replace('@', '_at_')}")
        assert history[0].step == 10 and history[0].value == pytest.approx(value)


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    log_two_attempts(str(tmp_path / "run"), "wandb")
    kept = json.loads((tmp_path / "run" / "checkpoints" / "trackers.json").read_text())["wandb"]
    attempts = list((tmp_path / "wandb").glob("offline-run-*"))
    assert attempts and all(folder.name.endswith(f"-{kept}") for folder in attempts), "both are one run"


def test_a_tracker_that_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_trackers(load_config(None, ['train.trackers=["wandb"]']).train)
