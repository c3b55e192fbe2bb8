"""Search spaces and sweep options: what is read, what is refused, what is drawn."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from ray.tune.search import ConcurrencyLimiter, SearchGenerator

from ctxrec.core import storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from tune.budget import Budget, is_spent, open_account
from tune.findings import importance, pareto_front
from tune.search import Bounds, first_points, make_scheduler, make_searcher
from tune.space import Parameter, default_space, defaults_inside, parse_space, with_values
from tune.sweep_options import load_sweep
from tune.sweeping import _reopen, _trial_base, fit_to_cluster


def sweep_file(tmp_path, text: str) -> str:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return str(path)


def test_a_file_has_options_space_and_base(tmp_path):
    text = """
    [sweep]
    trials = 5
    metric = "valid_ndcg@10"
    [space]
    "train.tower_lr" = { low = 1e-4, high = 1e-2, log = true }
    model.layers = { low = 1, high = 5, step = 2 }
    model.backbone = { choice = ["transformer", "gru"] }
    [train]
    tower_epochs = 7
    """
    plan = load_sweep(sweep_file(tmp_path, text), ["sweep.seed=3", "sweep.fidelity.users=0.5", "model.dim=16"])
    assert (plan.options.trials, plan.options.seed, plan.options.fidelity.users) == (5, 3, 0.5)
    assert (plan.base.train.tower_epochs, plan.base.model.dim) == (7, 16)
    assert [p.key for p in plan.space] == ["train.tower_lr", "model.layers", "model.backbone"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        values = study.ask({p.key: p.distribution() for p in plan.space}).params
        assert values["model.layers"] in (1, 3, 5) and 1e-4 <= values["train.tower_lr"] <= 1e-2
        assert with_values(plan.base, values).model.backbone in ("transformer", "gru")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ('"train.nothing" = { low = 1, high = 2 }', "unknown key 'train.nothing'"),
        ('"serve.port" = { low = 1, high = 2 }', "serve.port is not an option"),
        ('"train.workers" = { choice = [1, 2] }', "cannot be searched"),
        ('"train.tower_lr" = { low = 0.1 }', r"expected \{low"),
        ('"train.tower_lr" = { low = 0.2, high = 0.1 }', "expected low < high"),
        ('"train.tower_lr" = { low = 0.0, high = 0.1, log = true }', "above 0 with log"),
        ('"train.tower_lr" = { low = -0.1, high = 0.1 }', "train.tower_lr is -0.1; expected above 0"),
        ('"model.layers" = { low = 1.5, high = 3 }', "expected a whole number"),
        ('"model.dropout" = { low = 0.0, high = 1.5 }', "model.dropout is 1.5"),
        ('"model.backbone" = { low = 1, high = 2 }', r"expected \{choice"),
        ('"model.dim" = { choice = [31] }', "a multiple of model.heads"),
        ('"train.loss" = { choice = ["softmax", "hinge"] }', "train.loss is 'hinge'"),
        ('"model.sources" = { choice = [["id"], ["text"]] }', "model.sources is a list, which a sweep cannot search"),
        (
            '"train.label_smoothing" = { low = 0.0, high = 0.2 }',
            "train.label_smoothing is no longer an option; leave it",
        ),
    ],
)
def test_a_wrong_space_is_named_at_the_start(tmp_path, space, said):
    with pytest.raises(UserError, match=said):
        load_sweep(sweep_file(tmp_path, f"[space]\n{space}\n"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.trials=0"], "sweep.trials is 0"),
        (["sweep.tries=3"], "unknown key 'sweep.tries'"),
        (["sweep.search=grid"], "sweep.search is 'grid'"),
        (['sweep.metric=["valid_ndcg@10", "seconds"]'], "sweep.mode"),
        (["sweep.gpus=1.5"], "sweep.gpus is 1.5"),
        (["sweep.metric=recall"], "sweep.metric is 'recall'"),
        (['sweep.metric=["valid_ndcg@10", "seconds"]', 'sweep.mode=["max", "min"]', "sweep.scheduler=asha"], "one metric"),
        (["sweep.search=pbt", "sweep.scheduler=median"], "pbt is a scheduler itself"),
        (["model.unknown=3"], "unknown key 'model.unknown'"),
    ],
)  # fmt: skip
def test_wrong_options_are_named_at_the_start(overrides, said):
    with pytest.raises(UserError, match=said):
        load_sweep(None, overrides)


def test_the_default_space_fits_and_begins_with_the_defaults():
    plan = load_sweep(None)
    assert first_points(plan) == [defaults_inside(Config(), plan.space)]
    for p in default_space(load_config(None, ["model.heads=4", "model.dim=48"])):
        p.check(load_config(None, ["model.heads=4", "model.dim=48"]))


def test_defaults_outside_of_the_space_are_no_first_trial(tmp_path):
    path = sweep_file(tmp_path, '[space]\n"train.tower_lr" = { low = 0.1, high = 0.2 }\n')
    assert first_points(load_sweep(path)) == []


def test_pbt_takes_only_what_can_change_in_a_training(tmp_path):
    path = sweep_file(tmp_path, '[sweep]\nsearch = "pbt"\n[space]\n"model.dim" = { choice = [16, 32] }\n')
    with pytest.raises(UserError, match="cannot change in the middle"):
        load_sweep(path)
    plan = load_sweep(None, ["sweep.search=pbt"])
    bounded = Bounds(plan.space)({p.key: 99.0 for p in plan.space})
    assert all(bounded[p.key] == p.high for p in plan.space)


def test_trials_at_their_last_epoch_are_not_stopped():
    """Ray Tune stops a trial that reaches max_t; ours have their bundle to write then."""

    trial = Trial("one")
    for kind in ("asha", "hyperband"):
        scheduler = make_scheduler(load_sweep(None, [f"sweep.scheduler={kind}"]), epochs=15)
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, 16):
            assert report(scheduler, trial, epoch, 0.1) == "CONTINUE"


@dataclasses.dataclass(frozen=True)
class Trial:
    trial_id: str


def report(scheduler, trial, epoch: int, value: float) -> str:
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "valid_ndcg@10": value})


def add_trials(scheduler, count: int) -> list:
    trials = [Trial(f"t{n}") for n in range(count)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return trials


def test_asha_stops_what_is_not_in_the_best_third_at_a_rung():
    scheduler = make_scheduler(load_sweep(None, ["sweep.grace=2"]), epochs=15)
    good, fair, bad = add_trials(scheduler, 3)
    assert report(scheduler, good, 1, 0.3) == report(scheduler, bad, 1, 0.0) == "CONTINUE", "none in the first epochs"
    assert report(scheduler, good, 2, 0.3) == "CONTINUE"
    assert report(scheduler, bad, 2, 0.1) == "STOP" and report(scheduler, fair, 2, 0.2) == "STOP"
    assert report(scheduler, good, 6, 0.3) == "CONTINUE"


def test_hyperband_has_brackets_that_begin_to_stop_at_different_epochs():
    scheduler = make_scheduler(load_sweep(None, ["sweep.search=bohb"]), epochs=15)
    first_rungs = sorted(min(rung for rung, _ in bracket._rungs) for bracket in scheduler._brackets)
    assert first_rungs == [1, 3, 9]


def test_median_stops_what_is_below_the_others_mean():
    scheduler = make_scheduler(load_sweep(None, ["sweep.scheduler=median", "sweep.grace=2"]), epochs=15)
    *others, bad = add_trials(scheduler, 4)
    for epoch in (1, 2, 3):
        for trial in others:
            assert report(scheduler, trial, epoch, 0.3) == "CONTINUE"
    assert report(scheduler, bad, 1, 0.1) == "CONTINUE", "none in the first epochs"
    assert report(scheduler, bad, 3, 0.1) == "STOP"


@pytest.mark.parametrize(
    ("overrides", "has", "expected"),
    [
        (["sweep.gpus=0.25"], {"CPU": 6, "GPU": 1}, (4, 0.25, "yes")),  # four trials share it
        (["sweep.gpus=0.25"], {"CPU": 3, "GPU": 1}, (3, 0.25, "yes")),  # each has a CPU too
        (["sweep.gpus=0.6"], {"CPU": 9, "GPU": 2}, (2, 0.6, "yes")),  # what is left of two GPUs is no GPU
        ([], {"CPU": 6, "GPU": 1}, (1, 1.0, "yes")),  # a whole one each, as nothing else was said
        (["train.use_gpu=no"], {"CPU": 6, "GPU": 1}, (6, 1.0, "no")),
        (["sweep.workers=2", "sweep.cpus=1.5"], {"CPU": 6}, (2, 1.0, "no")),
        (["sweep.workers=0", "sweep.cpus=1.5"], {"CPU": 6}, (4, 1.0, "no")),  # a trial trains in its own process
        (["sweep.workers=2", "sweep.concurrent=3"], {"CPU": 1}, (3, 1.0, "no")),  # a cluster that grows
    ],
)
def test_trials_at_a_time_are_what_cpus_and_parts_of_gpus_have_room_for(overrides, has, expected):
    plan = fit_to_cluster(load_sweep(None, overrides), has)
    train = _trial_base(plan).train
    assert (plan.options.concurrent, train.gpus_per_worker, train.use_gpu) == expected
    assert (train.workers, train.cpus_per_worker) == (plan.options.workers, plan.options.cpus)


@pytest.mark.parametrize(
    ("overrides", "gpus", "said"),
    [
        (["sweep.gpus=0.75", "sweep.workers=2"], 1, r"a trial needs 1\.5 GPUs .* the cluster has 1"),
        (["sweep.gpus=0.6", "sweep.workers=3"], 2, r"a trial needs 1\.8 GPUs .* the cluster has 2"),
        (["sweep.cpus=4", "sweep.workers=2"], 0, r"a trial needs 8 CPUs .* the cluster has 6"),
    ],
)
def test_a_trial_that_the_cluster_has_no_room_for_is_named(overrides, gpus, said):
    with pytest.raises(UserError, match=said):
        fit_to_cluster(load_sweep(None, overrides), {"CPU": 6, "GPU": gpus})


def test_whole_numbers_are_drawn_whole_and_both_ends_are_drawn():
    p = parse_space({"model.layers": {"low": 1, "high": 3}}, "test")[0]
    drawn = {p.domain().sample() for _ in range(100)}
    assert drawn == {1, 2, 3} and Parameter(key="model.layers", low=1, high=5, step=2).contains(3)


def test_the_budget_goes_on_over_starts_and_takes_new_limits(tmp_path):
    path = str(tmp_path / "spent.json")
    open_account(path, max_hours=0.0, max_gpu_hours=1.0)
    budget = Budget(path, gpus_per_trial=0.5)
    assert budget("a", {"time_this_iter_s": 3600.0}) is False and not budget.stop_all()
    budget("b", {"time_this_iter_s": 3600.0})
    assert budget.stop_all(), "two trials of an hour on half a GPU are one GPU-hour"
    assert is_spent(storage.read_json(path)), "at once, whenever it was written before"
    open_account(path, max_hours=0.0, max_gpu_hours=2.0)
    again = Budget(path, gpus_per_trial=0.5)
    assert not again.stop_all() and again._account["gpu_hours"] == pytest.approx(1.0)
    assert not is_spent({"hours": 5.0, "max_hours": 0.0, "gpu_hours": 0.0, "max_gpu_hours": 0.0})


def limited_search(plan) -> SearchGenerator:
    """As Ray Tune wraps a searcher of one trial at a time."""
    searcher = ConcurrencyLimiter(make_searcher(plan, first_points(plan)), max_concurrent=1)
    made = SearchGenerator(searcher)
    made._total_samples = 3
    return made


@pytest.mark.parametrize(("status", "goes_on"), [("TERMINATED", True), ("RUNNING", False)])
def test_a_search_that_a_budget_has_ended_begins_new_trials_again(status, goes_on, tmp_path):
    """Where a trial was at work when the sweep was killed, Ray Tune goes on with that one, and none takes its place."""
    plan = load_sweep(None, ["sweep.trials=3"])
    search = limited_search(plan)
    assert search.searcher.suggest("t0") is not None
    search._counter = 1
    search.set_finished()  # as a stopper's end does, which tells the searcher of no trial's end
    search.save_to_dir(str(tmp_path), "now")
    _reopen(str(tmp_path), [{"trial_id": "t0", "status": status}])
    again = limited_search(plan)
    again.restore_from_dir(str(tmp_path))
    assert again.is_finished() != goes_on
    assert (again.searcher.suggest("t1") is not None) == goes_on


def test_importance_finds_the_option_that_matters(tmp_path):
    text = '[space]\n"train.tower_lr" = { low = 0.001, high = 0.1 }\n"model.dropout" = { low = 0.0, high = 0.5 }\n'
    plan = load_sweep(sweep_file(tmp_path, text))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    rows = []
    for number in range(24):
        values = study.ask({p.key: p.distribution() for p in plan.space}).params
        rows.append({"number": number, "values": values, "result": {"valid_ndcg@10": values["train.tower_lr"]}})
    found = importance(rows, plan)
    assert next(iter(found)) == "train.tower_lr" and found["train.tower_lr"] > 2 * found["model.dropout"]
    assert importance(rows[:3], plan) == {}


def test_pareto_front_of_equal_rows_keeps_both():
    rows = [{"number": n, "result": {"a": 1, "b": 2}} for n in range(2)]
    assert pareto_front(rows, ["a", "b"], ["max", "min"]) == [0, 1]


@pytest.mark.parametrize("search", ["random", "tpe", "bohb"])
def test_a_searcher_begins_with_the_defaults_learns_and_outlives_a_restart(search, tmp_path):
    plan = load_sweep(None, [f"sweep.search={search}", "sweep.trials=12"])
    searcher = make_searcher(plan, first_points(plan))
    assert searcher.suggest("t0") == defaults_inside(plan.base, plan.space)
    for number in range(8):
        values = searcher.suggest(f"t{number}")
        with_values(plan.base, values)
        searcher.on_trial_result(f"t{number}", {"valid_ndcg@10": 0.1, "training_iteration": 1})
        searcher.on_trial_complete(f"t{number}", {"valid_ndcg@10": 0.01 * number})
    searcher.save(str(tmp_path / "state"))
    again = make_searcher(plan, first_points(plan))
    again.restore(str(tmp_path / "state"))
    assert again.suggest("t8") == searcher.suggest("t8") != defaults_inside(plan.base, plan.space)


def test_several_metrics_are_told_to_the_searcher():
    overrides = ['sweep.metric=["valid_ndcg@10", "seconds"]', 'sweep.mode=["max", "min"]']
    plan = load_sweep(None, overrides)
    assert plan.options.stops_by == "none" and make_scheduler(plan, 15) is None
    searcher = make_searcher(plan, [])
    for number in range(3):
        searcher.suggest(f"t{number}")
        searcher.on_trial_complete(f"t{number}", {"valid_ndcg@10": 0.1 * number, "seconds": 5.0 + number})
    best = {tuple(trial.values) for trial in searcher._ot_study.best_trials}
    assert best == {(0.1 * n, 5.0 + n) for n in range(3)}, "each gains in one what it loses in the other"
