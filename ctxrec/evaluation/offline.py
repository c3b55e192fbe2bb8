"""Full-ranking evaluation of a run next to baselines, with intervals, slices and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema, storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.data.splits import held_out_items
from ctxrec.datasets.best_possible import Oracles, load_oracles, oracle_of_log
from ctxrec.datasets.described_oracle import DescribedOracle
from ctxrec.datasets.oracle import Oracle
from ctxrec.evaluation.ablations import train_ablations
from ctxrec.evaluation.baselines.selection import SPLITS, FittedBaselines, fit_baselines
from ctxrec.evaluation.diversity_tradeoff import settings, tradeoff, without_arranged
from ctxrec.evaluation.encoder_comparison import compare_encoders
from ctxrec.evaluation.evaluation_files import write_files
from ctxrec.evaluation.feedback_metrics import describe
from ctxrec.evaluation.knockouts import memory_without_texts, summarise_knockouts, without_knockouts
from ctxrec.evaluation.probability_check import PROBABILITY, describe_probabilities, measure_probabilities
from ctxrec.evaluation.rank_requests import Ranker, rank_requests, ranked_lists
from ctxrec.evaluation.ranking_plan import SEED, RankingPlan, check_bundles, load_system, run_bundles
from ctxrec.evaluation.second_stage import RERANK, describe_second_stage, measure_second_stage
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.evaluation.systems import MODEL, OTHER_RUN, RERANKED
from ctxrec.memory.item_memory import ItemMemory
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.slate.rules import rules_of
from ctxrec.training.driver import run_outcome

logger = logging.getLogger(__name__)

_BLEND_NOTE = (
    "validation split: ctxrec is ranked as it was before any validation event, but the weights of its sources were "
    "fitted to these events; use the test split to judge it"
)
_RERANK_NOTE = (
    "validation split: these events chose the epoch and the weight of the second stage; its gain here is no evidence"
)


def evaluate_run(
    run: str,
    *,
    split: str = "test",
    out: str | None = None,
    config: Config,
    data: str | None = None,
    ablations: Sequence[str] = (),
    oracle: str | None = None,
    diversity: Sequence[float] = (),
    compare: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Rank the whole catalogue for every request of a split; write metrics.json, requests.parquet, report.html.

    Args:
        run: run folder (path or URI) of a finished training.
        split: "valid" or "test". Baselines are fitted on all events of earlier splits. Validation requests are ranked
            by the model as it was before it saw any of them (`ctxrec.retrieval.pre_validation`).
        out: folder to write to; None = the run folder.
        config: options; the `evaluate` section matters here.
        data: the prepared data, when it no longer lies where the run's manifest says.
        ablations: trainings to compare with (see `ctxrec.evaluation.ablations`); missing ones are trained first.
        oracle: folder of a simulated log, whose true preferences are ranked beside the model.
        diversity: strengths of MMR whose lists are compared with the plain ones, with the other options of
            `config.diversity`; without any strength, the options are compared as they are, if they change lists.
        compare: other runs on the same data by name; each ranks the same requests, and the difference is paired.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: the run or its data is missing, the data is not what the run was trained on, or the
            split has no request.
    """
    prepared = open_data(run, data)
    check_split(prepared, split)
    oracles = _oracles(oracle, prepared)  # a mistake is found before the ablations are trained
    bundles = run_bundles(run, split) | train_ablations(run, prepared.path, ablations)
    bundles |= _other_bundles(compare or {}, prepared)
    return _evaluate(
        prepared, split, config, run=run, bundles=bundles, out=out or run, oracles=oracles, diversity=diversity
    )


def evaluate_data(
    data: str, *, split: str = "test", out: str | None = None, config: Config, oracle: str | None = None
) -> dict[str, Any]:
    """Rank with the baselines alone, on prepared data without any run; files are written if `out` is given.

    The un-tuned encoder is that of `config.encoder`. The rest is as in `evaluate_run`; "model" is empty.
    """
    prepared = PreparedData.open(data)
    check_split(prepared, split)
    return _evaluate(prepared, split, config, run=None, bundles={}, out=out, oracles=_oracles(oracle, prepared))


def _other_bundles(runs: Mapping[str, str], prepared: PreparedData) -> dict[str, str]:
    """Bundles of other runs, which must have been trained on the same prepared data."""
    for run in runs.values():
        open_data(run, prepared.path)
    return {OTHER_RUN + name: RunPaths(storage.absolute(run)).bundle for name, run in runs.items()}


def _oracles(folder: str | None, prepared: PreparedData) -> Oracles:
    return {} if folder is None else load_oracles(folder, prepared)


def _evaluate(
    prepared: PreparedData,
    split: str,
    config: Config,
    *,
    run: str | None,
    bundles: dict[str, str],
    out: str | None,
    oracles: Oracles,
    diversity: Sequence[float] = (),
) -> dict[str, Any]:
    """The steps of an evaluation; returns the content of `metrics.json`."""
    clock = _Clock()
    plan = _plan(prepared, split, config, bundles, diversity)
    clock.stop("start")

    logger.info("fitting baselines on the events before the %s split", split)
    baselines = fit_baselines(prepared, split, config, run=run)
    rankers: dict[str, Ranker] = {**baselines.fitted, **_fitted_oracles(oracles, prepared, split)}
    clock.stop("baselines")

    logger.info("ranking %s items for every %s request", f"{prepared.num_items:,}", split)
    eligible = eligible_items(prepared, baselines.item_counts)
    textless = _memory_without_texts(plan, prepared, split)
    table = _rank(plan, eligible, eligible & (baselines.item_counts == 0), rankers, textless)
    lists = ranked_lists(table, prepared.features.actions)
    clock.stop("ranking")

    metrics: dict[str, Any] = {"split": split, "requests": len(lists)}
    metrics |= _summary(lists, prepared, config, baselines.item_counts, eligible)
    if prepared.kinds.are_judged:
        metrics["feedback"] = describe(prepared.spec.events)
    if plan.knockouts:
        options = config.evaluate
        metrics["knockouts"] = summarise_knockouts(lists, ks=options.ks, resamples=options.bootstrap, seed=SEED)
    clock.stop("intervals")
    if plan.arranged:
        metrics["diversity"] = _diversity(lists, plan, config, eligible)
        clock.stop("diversity")
    if run is not None:
        metrics |= compare_encoders(metrics, run_outcome(run))
    metrics |= {"options": baselines.options, "notes": _notes(baselines, plan, split)}
    if plan.reranker is not None:
        metrics[RERANK] = measure_second_stage(plan, prepared, metrics["paired"][RERANKED])
        metrics["notes"].append(describe_second_stage(metrics[RERANK]))
        clock.stop(RERANK)
    if MODEL in plan.bundles:
        told = measure_probabilities(load_system(plan, prepared, MODEL), prepared, plan.split, seed=SEED)
        if told is not None:
            metrics[PROBABILITY] = told
            metrics["notes"].append(describe_probabilities(told))
        clock.stop(PROBABILITY)
    metrics["seconds"] = clock.seconds()
    if out is not None:
        write_files(out, prepared=prepared, config=config, metrics=metrics, lists=lists, table=table, run=run)
    return metrics


def _plan(
    prepared: PreparedData, split: str, config: Config, bundles: dict[str, str], diversity: Sequence[float]
) -> RankingPlan:
    """What the ranking actors must know; a damaged bundle or a wrong rule is found here."""
    rules, arranged = rules_of(config.diversity), settings(config.diversity, diversity)
    plan = RankingPlan.make(bundles, prepared, split, config, arranged=arranged, rules=rules)
    check_bundles(plan, prepared.items.column(schema.ITEM_ID).to_pylist())
    return plan


def _fitted_oracles(oracles: Oracles, prepared: PreparedData, split: str) -> Oracles:
    """The oracles with the one that learns from the log, where there is one."""
    best = oracles.get("oracle")
    if not isinstance(best, Oracle | DescribedOracle):  # none, or that of a log that moves
        return oracles
    return oracles | {"oracle_of_log": oracle_of_log(best, prepared, SPLITS[split])}


def _rank(
    plan: RankingPlan,
    eligible: np.ndarray,
    cold: np.ndarray,
    rankers: dict[str, Ranker],
    textless: ItemMemory | None,
) -> pa.Table:
    """The table of all requests (`rank_requests`).

    Raises:
        UserError: no request has a target that may be recommended.
    """
    table = rank_requests(plan, eligible, cold, rankers, textless)
    if table is None:
        split = next(name for name, code in SPLITS.items() if code == plan.split)
        raise UserError(
            f"no {split} request has a target that may be recommended: each target is in its user's history, or is an "
            "item without training event that no item table has. Set split.repeats = true in the dataset spec, or name "
            "an item table in it, and prepare again"
        )
    return table


def _memory_without_texts(plan: RankingPlan, prepared: PreparedData, split: str) -> ItemMemory | None:
    """For the knock-out of the texts; None where no model with a memory is evaluated with knock-outs."""
    if not plan.knockouts or "memory" not in load_config(base=BundlePaths(plan.bundles[MODEL]).config).model.sources:
        return None
    return memory_without_texts(prepared, SPLITS[split], repeats=prepared.spec.split.repeats)


def _summary(
    lists: RankedLists, prepared: PreparedData, config: Config, item_counts: np.ndarray, eligible: np.ndarray
) -> dict[str, Any]:
    """Metrics of all systems but the arranged lists, which have a section of their own."""
    return summarise(
        without_knockouts(without_arranged(lists)),
        item_counts=item_counts,
        eligible=eligible,
        ks=config.evaluate.ks,
        resamples=config.evaluate.bootstrap,
        seed=SEED,
        held_out=_held_out(prepared, config),
    )


def _diversity(lists: RankedLists, plan: RankingPlan, config: Config, eligible: np.ndarray) -> dict[str, Any]:
    model, options = load_recommender(plan.bundles[MODEL]), config.evaluate
    return tradeoff(lists, model, eligible=eligible, resamples=options.bootstrap, seed=SEED)


def _notes(baselines: FittedBaselines, plan: RankingPlan, split: str) -> list[str]:
    """What a reader must know to read the figures."""
    notes = list(baselines.notes)
    if plan.bundles and split == "valid":
        notes += [_BLEND_NOTE] + [_RERANK_NOTE] * (plan.reranker is not None)
    return notes


class _Clock:
    """Seconds of the steps of an evaluation."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.steps: dict[str, float] = {}

    def stop(self, step: str) -> None:
        """End a step."""
        now = time.perf_counter()
        self.steps[step], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        """Seconds of each step and of all of them."""
        return {name: round(s, 3) for name, s in (self.steps | {"total": time.perf_counter() - self.begin}).items()}


def _held_out(prepared: PreparedData, config: Config) -> np.ndarray | None:
    """Items of the cold hold-out (bool [I]), or None without one.

    The hold-out is the one that the data was prepared with, or, to compare with such data, the one of the option
    `prepare.cold_items`.
    """
    share = prepared.meta.get("cold_items", 0.0) or config.prepare.cold_items
    return held_out_items(prepared.items.column(schema.ITEM_ID).to_pylist(), share) if share else None


def open_data(run: str, data: str | None = None) -> PreparedData:
    """The prepared data that a run was trained on, from where its manifest says or from `data`.

    Raises:
        UserError: the run is not finished, or the data is not what it was trained on.
    """
    path = RunPaths(run).manifest
    if not storage.exists(path):
        raise UserError(f"no finished run at {run} (manifest.json is missing); train it with ctxrec train")
    manifest = read_run_manifest(run)
    prepared = PreparedData.open(data or manifest["data_path"])
    if prepared.fingerprint != manifest["data_fingerprint"]:
        raise UserError(
            f"the data at {prepared.path} has fingerprint {prepared.fingerprint[:12]}; the run at {run} was trained on "
            f"{manifest['data_fingerprint'][:12]}. Give the data of the run with --data, or train again"
        )
    return prepared


def check_split(prepared: PreparedData, split: str) -> None:
    """Check that a split has events to evaluate on.

    Raises:
        UserError: it has none, or there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not prepared.meta["counts"][split]:
        raise UserError(
            f"the data at {prepared.path} has no {split} events; expected some to evaluate on. "
            f"Set split.{split} above 0 in the dataset spec and prepare again, or give another --split"
        )


def eligible_items(prepared: PreparedData, item_counts: np.ndarray) -> np.ndarray:
    """Items of the item file, which come first in the catalogue, and items with a training event: bool [I]."""
    eligible = item_counts > 0
    eligible[: prepared.num_items - prepared.meta["counts"]["items_only_in_log"]] = True
    return eligible
