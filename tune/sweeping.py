"""The course of a sweep: check it, run the trials of each stage on Ray Tune, train the best one, write the results."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import warnings
from typing import Any

import ray
import ray.tune
from ray import cloudpickle

from ctxrec.core import ray_cluster, storage
from ctxrec.core.config import Config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.core.removed_options import without_removed
from ctxrec.core.run_paths import RunPaths
from ctxrec.core.toml import build_dataclass
from ctxrec.data.prepared import PreparedData
from ctxrec.training.driver import train, with_absolute_paths
from ctxrec.training.trackers import check_trackers
from tune import sweep_results
from tune.board import Board
from tune.budget import Budget, is_spent, open_account, read_account
from tune.fidelity import share_of_users
from tune.search import first_points, make_scheduler, make_searcher
from tune.space import SECTIONS, tunes_encoder, with_values
from tune.sweep_options import METRIC, Sweep, SweepConfig
from tune.trial import TrialJob, begin_from, is_checkpoint, keep_checkpoint, make_trainable

logger = logging.getLogger(__name__)

PLAN, ACCOUNT, BEST = "sweep.json", "spent.json", "best.toml"
FULL, CHEAP = "full", "cheap"
_MAY_CHANGE = ("max_hours", "max_gpu_hours", "final")  # between two starts of one sweep


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trials of one Ray Tune experiment.

    Attributes:
        name: CHEAP or FULL.
        sweep: the options and the space.
        job: what all trials share.
        epochs: epochs of the longest trial of the space.
        points: configurations to try first.
    """

    name: str
    sweep: Sweep
    job: TrialJob
    epochs: int
    points: list[dict[str, Any]]


def sweep(data_path: str, out: str, plan: Sweep) -> dict[str, Any]:
    """Run a sweep, or go on with the one at `out`.

    Args:
        data_path: folder that `ctxrec.prepare` wrote, path or URI.
        out: folder of the sweep, path or URI.
        plan: the options and the space.

    Returns:
        The summary of `tune.sweep_results.summarise`.

    Raises:
        UserError: there is no prepared data or no validation event, `out` holds another sweep, or a trial does not fit
            the cluster.
    """
    data_path, out = _absolute(data_path), _absolute(out)
    data = PreparedData.open(data_path)
    plan = dataclasses.replace(plan, base=with_absolute_paths(plan.base).for_events(data.meta["counts"]["train"]))
    if data.meta["counts"]["valid"] == 0:
        raise UserError(
            f"{data_path} has no validation event, by which trials are compared; set split.valid above 0 in the spec and prepare again"
        )
    if plan.base.train.preset == "quick":
        raise UserError(
            "train.preset is 'quick', which has no steps that a sweep could stop early; leave it out, or train once "
            "with ctxrec train"
        )
    check_trackers(plan.base.train)
    _claim(out, plan, data)
    ray_cluster.connect(log_to_driver=False)
    _quiet()
    plan = fit_to_cluster(plan, ray.cluster_resources())
    account = storage.join(out, ACCOUNT)
    open_account(account, max_hours=plan.options.max_hours, max_gpu_hours=plan.options.max_gpu_hours)
    stages = []
    if plan.options.fidelity.used:
        stages.append(_cheap_stage(data_path, out, plan))
        _run_stage(stages[-1], out)
    if not (stages and is_spent(read_account(account))):
        stages.append(_full_stage(data_path, out, plan, stages))
        _run_stage(stages[-1], out)
    rows = sweep_results.collect(out, [stage.name for stage in stages], plan)
    best = sweep_results.best_of(rows, plan.options)
    config = _options_of(plan, best)
    storage.write_text(storage.join(out, BEST), to_toml(config))
    if plan.options.final:
        _train_best(data_path, out, config, best)
    return sweep_results.write(out, rows, best, plan, account=read_account(account))


def _absolute(path: str) -> str:
    return path if storage.is_uri(path) else os.path.abspath(path)


def _quiet() -> None:
    """Turn off Ray Tune's own table, loggers and hints, which would mix with the sweep's table."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_RESULT_BUFFER_LENGTH", "1")
    warnings.filterwarnings("ignore", module="optuna")
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _claim(out: str, plan: Sweep, data: PreparedData) -> None:
    """Write the plan of the sweep to `out`; raise a `UserError` if another sweep is there."""
    wanted = {"data_fingerprint": data.fingerprint, **plan.to_dict()}
    path = storage.join(out, PLAN)
    if storage.exists(path):
        try:
            held = storage.read_json_object(path)
        except UserError as error:
            raise UserError(f"{error}; give another --out, or remove it, and the sweep goes on") from error
        if _essence(held) != _essence(wanted):
            raise UserError(f"{out} holds a sweep with other options or data; give another --out, or delete it")
    storage.write_json(path, wanted)


def _essence(plan: dict[str, Any]) -> dict[str, Any]:
    """The part of a plan that must not change between two starts of a sweep. An option that was added since then
    has its default."""
    saved = {key: value for key, value in plan.items() if key in Config.__dataclass_fields__}
    config = Config.from_dict(without_removed(saved, source=PLAN)).to_dict()
    options = dataclasses.asdict(build_dataclass(SweepConfig, plan["sweep"], source=PLAN))
    kept = {section: config[section] for section in SECTIONS}
    kept["sweep"] = {k: v for k, v in options.items() if k not in _MAY_CHANGE}
    return _plain(kept | {"space": plan["space"], "data_fingerprint": plan["data_fingerprint"]})


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON, with lists in the place of tuples."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def fit_to_cluster(plan: Sweep, has: dict[str, float]) -> Sweep:
    """Decide how many trials run at a time, and what each of them holds.

    Args:
        plan: the sweep.
        has: the cluster's resources by name.

    Raises:
        UserError: a trial needs more than the cluster has.
    """
    options = plan.options
    on_gpu = plan.base.train.use_gpu == "yes" or (plan.base.train.use_gpu == "auto" and has.get("GPU", 0) > 0)
    gpus = (options.gpus or 1.0) if on_gpu else 0.0
    room = []
    for name, each in (("CPU", options.cpus), ("GPU", gpus)):
        trials = _workers_in(has.get(name, 0), each) // options.processes if each else options.trials
        if not trials and not options.concurrent:
            raise UserError(
                f"a trial needs {each * options.processes:g} {name}s (sweep.workers = {options.workers} with {each:g} "
                f"each); the cluster has {has.get(name, 0):g}. Lower them, or set sweep.concurrent if the cluster grows by itself"
            )
        room.append(trials)
    concurrent = min(options.concurrent or min(room), options.trials)
    return dataclasses.replace(plan, options=dataclasses.replace(options, gpus=gpus, concurrent=concurrent))


def _workers_in(amount: float, each: float) -> int:
    """The number of workers that fit. A part of a GPU or CPU must come from a single one, so three parts of 0.6
    need three of them."""
    return int(amount) * int(1 / each + 1e-9) if each < 1 else int(amount / each + 1e-9)


def _trial_base(plan: Sweep) -> Config:
    """The options of all trials: without refit, and with the encoder's phase only if the space needs it."""
    options, train_options = plan.options, plan.base.train
    changed = dataclasses.replace(
        train_options,
        workers=options.workers,
        cpus_per_worker=options.cpus,
        gpus_per_worker=options.gpus or 1.0,
        use_gpu="yes" if options.gpus else "no",
        refit=False,
        max_failures=0,
        encoder_epochs=train_options.most_encoder_epochs if tunes_encoder(plan.space) else 0,
    )
    return dataclasses.replace(plan.base, train=changed)


def _job(data_path: str, out: str, plan: Sweep, stage: str, history: int = 0) -> TrialJob:
    return TrialJob(
        data=data_path,
        folder=storage.join(out, "trials", stage),
        base=_trial_base(plan).to_dict(),
        metrics=plan.options.metric,
        history=history,
        keeps=plan.options.search == "pbt",
    )


def _epochs(plan: Sweep) -> int:
    """Epochs of the longest trial of the space."""
    return plan.epochs_of({p.key: max(p.choice or (p.low, p.high)) for p in plan.space if p.key.endswith("_epochs")})


def _cheap_stage(data_path: str, out: str, plan: Sweep) -> Stage:
    """All trials on less data."""
    fidelity = plan.options.fidelity
    data = data_path
    if fidelity.users < 1:
        data = share_of_users(data_path, storage.join(out, "data"), fidelity.users)
    job = _job(data, out, plan, CHEAP, fidelity.history)
    return Stage(CHEAP, plan, job, _epochs(plan), first_points(plan))


def _full_stage(data_path: str, out: str, plan: Sweep, before: list[Stage]) -> Stage:
    """All trials in full. After a cheap stage: the best trials of it, in full."""
    points = first_points(plan)
    if before:
        count = max(math.ceil(plan.options.fidelity.promote * plan.options.trials), 1)
        rows = sweep_results.collect(out, [stage.name for stage in before], plan)
        points = [row["values"] for row in sweep_results.in_order(rows, plan.options)][:count]
        if not points:
            raise UserError(f"no cheap trial reached an evaluation: {_first_error(rows)}")
        plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, trials=len(points)))
    return Stage(FULL, plan, _job(data_path, out, plan, FULL), _epochs(plan), points)


def _first_error(rows: list[dict[str, Any]]) -> str:
    return next((row["error"] for row in rows if row["error"]), "no trial was run")


def _run_stage(stage: Stage, out: str) -> None:
    """Run the trials of a stage, or go on with them.

    Raises:
        KeyboardInterrupt: the user stopped the sweep. The same command goes on.
        UserError: the budget was used up before the first evaluation.
        RuntimeError: every trial failed before its first evaluation.
    """
    record = sweep_results.record_path(out, stage.name)
    account = storage.join(out, ACCOUNT)
    if not _done(record, stage, account):
        options = stage.sweep.options
        trainable = ray.tune.with_resources(make_trainable(stage.job), _own_resources(options))
        folder = storage.join(out, "tune", stage.name)
        if ray.tune.Tuner.can_restore(folder):
            logger.info("going on with the trials of %s", folder)
            if storage.exists(record):
                _reopen(folder, sweep_results.read_record(record))
            tuner = ray.tune.Tuner.restore(folder, trainable, resume_unfinished=True)
        else:
            tuner = _new_tuner(stage, trainable, out, record, Budget(account, options.gpus * options.processes))
        tuner.fit()
    rows = sweep_results.read_record(record)
    if not _done(record, stage, account):
        raise KeyboardInterrupt
    if not any(METRIC in row["result"] for row in rows):
        if is_spent(read_account(account)):
            raise UserError(
                "the budget was used up before the first evaluation of a trial; raise sweep.max_hours or sweep.max_gpu_hours, "
                "and the sweep goes on"
            )
        raise RuntimeError(f"every trial failed before its first evaluation: {_first_error(rows)}")


def _done(record: str, stage: Stage, account: str) -> bool:
    """Whether all trials of the stage have ended, or the budget is used up."""
    if not storage.exists(record):
        return False
    rows = sweep_results.read_record(record)
    return all(map(_ended, rows)) and (len(rows) >= stage.sweep.options.trials or is_spent(read_account(account)))


def _reopen(folder: str, rows: list[dict[str, Any]]) -> None:
    """Let a search propose again that ended because its budget was used up.

    Ray Tune records such a search as finished, and the trials that it stopped as running, so it would never start
    another trial.

    Args:
        folder: Ray Tune's folder of the stage.
        rows: the record of all trials.
    """
    if not all(_ended(row) for row in rows):
        return  # the sweep was killed, and Ray Tune goes on with the trials that were running
    for path in storage.list_files(folder, recursive=False):
        if os.path.basename(path).startswith("search_gen_state"):
            state = cloudpickle.loads(storage.read_bytes(path)) | {"finished": False}
            for limiter in (value for key, value in state.items() if key == "name:ConcurrencyLimiter"):
                limiter |= {"live_trials": set(), "num_unfinished_live_trials": 0}
            storage.write_bytes(path, cloudpickle.dumps(state))


def _ended(row: dict[str, Any]) -> bool:
    return row["status"] in ("TERMINATED", "ERROR")


def _own_resources(options: SweepConfig) -> ray.tune.PlacementGroupFactory:
    """What a trial's own actor holds: all that the trial needs where it trains itself.

    Beside workers, which hold the CPUs and GPUs, it holds one byte of memory, as Ray Tune requires a resource.
    """
    if options.workers:
        return ray.tune.PlacementGroupFactory([{"memory": 1}])
    return ray.tune.PlacementGroupFactory([{"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})])


def _new_tuner(stage: Stage, trainable: Any, out: str, record: str, budget: Budget) -> ray.tune.Tuner:
    options = stage.sweep.options
    pbt = options.search == "pbt"
    board = Board(
        record,
        title=f"sweep ({stage.name})" if options.fidelity.used else "sweep",
        planned=options.trials,
        metric=options.metric[0],
        mode=options.mode[0],
    )
    several = len(options.metric) > 1
    return ray.tune.Tuner(
        trainable,
        param_space={p.key: p.domain() for p in stage.sweep.space} if pbt else None,
        tune_config=ray.tune.TuneConfig(
            metric=None if several or options.stops_by != "none" else options.metric[0],
            mode=None if several or options.stops_by != "none" else options.mode[0],
            search_alg=make_searcher(stage.sweep, stage.points),
            scheduler=make_scheduler(stage.sweep, stage.epochs),
            num_samples=options.trials,
            max_concurrent_trials=options.concurrent,
        ),
        run_config=ray.tune.RunConfig(
            name=stage.name,
            storage_path=storage.join(out, "tune"),
            stop=budget,
            failure_config=ray.tune.FailureConfig(max_failures=options.retries),
            callbacks=[board],
            verbose=0,
        ),
    )


def _options_of(plan: Sweep, best: dict[str, Any]) -> Config:
    """All options of the best trial, as `ctxrec.train --config` takes them."""
    return with_values(plan.base, best["values"])


def _train_best(data_path: str, out: str, config: Config, best: dict[str, Any]) -> str:
    """Train the best configuration as `ctxrec.train` does, from where its trial stopped; returns the run."""
    run = storage.join(out, "best")
    print(f"training the best configuration to the end in {run}", flush=True)
    start = ""
    checkpoint = best["result"].get("checkpoint", "")
    if best["stage"] == FULL and is_checkpoint(checkpoint) and not storage.exists(RunPaths(run).manifest):
        start = storage.join(out, "best-start")
        if not is_checkpoint(start):
            keep_checkpoint(best["run"], checkpoint, start)
        begin_from(start, run)
    train(data_path, run, config, start=start)
    storage.delete(storage.join(out, "best-start"))
    return run
