"""Trackers, to which a training writes its figures: the run's own log, TensorBoard, W&B, MLflow."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import tempfile
from typing import Any

from ctxrec.core import storage
from ctxrec.core.config import TrainConfig
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths

_IDS = "checkpoints/trackers.json"  # ids in W&B and MLflow, under which a killed training continues
PHASES = ("towers", "encoder", "refit")  # in their order


def check_trackers(config: TrainConfig) -> None:
    """Check that the packages of the configured trackers are installed.

    Raises:
        UserError: one is not.
    """
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.trackers has {name!r}, but it is not installed; pip install {name}")


def read_train_log(run: str) -> list[dict[str, Any]]:
    """Records of the run's train_log.jsonl; an empty list without such a file."""
    path = RunPaths(run).train_log
    return parse_train_log(storage.read_text(path)) if storage.exists(path) else []


def parse_train_log(text: str) -> list[dict[str, Any]]:
    """Records of a train_log.jsonl. An unfinished last line, which a killed training can leave, is dropped.

    Raises:
        UserError: another line is not JSON.
    """
    lines = text.splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"it is {line[:40]!r}, and no object")
            records.append(record)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"train_log.jsonl line {number} is not valid JSON: {error}") from error
    return records


class Tracker:
    """Writes figures to the run's `train_log.jsonl` and to the configured trackers (rank 0 alone)."""

    def __init__(self, run: str, config: dict[str, Any], trackers: tuple[str, ...]) -> None:
        self.path = RunPaths(run).train_log
        self.lines = read_train_log(run)
        self._run = run
        self._board: Any = None
        self._board_dir = run if not storage.is_uri(run) else tempfile.mkdtemp(prefix="ctxrec-tensorboard-")
        name = os.path.basename(run.rstrip("/"))
        place = storage.join(run, _IDS)
        ids = storage.read_json(place) if storage.exists(place) else {}
        self._wandb: Any = None
        self._mlflow: Any = None
        if "tensorboard" in trackers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(self._board_dir)
        if "wandb" in trackers:
            import wandb

            ids.setdefault("wandb", secrets.token_hex(4))
            self._wandb = wandb.init(project="ctxrec", name=name, config=config, resume="allow", id=ids["wandb"])
        if "mlflow" in trackers:
            import mlflow

            self._mlflow = mlflow
            mlflow.set_experiment("ctxrec")
            if "mlflow" in ids:
                mlflow.start_run(run_id=ids["mlflow"])
            else:
                ids["mlflow"] = mlflow.start_run(run_name=name).info.run_id
                flat = {f"{s}.{k}": v for s, options in config.items() for k, v in options.items()}
                mlflow.log_params(flat)
        if ids:
            storage.write_json(place, ids)

    def forget_after(self, phase: str, step: int) -> None:
        """Drop the lines of steps that a resumed training repeats."""
        self.lines = [
            line
            for line in self.lines
            if (line["phase"] == phase and line["step"] <= step) or PHASES.index(line["phase"]) < PHASES.index(phase)
        ]

    def log(self, values: dict[str, Any]) -> None:
        """Add a record: phase, step, and figures by name."""
        self.lines.append(values)
        figures = {
            f"{values['phase']}/{k}": v for k, v in values.items() if isinstance(v, (int, float)) and k != "step"
        }
        if self._board is not None:
            for key, value in figures.items():
                self._board.add_scalar(key, value, values["step"])
        if self._wandb is not None:
            self._wandb.log({**figures, f"{values['phase']}/step": values["step"]})
        if self._mlflow is not None:
            self._mlflow.log_metrics({k.replace("@", "_at_"): v for k, v in figures.items()}, step=values["step"])

    def flush(self) -> None:
        """Write the records to the run."""
        storage.write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write the records and end all trackers."""
        self.flush()
        if self._board is not None:
            self._board.close()
            if self._board_dir != self._run:
                for name in storage.local_files(self._board_dir):
                    with open(os.path.join(self._board_dir, name), "rb") as stream:
                        storage.write_bytes(storage.join(self._run, name), stream.read())
        if self._wandb is not None:
            self._wandb.finish()
        if self._mlflow is not None:
            self._mlflow.end_run()
