"""The second stage in an evaluation: its gain on the retriever's ranking, and its time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctxrec.core.stopwatch import Stopwatch
from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import split_requests
from ctxrec.evaluation.comparison_table import verdict
from ctxrec.evaluation.ranking_plan import RankingPlan
from ctxrec.evaluation.summary import SLICE_K
from ctxrec.evaluation.systems import MODEL, SystemMetrics
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.reranker_files import load_reranker
from ctxrec.retrieval.retriever import Retriever, load_retriever

RERANK = "rerank"  # its key in metrics.json
_TIMED, _WARM_UP = 20, 3  # requests, asked one by one


def measure_second_stage(plan: RankingPlan, prepared: PreparedData, paired: SystemMetrics) -> dict[str, Any]:
    """Gain and time of a plan's second stage.

    Args:
        plan: one with a reranker.
        prepared: the data of the plan.
        paired: the model minus the re-ranked model, by metric.

    Returns:
        "weight" and "candidates" of the second stage, its "validation" gain, the "gain" in NDCG@10 on the evaluated
        requests with its interval, and "latency_ms" of a request alone: of the "retriever", and of the second stage.
    """
    assert plan.reranker is not None
    retriever = load_retriever(plan.bundles[MODEL])
    second = load_reranker(plan.reranker, model_version=retriever.recommender.model_version)
    retriever.reranker, retriever.reranks = second, True
    less = paired[f"ndcg@{SLICE_K}"]
    return {
        "weight": second.weight,
        "candidates": second.candidates,
        "validation": second.gain,
        "gain": {"mean": -less["mean"], "low": -less["high"], "high": -less["low"], "p": less["p"]},
        "latency_ms": _latency_ms(retriever, plan, prepared),
    }


def _latency_ms(
    retriever: Retriever[Recommender], plan: RankingPlan, prepared: PreparedData
) -> dict[str, dict[str, float]]:
    """Milliseconds of the two stages for one request at a time, in this process: median and 95th percentile."""
    watches: list[dict[str, float]] = []
    for bucket in range(plan.num_buckets):
        histories = histories_from_table(prepared.read_bucket(bucket), prepared.features)
        requests = split_requests(histories, plan.split, repeats=prepared.spec.split.repeats)
        for n in range(min(len(requests), _WARM_UP + _TIMED - len(watches))):
            watch = Stopwatch()
            retriever.top_k(requests.take(np.array([n])), SLICE_K, watch=watch)
            watches.append(watch.seconds)
    timed = watches[_WARM_UP:] or watches
    first = np.array([w["tower"] + w["memory"] + w["search"] for w in timed]) * 1000
    second = np.array([w["rerank"] for w in timed]) * 1000
    return {
        name: {"median": round(float(np.median(ms)), 2), "p95": round(float(np.percentile(ms, 95)), 2)}
        for name, ms in (("retriever", first), (RERANK, second))
    }


def describe_second_stage(facts: dict[str, Any]) -> str:
    """The figures of `measure_second_stage` in one line for people."""
    gain, took = facts["gain"], facts["latency_ms"]
    if facts["weight"] == 0:
        return (
            "the second stage gained nothing on validation requests, so it has weight 0 and does not change the order"
        )
    return (
        f"the second stage adds NDCG@{SLICE_K} {gain['mean']:+.4f} to the model (95 % interval {gain['low']:+.4f} to "
        f"{gain['high']:+.4f}, same users): {verdict(gain)}; one request alone takes it {took[RERANK]['median']:.0f} ms "
        f"for {facts['candidates']} candidates (95 % of requests: {took[RERANK]['p95']:.0f} ms or less) on top of the "
        f"retriever's {took['retriever']['median']:.0f} ms"
    )
