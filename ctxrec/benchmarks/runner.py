"""Run a suite: data set, prepare, train and evaluate; each step is a process of the real command.

A step that fails is reported in the table, and the other steps still run. A finished step is skipped if its command and
its input are unchanged. A training that was interrupted resumes.

OUT/LABEL/ds                    tables and dataset.toml of a named or simulated data set
OUT/LABEL/dataset.toml          the spec as used
OUT/LABEL/data                  prepared data
OUT/LABEL/seed-0                run of a seed, with its metrics and report
OUT/LABEL/steps                 log of each step, and a record of what it was
OUT/results.json, results.md, report.html
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ctxrec.benchmarks import html_page as benchmark_page
from ctxrec.benchmarks import results as results_table
from ctxrec.benchmarks.suite import Entry, Suite, find_source, load_suite, overridden_spec, spec_toml
from ctxrec.core import schema, storage
from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import RunPaths
from ctxrec.datasets import SIMULATE


class StepFailed(Exception):
    """A step's process ended with an error; the message is the last line of its log."""


@dataclass(frozen=True)
class Failure:
    """A step that failed; `seed` is None for a step before the trainings."""

    step: str
    seed: int | None
    message: str


@dataclass(frozen=True)
class RunnerOptions:
    """Options of a run of a suite, from the command line."""

    out: str
    suite_folder: str
    sources: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Results of a data set after its steps."""

    entry: Entry
    folder: str
    runs: dict[int, str] = field(default_factory=dict)  # seed -> evaluated run
    failures: list[Failure] = field(default_factory=list)


def run_from(
    suite_path: str,
    out: str,
    *,
    sources: str | None,
    only: Sequence[str] | None,
    config: str | None,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """`run_suite` with the arguments of the command line; paths become absolute.

    Raises:
        UserError: the suite, an option or a label is wrong.
    """
    suite = load_suite(suite_path)
    load_config(config, overrides)  # a wrong option fails here, not in every step
    if only:
        labels = [entry.title for entry in suite.dataset]
        unknown = [label for label in only if label not in labels]
        if unknown:
            raise UserError(f"--only {unknown[0]} is no data set of {suite_path}; expected one of {', '.join(labels)}")
        suite = dataclasses.replace(suite, dataset=tuple(e for e in suite.dataset if e.title in only))
    if sources and not os.path.isdir(sources):
        raise UserError(
            f"--sources {sources} is no folder; expected one with a sub-folder of own files for each data set"
        )
    options = RunnerOptions(
        out=os.path.abspath(out),
        suite_folder=os.path.dirname(os.path.abspath(suite_path)),
        sources=os.path.abspath(sources) if sources else None,
        config=os.path.abspath(config) if config else None,
        overrides=tuple(overrides),
    )
    return run_suite(suite, options)


def run_suite(suite: Suite, options: RunnerOptions) -> dict[str, Any]:
    """Run all unfinished steps and write the three files of results; returns the content of results.json.

    The files are written again after each data set, so that the progress of a long benchmark can be seen.
    """
    outcomes: list[Outcome] = []
    results: dict[str, Any] = {}
    for number, entry in enumerate(suite.dataset, 1):
        print(f"== {number}/{len(suite.dataset)} {entry.title}", flush=True)
        outcomes.append(run_entry(entry, suite, options))
        rows = [results_table.dataset_row(o.entry.title, o.folder, o.runs, o.failures) for o in outcomes]
        results = {"seeds": list(suite.seeds), "ablations": list(suite.ablations), "datasets": rows}
        storage.write_json(os.path.join(options.out, "results.json"), results)
        storage.write_text(os.path.join(options.out, "results.md"), results_table.markdown(results))
        storage.write_text(os.path.join(options.out, "report.html"), benchmark_page.render(results))
    return results


def run_entry(entry: Entry, suite: Suite, options: RunnerOptions) -> Outcome:
    """All steps of one data set."""
    outcome = Outcome(entry, os.path.join(options.out, entry.title))
    os.makedirs(os.path.join(outcome.folder, "steps"), exist_ok=True)
    step = "dataset"
    try:
        spec = _write_dataset(entry, outcome.folder, options)
        step = "prepare"
        data, fingerprint = _prepare(spec, outcome.folder, _flags(entry, suite, options))
    except (StepFailed, ValueError) as error:
        _report_failure(outcome, Failure(step, None, " ".join(str(error).split())))
        return outcome
    for seed in suite.seeds:
        flags = [*_flags(entry, suite, options), "--set", f"train.seed={seed}"]
        step = "train"
        try:
            run = _train(data, fingerprint, seed, outcome.folder, flags)
            step = "evaluate"
            oracle = os.path.join(outcome.folder, "ds") if entry.simulate else None
            _evaluate(run, data, seed, outcome.folder, flags, suite.ablations_of(seed), oracle)
            outcome.runs[seed] = run
        except StepFailed as error:
            _report_failure(outcome, Failure(step, seed, str(error)))
    return outcome


def _report_failure(outcome: Outcome, failure: Failure) -> None:
    outcome.failures.append(failure)
    print(f"   {failure.step} failed: {failure.message}", flush=True)


def _flags(entry: Entry, suite: Suite, options: RunnerOptions) -> list[str]:
    """Options for every command of a data set: the suite's, the data set's, then the command line's."""
    flags = ["--config", options.config] if options.config else []
    for override in (*suite.overrides, *entry.overrides, *options.overrides):
        flags += ["--set", override]
    return flags


def _write_dataset(entry: Entry, folder: str, options: RunnerOptions) -> str:
    """Write the tables of a named or simulated data set; returns the path of the spec to prepare."""
    spec = entry.spec
    if not spec:
        tables = os.path.join(folder, "ds")
        if entry.simulate is not None:
            command = ["ctxrec.datasets", SIMULATE]
            for name, value in dataclasses.asdict(entry.simulate).items():
                if isinstance(value, bool):
                    command += [f"--{name}"] if value else []
                else:
                    command += [f"--{name}", str(value)]
        else:
            command = ["ctxrec.datasets", entry.name]
            source = find_source(entry, options.sources, options.suite_folder)
            command += ["--source", source] if source else []
        _run_step("dataset", [*command, "--out", tables], folder)
        spec = os.path.join(tables, "dataset.toml")
    used = os.path.join(folder, "dataset.toml")
    storage.write_text(used, spec_toml(overridden_spec(spec, entry.spec_overrides)))
    return used


def _prepare(spec: str, folder: str, flags: Sequence[str]) -> tuple[str, str]:
    """The prepared data and its fingerprint. The command always runs, and reuses data that is unchanged."""
    data = os.path.join(folder, "data")
    _run_step("prepare", ["ctxrec.prepare", spec, "--out", data, *flags], folder)
    return data, storage.read_json(os.path.join(data, schema.META))["fingerprint"]


def _train(data: str, fingerprint: str, seed: int, folder: str, flags: Sequence[str]) -> str:
    run = os.path.join(folder, f"seed-{seed}")
    command = ["ctxrec.train", "--data", data, "--out", run, *flags]
    _run_step(f"train-{seed}", command, folder, needs=fingerprint, replaces=run)
    return run


def _evaluate(
    run: str, data: str, seed: int, folder: str, flags: Sequence[str], ablations: Sequence[str], oracle: str | None
) -> None:
    command = ["ctxrec.evaluate", "--run", run, "--data", data, *flags]
    command += ["--ablations", ",".join(ablations)] if ablations else []
    command += ["--oracle", oracle] if oracle else []
    version = read_run_manifest(run)["model_version"]
    metrics = RunPaths(run).metrics  # somebody may have evaluated the run on another split since
    split = storage.read_json(metrics).get("split") if os.path.exists(metrics) else None
    _run_step(f"evaluate-{seed}", command, folder, needs=version, stale=split != "test")


def _run_step(
    step: str, command: Sequence[str], folder: str, *, needs: str | None = None, replaces: str = "", stale: bool = False
) -> None:
    """Run `python -m COMMAND` unless it is finished, with its output in a log.

    Args:
        step: name of the log and of the record.
        command: module and arguments.
        folder: folder of the data set.
        needs: fingerprint of the input; None: the command always runs and checks its input itself.
        replaces: folder that is deleted if it was written with another command or input.
        stale: whether the step's output is gone, so that the step runs again.

    Raises:
        StepFailed: it ended with an error.
    """
    record = os.path.join(folder, "steps", f"{step}.json")
    log = os.path.join(folder, "steps", f"{step}.log")
    key = storage.sha256_json({"command": list(command), "needs": needs})
    before = storage.read_json(record) if os.path.exists(record) else {}
    if needs is not None and before.get("key") == key and before.get("finished") and not stale:
        print(f"   {step}: already done", flush=True)
        return
    if replaces and before.get("key") != key:
        shutil.rmtree(replaces, ignore_errors=True)
    storage.write_json(record, {"key": key, "command": list(command), "finished": False})
    begin = time.monotonic()
    with open(log, "wb") as sink:
        done = subprocess.run([sys.executable, "-m", *command], stdout=sink, stderr=subprocess.STDOUT, check=False)
    seconds = time.monotonic() - begin
    if done.returncode:
        raise StepFailed(f"{_last_word(log)} (exit code {done.returncode}; log: {log})")
    storage.write_json(record, {"key": key, "command": list(command), "finished": True, "seconds": round(seconds, 1)})
    print(f"   {step}: {seconds:.0f} s", flush=True)


def _last_word(log: str) -> str:
    """The line of a log that names the error: the last one that begins with "error:", else the last one."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        said = [line.strip() for line in lines.read().replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("error:")]
    return (errors or said or ["no message"])[-1]
