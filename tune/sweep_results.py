"""The results of a sweep: rows of its trials, trials.parquet, the summary, TensorBoard's HParams."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.training.trackers import read_train_log
from tune import sweep_report
from tune.findings import importance, pareto_front
from tune.space import value_of
from tune.sweep_options import METRIC, Sweep, SweepConfig
from tune.trial import run_of

TABLE, REPORT, SUMMARY = "trials.parquet", "report.html", "summary.json"
_PHASES = ("towers", "encoder")


def record_path(out: str, stage: str) -> str:
    """The file that the board records the trials of a stage in."""
    return storage.join(out, "tune", f"{stage}.json")


def read_record(path: str) -> list[dict[str, Any]]:
    """The record of a stage's trials.

    Raises:
        UserError: the file is damaged.
    """
    try:
        rows = storage.read_json(path)
    except UserError:
        rows = None
    types = {"trial_id": str, "status": str, "values": dict, "result": dict}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in types.items()) for row in rows
    ):
        raise UserError(f"{path} is damaged; restore it, or begin another sweep with another --out")
    return rows


def collect(out: str, stages: Sequence[str], plan: Sweep) -> list[dict[str, Any]]:
    """One row a trial, in the order in which they began.

    A row has: number, stage, status (finished, stopped, failed), values by key, result (the last figures), error,
    failures, run, curve ([(epoch, best so far)]), epochs (those of the run, which may be more than Ray Tune knows of) and
    planned (epochs of the whole training).
    """
    rows: list[dict[str, Any]] = []
    for stage in stages:
        for record in read_record(record_path(out, stage)):
            run = _last_run(run_of(storage.join(out, "trials", stage), record["trial_id"]))
            curve = _curve(run, record["values"], plan)
            status = "failed" if record["status"] == "ERROR" else "stopped"
            if status == "stopped" and storage.exists(RunPaths(run).manifest):
                status = "finished"
            rows.append(
                {
                    "number": len(rows),
                    "stage": stage,
                    "status": status,
                    "values": record["values"],
                    "result": record["result"],
                    "error": record["error"],
                    "failures": record["failures"],
                    "run": run,
                    "curve": curve,
                    "epochs": curve[-1][0] if curve else 0.0,
                    "planned": float(plan.epochs_of(record["values"])),
                }
            )
    return rows


def _last_run(run: str) -> str:
    """The newest run of a trial. pbt starts a new run for each change of the options."""
    generation = 0
    while storage.exists(f"{run}.{generation + 1}"):
        generation += 1
    return f"{run}.{generation}" if generation else run


def _curve(run: str, values: dict[str, Any], plan: Sweep) -> list[tuple[float, float]]:
    """The best validation value so far after each epoch of both phases, from the log of the run."""
    towers = values.get("train.tower_epochs", plan.base.train.tower_epochs)
    curve: list[tuple[float, float]] = []
    for line in read_train_log(run):
        if line["phase"] in _PHASES and METRIC in line:
            epoch = line["epoch"] + (towers if line["phase"] == "encoder" else 0)
            epoch = max(epoch, curve[-1][0] if curve else 0.0)
            curve.append((epoch, max(line[METRIC], curve[-1][1] if curve else 0.0)))
    return curve


def in_order(rows: Sequence[dict[str, Any]], options: SweepConfig) -> list[dict[str, Any]]:
    """The rows that have the first metric, best first. Of equal rows, the earlier trial comes first."""
    metric, sign = options.metric[0], -1 if options.mode[0] == "max" else 1
    return sorted((r for r in rows if metric in r["result"]), key=lambda r: (sign * r["result"][metric], r["number"]))


def best_of(rows: Sequence[dict[str, Any]], options: SweepConfig) -> dict[str, Any]:
    """The best trial of the last stage that has a result."""
    last = max((r["stage"] for r in in_order(rows, options)), key=lambda stage: stage == "full")
    return in_order([r for r in rows if r["stage"] == last], options)[0]


def write(
    out: str, rows: list[dict[str, Any]], best: dict[str, Any], plan: Sweep, *, account: dict[str, Any]
) -> dict[str, Any]:
    """Write trials.parquet, summary.json, report.html and the HParams; returns the summary."""
    _write_table(storage.join(out, TABLE), rows, plan)
    made = summarise(out, rows, best, plan, account)
    storage.write_json(storage.join(out, SUMMARY), made)
    name = os.path.basename(out.rstrip("/"))
    page = sweep_report.render(name, rows, made, plan, importance(rows, plan))
    storage.write_text(storage.join(out, REPORT), page)
    if "tensorboard" in plan.base.train.trackers:
        for row in rows:
            if row["curve"]:
                write_hparams(row, plan)
    return made


def write_hparams(row: dict[str, Any], plan: Sweep) -> None:
    """Write the values and results of a trial for TensorBoard's HParams, beside the trial's own curves."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import
    from torch.utils.tensorboard.summary import hparams

    figures = {m: row["result"][m] for m in dict.fromkeys((METRIC, *plan.options.metric)) if m in row["result"]}
    named = {f"sweep/{m}": value for m, value in figures.items()}
    with tempfile.TemporaryDirectory() as scratch:
        with SummaryWriter(scratch, filename_suffix=".hparams") as board:
            for part in hparams(row["values"], named):
                board.file_writer.add_summary(part)
            for tag, value in named.items():
                board.add_scalar(tag, value, 0)
        for name in storage.local_files(scratch):
            with open(os.path.join(scratch, name), "rb") as stream:
                # The name is fixed, so that results that are written again replace these.
                storage.write_bytes(storage.join(row["run"], "events.out.tfevents.sweep.hparams"), stream.read())


def _write_table(path: str, rows: list[dict[str, Any]], plan: Sweep) -> None:
    metrics = [m for m in dict.fromkeys((METRIC, *plan.options.metric, "seconds")) if "." not in m]
    columns: dict[str, Any] = {name: [r[name] for r in rows] for name in ("number", "stage", "status")}
    columns |= {m: pa.array([r["result"].get(m) for r in rows], pa.float64()) for m in metrics}
    columns |= {name: [r[name] for r in rows] for name in ("epochs", "failures", "error", "run")}
    columns |= {p.key: [r["values"].get(p.key) for r in rows] for p in plan.space}
    columns["curve_epochs"] = pa.array([[p[0] for p in r["curve"]] for r in rows], pa.list_(pa.float64()))
    columns["curve_values"] = pa.array([[p[1] for p in r["curve"]] for r in rows], pa.list_(pa.float64()))
    fs, inner = storage.filesystem(path)
    pq.write_table(pa.table(columns), inner, filesystem=fs)


def summarise(
    out: str, rows: list[dict[str, Any]], best: dict[str, Any], plan: Sweep, account: dict[str, Any]
) -> dict[str, Any]:
    """The content of summary.json."""
    statuses = [r["status"] for r in rows]
    default = next((r for r in rows if r["stage"] == best["stage"] and is_default(r, plan)), None)
    metric = plan.options.metric[0]
    epochs = sum(r["epochs"] for r in rows)
    whole = sum(r["epochs"] if r["status"] == "finished" else r["planned"] for r in rows)
    seconds = sum(r["result"].get("seconds", 0.0) for r in rows)
    reported = sum(r["result"].get("epoch", 0.0) for r in rows)
    return {
        "trials": len(rows),
        **{status: statuses.count(status) for status in ("finished", "stopped", "failed")},
        "metric": metric,
        "best": {"number": best["number"], "value": best["result"][metric], "values": best["values"]},
        "default": default["result"].get(metric) if default else None,
        "as_they_were": {p.key: value_of(plan.base, p.key) for p in plan.space},
        "front": pareto_front(rows, plan.options.metric, plan.options.mode),
        "epochs": epochs,
        "epochs_to_the_end": whole,
        "share_of_epochs": epochs / whole if whole else 1.0,
        "seconds_per_epoch": seconds / reported if reported else 0.0,
        "hours": account["hours"],
        "gpu_hours": account["gpu_hours"],
        "errors": [{"number": r["number"], "error": r["error"]} for r in rows if r["error"]],
        "out": out,
    }


def is_default(row: dict[str, Any], plan: Sweep) -> bool:
    """Whether a trial has the options as they were before the sweep."""
    return all(row["values"].get(p.key) == value_of(plan.base, p.key) for p in plan.space)


def say(summary: dict[str, Any]) -> str:
    """The summary as text for the terminal."""
    best, out = summary["best"], summary["out"]
    lines = [f"trial {e['number']} failed: {e['error']}" for e in summary["errors"]]
    default = f" (the options as they were: {summary['default']:.4f})" if summary["default"] is not None else ""
    lines.append(
        f"{summary['trials']} trials ({summary['finished']} to the end, {summary['stopped']} stopped early, "
        f"{summary['failed']} failed) in {60 * summary['hours']:.1f} minutes; best {summary['metric']} "
        f"{best['value']:.4f}, trial {best['number']}{default}"
    )
    lines.append(
        f"options: {storage.join(out, 'best.toml')}; run: {storage.join(out, 'best')}; report: {out}/report.html"
    )
    return "\n".join(lines)
