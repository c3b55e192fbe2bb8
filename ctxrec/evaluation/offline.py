"""Full-ranking evaluation of a run next to baselines, with intervals, slices and a report."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import ray_cluster, schema, storage
from ctxrec.core.config import Config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.data.events import ranges
from ctxrec.data.prepared import PreparedData
from ctxrec.data.splits import held_out_items
from ctxrec.datasets.oracle import Oracle, load_oracles, oracle_of_log
from ctxrec.evaluation.ablations import train_ablations
from ctxrec.evaluation.baselines.selection import SPLITS, fit_contenders
from ctxrec.evaluation.diversity_tradeoff import settings, tradeoff, without_arranged
from ctxrec.evaluation.rank_requests import SEED, RankingPlan, check_bundles, rank_requests, ranked_lists, run_bundles
from ctxrec.evaluation.report import page as report_page
from ctxrec.evaluation.second_stage import RERANK, in_words, second_stage
from ctxrec.evaluation.summary import MODEL, RERANKED, RankedLists, best_baseline, focus, summarise
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.slate.rules import rules_of
from ctxrec.training.trackers import read_train_log

logger = logging.getLogger(__name__)

_BLEND_NOTE = (
    "validation split: ctxrec is ranked as it was before any validation event, but the weights of its sources were "
    "fitted to these events; the test split tells how good it is"
)
_RERANK_NOTE = "validation split: the second stage has learnt from these very events; its gain here says nothing"


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
) -> dict[str, Any]:
    """Rank the whole catalogue for every request of a split; write metrics.json, requests.parquet, report.html.

    Args:
        run: run folder (path or URI) of a finished training.
        split: "valid" or "test". Baselines are fitted on all events of earlier splits. Validation requests are ranked
            by the model as it was before it saw any of them (`ctxrec.retrieval.pre_validation`).
        out: folder to write to; None = the run folder.
        config: options; the `evaluate` section matters here.
        data: the prepared data, when it no longer lies where the run's manifest says.
        ablations: trainings to compare with (see `ctxrec.evaluation.ablations`); those that the run lacks are done first.
        oracle: folder of a simulated log, whose true preferences are ranked beside the model.
        diversity: strengths of MMR whose lists are compared with the plain ones, with the other options of
            `config.diversity`; without any, these options as they are, where they change lists.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: the run or its data is missing, the data is not what the run was trained on, or the
            split has no request.
    """
    prepared = open_data(run, data)
    _check_split(prepared, split)
    oracles = _oracles(oracle, prepared)  # a mistake shows before the ablations' trainings
    bundles = run_bundles(run) | train_ablations(run, prepared.path, ablations)
    return _evaluate(
        prepared, split, config, run=run, bundles=bundles, out=out or run, oracles=oracles, diversity=diversity
    )


def evaluate_data(
    data: str, *, split: str = "test", out: str | None = None, config: Config, oracle: str | None = None
) -> dict[str, Any]:
    """Rank with the baselines alone, on prepared data without any run; files are written where `out` is given.

    The un-tuned encoder is that of `config.encoder`. The rest is as in `evaluate_run`; "model" is empty.
    """
    prepared = PreparedData.open(data)
    _check_split(prepared, split)
    return _evaluate(prepared, split, config, run=None, bundles={}, out=out, oracles=_oracles(oracle, prepared))


def _oracles(folder: str | None, prepared: PreparedData) -> dict[str, Oracle]:
    return {} if folder is None else load_oracles(folder, prepared)


def _evaluate(
    prepared: PreparedData,
    split: str,
    config: Config,
    *,
    run: str | None,
    bundles: dict[str, str],
    out: str | None,
    oracles: dict[str, Oracle],
    diversity: Sequence[float] = (),
) -> dict[str, Any]:
    clock = _Clock()
    rules, arranged = rules_of(config.diversity), settings(config.diversity, diversity)
    ray_cluster.connect()
    plan = RankingPlan.make(bundles, prepared, split, config, arranged=arranged, rules=rules)
    check_bundles(plan, prepared.items.column(schema.ITEM_ID).to_pylist())
    clock.stop("start")

    logger.info("fitting baselines on the events before the %s split", split)
    contenders = fit_contenders(prepared, split, config, run=run)
    rankers = contenders.fitted | oracles
    if oracles:
        rankers["oracle_of_log"] = oracle_of_log(oracles["oracle"], prepared, SPLITS[split])
    clock.stop("baselines")

    logger.info("ranking %s items for every %s request", f"{prepared.num_items:,}", split)
    eligible = eligible_items(prepared, contenders.item_counts)
    table = rank_requests(plan, eligible, eligible & (contenders.item_counts == 0), rankers)
    if table is None:
        raise UserError(
            f"no {split} request has a target that may be recommended: each is in its user's history, or an item without "
            "training event that no item table has. Set split.repeats = true in the dataset spec, or name an item table "
            "in it, and prepare again"
        )
    clock.stop("ranking")

    lists = ranked_lists(table, prepared.features.actions)
    metrics: dict[str, Any] = {"split": split, "requests": len(lists)}
    options = config.evaluate
    metrics |= summarise(
        without_arranged(lists),
        item_counts=contenders.item_counts,
        eligible=eligible,
        ks=options.ks,
        resamples=options.bootstrap,
        seed=SEED,
        held_out=_held_out(prepared, config),
    )
    clock.stop("intervals")
    if plan.arranged:
        model = load_recommender(plan.bundles[MODEL])
        metrics["diversity"] = tradeoff(lists, model, eligible=eligible, resamples=options.bootstrap, seed=SEED)
        clock.stop("diversity")
    metrics |= {"options": contenders.options, "notes": contenders.notes}
    if bundles and split == "valid":
        metrics["notes"] = [*metrics["notes"], _BLEND_NOTE] + [_RERANK_NOTE] * (plan.reranker is not None)
    if plan.reranker is not None:
        metrics[RERANK] = second_stage(plan, prepared, metrics["paired"][RERANKED])
        metrics["notes"] = [*metrics["notes"], in_words(metrics[RERANK])]
        clock.stop(RERANK)
    metrics["seconds"] = clock.seconds()
    if out is not None:
        _write(out, run, prepared, config, metrics, lists, table)
    return metrics


class _Clock:
    """Seconds of the steps of an evaluation."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.steps: dict[str, float] = {}

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.steps[step], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        return {name: round(s, 3) for name, s in (self.steps | {"total": time.perf_counter() - self.begin}).items()}


def _held_out(prepared: PreparedData, config: Config) -> np.ndarray | None:
    """Items of the cold hold-out that the data was prepared with, or, to compare with such data, that the option
    `prepare.cold_items` names; None without one."""
    share = prepared.meta.get("cold_items", 0.0) or config.prepare.cold_items
    return held_out_items(prepared.items.column(schema.ITEM_ID).to_pylist(), share) if share else None


def open_data(run: str, data: str | None = None) -> PreparedData:
    """The prepared data that a run was trained on, from where its manifest says or from `data`."""
    path = storage.join(run, "manifest.json")
    if not storage.exists(path):
        raise UserError(f"no finished run at {run} (manifest.json is missing); train it with python -m ctxrec.train")
    manifest = storage.read_json(path)
    prepared = PreparedData.open(data or manifest["data_path"])
    if prepared.fingerprint != manifest["data_fingerprint"]:
        raise UserError(
            f"the data at {prepared.path} has fingerprint {prepared.fingerprint[:12]}; the run at {run} was trained on "
            f"{manifest['data_fingerprint'][:12]}. Give the data of the run with --data, or train again"
        )
    return prepared


def _check_split(prepared: PreparedData, split: str) -> None:
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


def _write(
    out: str,
    run: str | None,
    prepared: PreparedData,
    config: Config,
    metrics: dict[str, Any],
    lists: RankedLists,
    table: pa.Table,
) -> None:
    """The three files of an evaluation; lists and examples are those of the model, else of the best baseline."""
    system = focus(metrics)
    ndcg = request_metrics(lists.tops[system], lists.target_offsets, lists.target_items, [10])["ndcg@10"]
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()
    requests = pa.table(
        {
            schema.USER_ID: table.column(schema.USER_ID),
            "history_length": table.column("history_length"),
            "targets": _as_ids(lists.target_offsets, lists.target_items, item_ids),
            "recommended": _padded_ids(lists.tops[system], item_ids),
            "ndcg@10": pa.array(ndcg),
            **{f"ndcg@10/{name}": pa.array(values) for name, values in _ndcg(lists).items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(requests, sink)
    storage.write_bytes(storage.join(out, "requests.parquet"), sink.getvalue())

    html = report_page.render_report(
        metrics,
        facts=report_page.Facts.of(prepared, config),
        train_log=read_train_log(run) if run is not None else [],
        examples=_examples(prepared, lists, ndcg, table, system=system, other=best_baseline(metrics), seed=SEED),
        config_toml=to_toml(config),
    )
    storage.write_text(storage.join(out, "report.html"), html)
    storage.write_json(storage.join(out, "metrics.json"), metrics)


def _ndcg(lists: RankedLists) -> dict[str, np.ndarray]:
    """NDCG@10 of every request with each system, for comparisons over several runs."""
    return {
        system: request_metrics(top, lists.target_offsets, lists.target_items, [10])["ndcg@10"]
        for system, top in lists.tops.items()
    }


def _as_ids(offsets: np.ndarray, positions: np.ndarray, item_ids: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), item_ids.take(pa.array(positions)))


def _padded_ids(top: np.ndarray, item_ids: pa.Array) -> pa.Array:
    """Lists of ids from position lists that -1 fills up."""
    lengths = (top >= 0).sum(axis=1)
    index, offsets = ranges(np.arange(len(top)) * top.shape[1], np.arange(len(top)) * top.shape[1] + lengths)
    return _as_ids(offsets, top.ravel()[index], item_ids)


def _examples(
    prepared: PreparedData,
    lists: RankedLists,
    ndcg: np.ndarray,
    table: pa.Table,
    *,
    system: str,
    other: str | None,
    seed: int,
) -> list[report_page.Example]:
    """Three users drawn among those with a hit in the first ten, and three among the others."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(mask))[:3] for mask in (ndcg > 0, ndcg == 0)]
    titles = prepared.items.column(schema.ITEM_TITLE).combine_chunks()
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()

    def names(positions: np.ndarray) -> list[str]:
        return [titles[int(p)].as_py() or item_ids[int(p)].as_py() for p in positions]

    def listed(top: np.ndarray, targets: np.ndarray) -> list[tuple[str, bool]]:
        got = top[:10][top[:10] >= 0]
        return list(zip(names(got), np.isin(got, targets).tolist(), strict=True))

    recent, asked = table.column("recent").combine_chunks(), table.column("time")
    examples = []
    for n in np.concatenate(drawn):
        top, targets = lists.tops[system][n], lists.targets(n)
        place = {int(item): rank for rank, item in enumerate(top, 1) if item >= 0}
        taken = [report_page.Taken(t, place.get(int(i))) for t, i in zip(names(targets), targets, strict=True)]
        examples.append(
            report_page.Example(
                user_id=lists.user_ids[n],
                about=[_asked_at(asked[int(n)].as_py()), *_facts_of(lists, n)],
                saw=names(recent[int(n)].values.to_numpy()),
                got=listed(top, targets),
                took=sorted(taken, key=lambda item: item.rank or len(top) + 1),
                others=listed(lists.tops[other][n], targets) if other is not None and other != system else [],
            )
        )
    return examples


def _asked_at(micros: int) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=micros)
    return f"{moment:%A} {moment.day} {moment:%B %Y, %H:%M} UTC"


def _facts_of(lists: RankedLists, n: int) -> list[str]:
    """What is known of who asks and of the context, but for the time, which stands before it."""
    facts = []
    for name, values in lists.attributes.items():
        value = values[n]
        if name not in schema.TIME_CONTEXT and value is not None and value == value:
            facts.append(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}")
    return facts
