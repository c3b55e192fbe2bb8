"""Ray Tune's searcher and scheduler of a sweep: what proposes configurations, and what stops bad trials early."""

from __future__ import annotations

import math
from typing import Any

import optuna
import ray.tune
import ray.tune.schedulers
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from tune.space import Parameter, defaults_inside
from tune.sweep_options import Sweep

TIME = "epoch"
_BRACKETS = 3  # brackets of HyperBand: their grace periods are `grace` times 1, `reduction` and its square
_FIRST_RANDOM = 8  # trials that TPE draws at random, at most, before it has results to learn from


def make_searcher(sweep: Sweep, points: list[dict[str, Any]]) -> Any:
    """What proposes configurations: Optuna's sampler, and for pbt random draws. `points` are tried first."""
    options = sweep.options
    if options.search == "pbt":
        return BasicVariantGenerator(points_to_evaluate=points or None, random_state=options.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.search == "random":
        sampler: Any = optuna.samplers.RandomSampler(seed=options.seed)
    else:
        several = len(options.metric) > 1
        sampler = optuna.samplers.TPESampler(
            seed=options.seed, multivariate=True, n_startup_trials=min(_FIRST_RANDOM, max(options.trials // 3, 2)),
            constant_liar=not several,
        )  # fmt: skip
    several = len(options.metric) > 1
    return OptunaSearch(
        {p.key: p.distribution() for p in sweep.space},
        metric=list(options.metric) if several else options.metric[0],
        mode=list(options.mode) if several else options.mode[0],
        sampler=sampler,
        points_to_evaluate=points or None,
    )


def first_points(sweep: Sweep) -> list[dict[str, Any]]:
    """The first trial: the options as they are, if `default_first` is set and the space contains them."""
    values = defaults_inside(sweep.base, sweep.space) if sweep.options.default_first else None
    return [] if values is None else [values]


def make_scheduler(sweep: Sweep, epochs: int) -> Any:
    """What stops bad trials early. None means that nothing does.

    Args:
        sweep: the options and the space.
        epochs: epochs of a trial that runs to the end.
    """
    options = sweep.options
    kind = options.stops_by
    if kind == "none":
        return None
    common = {"metric": options.metric[0], "mode": options.mode[0], "time_attr": TIME}
    if kind == "median":
        # Without `min_time_slice`, Ray Tune pauses a trial after each epoch, so that others begin, while it knows too few.
        return ray.tune.schedulers.MedianStoppingRule(grace_period=options.grace, min_time_slice=math.inf, **common)
    if kind == "pbt":
        return ray.tune.schedulers.PopulationBasedTraining(
            perturbation_interval=options.grace,
            hyperparam_mutations={p.key: p.domain() for p in sweep.space},
            custom_explore_fn=Bounds(sweep.space),
            log_config=False,
            **common,
        )
    # A trial writes its bundle after its last epoch, so Ray Tune must not stop it there.
    longest = max(epochs + 1, options.grace * options.reduction + 1)
    rungs = 1 + int(math.log(longest / options.grace) / math.log(options.reduction))
    return ray.tune.schedulers.AsyncHyperBandScheduler(
        grace_period=options.grace,
        max_t=longest,
        reduction_factor=options.reduction,
        brackets=min(_BRACKETS, rungs) if kind == "hyperband" else 1,
        stop_last_trials=False,
        **common,
    )


class Bounds:
    """Moves values that pbt has changed back into the space."""

    def __init__(self, space: tuple[Parameter, ...]) -> None:
        self.space = space

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        bounded = dict(values)
        for p in self.space:
            if not p.choice:
                bounded[p.key] = min(max(values[p.key], p.low), p.high)
                bounded[p.key] = round(bounded[p.key]) if p.is_whole else float(bounded[p.key])
        return bounded
