"""`ctxrec evaluate --stream`: from a run to `metrics.json` and `report.html` of a stream."""

from __future__ import annotations

import logging
from typing import Any

from ctxrec.core import storage
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.datasets.best_possible import load_oracles
from ctxrec.evaluation.offline import check_split, eligible_items, open_data
from ctxrec.evaluation.report.page import Facts
from ctxrec.evaluation.report.stream_page import render_stream
from ctxrec.evaluation.stream import item_counts_before, stream_metrics
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.recommender import Recommender

logger = logging.getLogger(__name__)


def evaluate_stream(
    run: str | None,
    *,
    split: str = "test",
    out: str | None = None,
    config: Config,
    data: str | None = None,
    delay_s: float = 0.0,
    oracle: str | None = None,
) -> dict[str, Any]:
    """Ask the model for every event of a split at its own time, beside baselines that move too.

    Args:
        run: run folder (path or URI) of a finished training; None: baselines alone, on `data`.
        split: "valid" or "test". The model knows the events before the split alone.
        out: folder for metrics.json and report.html; None: nothing is written.
        config: options; the `evaluate` section matters here.
        data: the prepared data, when it no longer lies where the run's manifest says.
        delay_s: how late an event becomes known, seconds, 0 or more.
        oracle: folder of a simulated log, whose true preferences are ranked beside the model.

    Returns:
        What metrics.json holds (`ctxrec.evaluation.stream.stream_metrics`).

    Raises:
        UserError: the run or its data is missing, the split has no event, or the times of the log are no clock's.
    """
    assert run is not None or data is not None
    if not 0 <= delay_s < float("inf"):
        raise UserError(f"--delay is {delay_s}; expected seconds, 0 or more")
    prepared = open_data(run, data) if run is not None else PreparedData.open(data or "")
    check_split(prepared, split)
    if not prepared.features.clock:
        raise UserError(
            f"the times of {prepared.path} are positions; expected those of a clock, as a stream needs. Evaluate without --stream"
        )
    best = load_oracles(oracle, prepared) if oracle is not None else {}
    counts = item_counts_before(prepared, split)
    metrics = stream_metrics(
        prepared,
        split,
        None if run is None else _model(run, prepared, split),
        config,
        eligible=eligible_items(prepared, counts),
        item_counts=counts,
        delay_s=delay_s,
        others={name: best[name] for name in ("oracle",) if name in best},
    )
    if out is not None:
        storage.write_text(RunPaths(out).report, render_stream(metrics, Facts.of(prepared, config)))
        storage.write_json(RunPaths(out).metrics, metrics)
    return metrics


def _model(run: str, prepared: PreparedData, split: str) -> Recommender:
    if split == "valid":
        return recommender_before_validation(run, prepared)
    return load_recommender(RunPaths(run).bundle)
