"""Full-ranking evaluation of a run next to baselines, with intervals, slices and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from ctxrec import baselines, report, runtime, schema, storage
from ctxrec.config import Config, to_toml
from ctxrec.errors import UserError
from ctxrec.events import ranges
from ctxrec.metrics import request_metrics
from ctxrec.prepared import PreparedData
from ctxrec.ranking import SPLITS, RankingPlan, check_bundles, rank_requests, ranked_lists
from ctxrec.summary import MODEL, RankedLists, summarise

logger = logging.getLogger(__name__)


def evaluate_run(
    run: str, *, split: str = "test", out: str | None = None, config: Config, data: str | None = None
) -> dict[str, Any]:
    """Rank the whole catalogue for every request of a split; write metrics.json, requests.parquet, report.html.

    Args:
        run: run folder (path or URI) of a finished training.
        split: "valid" or "test". Baselines are fitted on all events of earlier splits.
        out: folder to write to; None = the run folder.
        config: options; the `evaluate` section matters here.
        data: the prepared data, when it no longer lies where the run's manifest says.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: the run or its data is missing, the data is not what the run was trained on, or the
            split has no request.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    prepared = open_data(run, data)
    _check_split(prepared, split)
    runtime.connect()
    plan = RankingPlan.make(run, prepared, split, config)
    check_bundles(plan, prepared.items.column(schema.ITEM_ID).to_pylist())
    seconds["start"] = time.perf_counter() - started

    logger.info("fitting baselines on the events before the %s split", split)
    fitted, item_counts, notes = _fit_baselines(run, prepared, split, config)
    seconds["baselines"] = time.perf_counter() - started - sum(seconds.values())

    logger.info("ranking %s items for every %s request", f"{prepared.num_items:,}", split)
    eligible = eligible_items(prepared, item_counts)
    table = rank_requests(plan, eligible, fitted)
    if table is None:
        raise UserError(
            f"no {split} request has a target that may be recommended: all of them are in their user's history. "
            "Expected new items; set split.repeats = true in the dataset spec and prepare again"
        )
    seconds["ranking"] = time.perf_counter() - started - sum(seconds.values())

    lists = ranked_lists(table)
    metrics: dict[str, Any] = {"split": split, "requests": len(lists)}
    options = config.evaluate
    metrics |= summarise(
        lists,
        item_counts=item_counts,
        eligible=eligible,
        ks=options.ks,
        resamples=options.bootstrap,
        seed=options.seed,
    )
    seconds["intervals"] = time.perf_counter() - started - sum(seconds.values())
    metrics |= {"ablations": {}, "notes": notes, "seconds": {k: round(v, 3) for k, v in seconds.items()}}
    metrics["seconds"]["total"] = round(time.perf_counter() - started, 3)
    _write(out or run, run, prepared, config, metrics, lists, table)
    return metrics


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


def _fit_baselines(
    run: str, prepared: PreparedData, split: str, config: Config
) -> tuple[dict[str, baselines.Baseline], np.ndarray, list[str]]:
    """The baselines, the training events of each item, and notes on what was left out and why."""
    options, notes = config.evaluate, []
    matrices = prepared.num_items <= options.max_baseline_items
    if not matrices:
        notes.append(
            f"ItemKNN and EASE left out: {prepared.num_items:,} items are more than "
            f"evaluate.max_baseline_items ({options.max_baseline_items:,})"
        )
    log = baselines.gather_statistics(_training_events(prepared, split), prepared.num_items, matrices=matrices)
    fitted = baselines.fit_baselines(log, neighbours=options.knn_neighbours, ease_weight=options.ease_lambda)
    text_path = storage.join(run, "checkpoints/text.safetensors")
    if storage.exists(text_path):
        text = safetensors.numpy.load(storage.read_bytes(text_path))
        fitted[baselines.TEXT] = baselines.UntunedEncoder().fit(text["vectors"], text["present"])
    else:
        notes.append("un-tuned encoder left out: the run has no text vectors")
    for note in notes:
        logger.warning(note)
    return fitted, log.item_counts, notes


def _training_events(prepared: PreparedData, split: str) -> Iterator[baselines.TrainingEvents]:
    """The events of earlier splits, bucket by bucket."""
    for bucket in range(len(prepared.bucket_paths)):
        table = prepared.read_bucket(bucket, [schema.EVENT_ITEMS, schema.EVENT_TIMES, schema.EVENT_SPLIT])
        items, times, splits = (table.column(c).combine_chunks() for c in table.column_names)
        lengths = items.value_lengths().to_numpy(zero_copy_only=False)
        yield baselines.TrainingEvents.select(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items.flatten().to_numpy(),
            times.flatten().to_numpy(),
            splits.flatten().to_numpy() < SPLITS[split],
        )


def _write(
    out: str,
    run: str,
    prepared: PreparedData,
    config: Config,
    metrics: dict[str, Any],
    lists: RankedLists,
    table: pa.Table,
) -> None:
    """The three files of an evaluation."""
    ndcg = request_metrics(lists.tops[MODEL], lists.target_offsets, lists.target_items, [10])["ndcg@10"]
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()
    requests = pa.table(
        {
            schema.USER_ID: table.column(schema.USER_ID),
            "history_length": table.column("history_length"),
            "targets": _as_ids(lists.target_offsets, lists.target_items, item_ids),
            "recommended": _padded_ids(lists.tops[MODEL], item_ids),
            "ndcg@10": pa.array(ndcg),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(requests, sink)
    storage.write_bytes(storage.join(out, "requests.parquet"), sink.getvalue())

    page = report.render_report(
        metrics,
        facts=report.Facts.of(prepared, config),
        train_log=read_train_log(run),
        examples=_examples(prepared, lists, ndcg, table, seed=config.evaluate.seed),
        config_toml=to_toml(config),
    )
    storage.write_text(storage.join(out, "report.html"), page)
    storage.write_json(storage.join(out, "metrics.json"), metrics)


def _as_ids(offsets: np.ndarray, positions: np.ndarray, item_ids: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), item_ids.take(pa.array(positions)))


def _padded_ids(top: np.ndarray, item_ids: pa.Array) -> pa.Array:
    """Lists of ids from position lists that -1 fills up."""
    lengths = (top >= 0).sum(axis=1)
    index, offsets = ranges(np.arange(len(top)) * top.shape[1], np.arange(len(top)) * top.shape[1] + lengths)
    return _as_ids(offsets, top.ravel()[index], item_ids)


def read_train_log(run: str) -> list[dict[str, Any]]:
    """Records of the run's train_log.jsonl; none when there is no such file."""
    path = storage.join(run, "train_log.jsonl")
    return report.parse_train_log(storage.read_text(path)) if storage.exists(path) else []


def _examples(
    prepared: PreparedData, lists: RankedLists, ndcg: np.ndarray, table: pa.Table, *, seed: int
) -> list[report.Example]:
    """Three users drawn among those with a hit in the first ten, and three among the others."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(mask))[:3] for mask in (ndcg > 0, ndcg == 0)]
    titles = prepared.items.column(schema.ITEM_TITLE).combine_chunks()
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()

    def names(positions: np.ndarray) -> list[str]:
        return [titles[int(p)].as_py() or item_ids[int(p)].as_py() for p in positions]

    recent = table.column("recent").combine_chunks()
    examples = []
    for n in np.concatenate(drawn):
        got = lists.tops[MODEL][n][:10]
        got = got[got >= 0]
        examples.append(
            report.Example(
                user_id=lists.user_ids[n],
                saw=names(recent[int(n)].values.to_numpy()),
                got=list(zip(names(got), np.isin(got, lists.targets(n)).tolist(), strict=True)),
                took=names(lists.targets(n)),
            )
        )
    return examples
