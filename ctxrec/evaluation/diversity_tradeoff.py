"""Cost and gain of diversity and rules: NDCG against the distance between the items of a list.

Legend: N requests, K longest list, S settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ctxrec.core.config import DiversityConfig
from ctxrec.core.errors import UserError
from ctxrec.evaluation.comparison_table import aligned
from ctxrec.evaluation.summary import SLICE_K, RankedLists
from ctxrec.evaluation.systems import MODEL, SystemMetrics
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval
from ctxrec.metrics.ranking import list_metrics, request_metrics
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.slate.mmr import mean_distance, mean_set_distance

PREFIX = "diversity="  # systems with diversified lists: a strength or the name of an option follows
CONTENT = f"distance@{SLICE_K}"  # distance of content vectors; for a categorical column, "/" and its name follow


def parse_strengths(text: str) -> tuple[float, ...]:
    """Strengths of MMR with commas between.

    Raises:
        UserError: one is not a number from 0 to 1.
    """
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (-1.0,)
    if not all(0 <= strength <= 1 for strength in found):
        raise UserError(f"--diversity is {text!r}; expected numbers from 0 to 1 with commas between, such as 0,0.3,0.7")
    return found


def settings(config: DiversityConfig, strengths: Sequence[float]) -> dict[str, DiversityConfig]:
    """Options of each system that is evaluated besides the plain model.

    Each strength gives one system. Without strengths, the options as they are give one, if they change lists at all.
    If several of caps, freshness, rules and MMR are in use, each of the first three gives a further system alone.
    """
    if not strengths and config.is_on:
        strengths = (config.strength,)
    if not strengths:
        return {}
    made = {f"{PREFIX}{s:g}": dataclasses.replace(config, strength=s) for s in sorted(set(strengths))}
    nothing = DiversityConfig()
    bare = dataclasses.replace(
        config, strength=0.0, caps=nothing.caps, freshness=nothing.freshness, rules=nothing.rules
    )
    alone = {
        part: dataclasses.replace(bare, **{part: getattr(config, part)})
        for part in ("caps", "freshness", "rules")
        if getattr(config, part)
    }
    return {f"{PREFIX}{part}": c for part, c in alone.items() if c not in made.values()} | made


def without_arranged(lists: RankedLists) -> RankedLists:
    """The lists of all other systems."""
    return dataclasses.replace(lists, tops={s: top for s, top in lists.tops.items() if not s.startswith(PREFIX)})


def tradeoff(
    lists: RankedLists, recommender: Recommender, *, eligible: np.ndarray, resamples: int, seed: int
) -> dict[str, SystemMetrics]:
    """Metrics of the model's plain lists ("model") and of the diversified lists, by the names of their systems.

    Each system has NDCG, its paired difference to the model ("ndcg@10 minus model"), the mean distance of the pairs of a
    list (by content vectors, and by the values of each categorical column), coverage and Gini.

    Args:
        lists: the lists of every system.
        recommender: the model, for vectors and columns of items.
        eligible: bool [I] items that may be recommended.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    tops = {s: top for s, top in lists.tops.items() if s == MODEL or s.startswith(PREFIX)}
    ndcg, main = {}, f"ndcg@{SLICE_K}"
    for system, top in tops.items():
        ndcg[system] = request_metrics(top, lists.target_offsets, lists.target_items, [SLICE_K])[main]
    draws = bootstrap_means(np.stack(list(ndcg.values()), 1), num=resamples, seed=seed)
    model = list(ndcg).index(MODEL)
    distances = _distances(recommender)
    found = {}
    for s, (system, top) in enumerate(tops.items()):
        entry: SystemMetrics = {main: percentile_interval(ndcg[system].mean(), draws[:, s])}
        gain = ndcg[system].mean() - ndcg[MODEL].mean()
        entry[f"{main} minus model"] = percentile_interval(gain, draws[:, s] - draws[:, model])
        for name, distance in distances.items():
            values = np.array([distance(row[:SLICE_K][row[:SLICE_K] >= 0]) for row in top])
            if not np.isnan(values).all():
                entry[name] = _mean_of_known(values, resamples=resamples, seed=seed)
        found[system] = entry | list_metrics(top, eligible, SLICE_K)
    return found


def _distances(recommender: Recommender) -> dict[str, Callable[[np.ndarray], float]]:
    """Distances by name, each a function of the positions of a list."""

    def by_values(codes_IM: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda items: mean_set_distance(codes_IM[items])

    made: dict[str, Callable[[np.ndarray], float]] = {
        CONTENT: lambda items: mean_distance(recommender.content_vectors(items))
    }
    spec = recommender.spec.items
    for column in spec.categorical if spec is not None else ():
        made[f"{CONTENT}/{column}"] = by_values(recommender.catalogue.codes(column, option="columns").codes_IM)
    return made


def _mean_of_known(values_N: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Mean over the lists with at least two items to compare, with its interval."""
    known = ~np.isnan(values_N)
    sums = np.stack([np.where(known, values_N, 0), known], 1)
    draws = bootstrap_means(sums, num=resamples, seed=seed)
    return percentile_interval(values_N[known].mean(), draws[:, 0] / np.maximum(draws[:, 1], 1e-12))


def tradeoff_rows(found: dict[str, SystemMetrics]) -> list[list[str]]:
    """Header and rows: the plain model, then single options, then each strength with all options."""
    main = f"ndcg@{SLICE_K}"
    columns = {main: "NDCG@10", f"{main} minus model": "minus plain", CONTENT: "distance"}
    columns |= {name: name.removeprefix(CONTENT + "/") for name in found[MODEL] if name.startswith(CONTENT + "/")}
    columns |= {f"coverage@{SLICE_K}": "coverage", f"gini@{SLICE_K}": "Gini"}
    made = [["lists", *columns.values()]]
    for system, entry in found.items():
        name = "plain" if system == MODEL else system.replace("=", " ")
        cells = [name]
        for column in columns:
            value = entry.get(column)
            if value is None:
                cells.append("")
            elif column.endswith("minus model"):
                wide = f"{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"
                cells.append("" if system == MODEL else wide)
            else:
                cells.append(f"{value['mean']:.4f}")
        made.append(cells)
    return made


def format_tradeoff(found: dict[str, Any]) -> str:
    """The table for a terminal."""
    title = (
        "diversity: NDCG@10 against the mean distance of the items of a list (content vectors, then values of columns)"
    )
    return "\n".join([title, *aligned(tradeoff_rows(found))])
