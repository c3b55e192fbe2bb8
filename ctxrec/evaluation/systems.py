"""The systems that an evaluation ranks: their keys in `metrics.json`, their roles, and their names for people."""

from __future__ import annotations

from typing import Any

from ctxrec.metrics.intervals import Interval

MODEL, RERANKED = "model", "reranked"
# The model before and after its encoder was tuned, both refitted or neither: they differ in the encoder's phase alone.
FROZEN, TUNED = "frozen", "tuned"
TUNED_MINUS_FROZEN = "tuned_minus_frozen"  # a paired difference of these two
ABLATIONS = ("text_only", "id_only", "no_context", "frozen_encoder", "no_live")
SHUFFLED, SHUFFLED_SAME_TIME = "shuffled_context", "shuffled_context_same_time"
# These know the true preferences of a simulated log. They are upper bounds and no competitors.
ORACLES = ("oracle", "oracle_of_log", "oracle_no_context")
TEXT, ENSEMBLE = "untuned_encoder", "ensemble"
OTHER_RUN = "run/"  # before the name of another run that is ranked beside this one

SystemMetrics = dict[str, Interval]

NAMES = {
    MODEL: "ctxrec",
    FROZEN: "ctxrec, frozen encoder, not refitted",
    TUNED: "ctxrec, tuned encoder, not refitted",
    RERANKED: "ctxrec, re-ranked",
    SHUFFLED: "ctxrec, shuffled context",
    SHUFFLED_SAME_TIME: "ctxrec, shuffled context, same time",
    "text_only": "ctxrec, text only",
    "id_only": "ctxrec, IDs only",
    "no_context": "ctxrec, no context",
    "frozen_encoder": "ctxrec, encoder not tuned",
    "no_live": "ctxrec, no live sources",
    "popularity": "popularity",
    "popularity_7d": "popularity, last 7 days",
    "popularity_1h": "popularity, last hour, moving",
    "popularity_1d": "popularity, last day, moving",
    "popularity_1w": "popularity, last week, moving",
    "followers_live": "followers in the session, moving",
    "markov": "Markov chain",
    "markov10": "Markov chain of the last 10 items",
    "log_popularity": "logarithm of popularity",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "als": "ALS",
    "sasrec": "SASRec",
    TEXT: "un-tuned encoder, text only",
    ENSEMBLE: "linear ensemble",
    "oracle": "best possible (simulation)",
    "oracle_of_log": "best possible by the log",
    "oracle_no_context": "best possible without context",
}


def display_name(system: str) -> str:
    """The name of a system for people.

    >>> display_name("ease"), display_name("my_baseline"), display_name("run/quick model")
    ('EASE', 'my_baseline', 'quick model')
    """
    return NAMES.get(system, system.removeprefix(OTHER_RUN))


def best_baseline(metrics: dict[str, Any], metric: str = "ndcg@10") -> str | None:
    """Name of the baseline with the highest mean; None without baselines. Oracles do not count."""
    baselines = {name: values for name, values in metrics["baselines"].items() if name not in ORACLES}
    return max(baselines, key=lambda name: baselines[name][metric]["mean"]) if baselines else None


def focus(metrics: dict[str, Any]) -> str:
    """The system that a report is about: the model, or the best baseline where there is no model."""
    return MODEL if metrics[MODEL] else best_baseline(metrics) or next(iter(metrics["baselines"]))


def _apart(metrics: dict[str, Any]) -> tuple[str, ...]:
    """Of the frozen and the tuned encoder those that are systems of their own: not the model itself, and no ablation."""
    return tuple(name for name in (FROZEN, TUNED) if metrics.get("encoder", {}).get(name) == name)


def ranked_systems(metrics: dict[str, Any], metric: str = "ndcg@10") -> list[tuple[str, SystemMetrics]]:
    """(system, its metrics) of everything that ranked the requests with their own context, best first."""
    alone = {name: metrics.get(name, {}) for name in (MODEL, *_apart(metrics), RERANKED)}
    systems = {**alone, **metrics["ablations"], **metrics.get("other_runs", {}), **metrics["baselines"]}
    return sorted(((s, m) for s, m in systems.items() if m), key=lambda pair: -pair[1][metric]["mean"])
