"""The results of a benchmark: seeds pooled into one row for each data set, and the table for people.

Legend: N requests, S seeds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import RunPaths
from ctxrec.evaluation.systems import ABLATIONS, FROZEN, MODEL, ORACLES, SHUFFLED, display_name
from ctxrec.metrics.intervals import Interval, bootstrap_means, percentile_interval

METRIC = "ndcg@10"
RESAMPLES = 2000
SLICES = ("cold_items", "held_out_items", "cold_among_cold", "new_users")


class FailureLike(Protocol):
    """Where and why a step failed."""

    @property
    def step(self) -> str: ...

    @property
    def seed(self) -> int | None: ...

    @property
    def message(self) -> str: ...


def dataset_row(label: str, folder: str, runs: dict[int, str], failures: Sequence[FailureLike]) -> dict[str, Any]:
    """The row of a data set in results.json; what does not exist is empty.

    Args:
        label: name of the data set in the table.
        folder: folder of the data set; its prepared data is in `data`.
        runs: evaluated run of each seed.
        failures: steps of the data set that failed.
    """
    made: dict[str, Any] = {"label": label, "seeds": sorted(runs), "failures": [dict(vars(f)) for f in failures]}
    meta = os.path.join(folder, "data", schema.META)
    if os.path.exists(meta):
        facts = storage.read_json(meta)
        made |= {"counts": facts["counts"], "split": facts["spec"]["split"]}
    if not runs:
        return made
    metrics = [storage.read_json(RunPaths(run).metrics) for _, run in sorted(runs.items())]
    values = [request_values(run) for _, run in sorted(runs.items())]
    manifests = [read_run_manifest(run) for _, run in sorted(runs.items())]
    minutes = [m["train_seconds"] / 60 for m in manifests if "train_seconds" in m]
    systems = pooled_means(metrics)
    made |= {
        "requests": metrics[0]["requests"],
        "systems": systems,
        "model": pooled([v[MODEL] for v in values]) if all(MODEL in v for v in values) else None,
        **against_best(systems, values),
        "context_drop": _mean([m.get(SHUFFLED, {}).get("drop", {}).get("mean") for m in metrics]),
        "slices": {name: pooled_slice([m.get("slices", {}).get(name, {}) for m in metrics]) for name in SLICES},
        "train_minutes": _mean(minutes),
    }
    return made


def request_values(run: str) -> dict[str, np.ndarray]:
    """NDCG@10 of every request (float [N]) of each system, requests in the order of their users."""
    table = pq.read_table(RunPaths(run).requests).sort_by("user_id")
    prefix = f"{METRIC}/"
    return {n.removeprefix(prefix): table[n].to_numpy() for n in table.column_names if n.startswith(prefix)}


def _systems(metrics: dict[str, Any]) -> dict[str, dict[str, Interval]]:
    """Every system of a metrics.json (or of a slice) that has metrics."""
    alone = {name: metrics.get(name, {}) for name in (MODEL, FROZEN, SHUFFLED)}
    found = {**alone, **metrics.get("ablations", {}), **metrics.get("baselines", {})}
    return {name: values for name, values in found.items() if METRIC in values}


def pooled_means(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean NDCG@10 of each system over the seeds that have it."""
    found = [_systems(m) for m in metrics]
    names = list(dict.fromkeys(name for systems in found for name in systems))
    return {name: float(np.mean([s[name][METRIC]["mean"] for s in found if name in s])) for name in names}


def pooled(values: Sequence[np.ndarray]) -> Interval:
    """Mean over seeds and requests, with a 95 % interval that contains the chance of both.

    A resample draws requests, the same for all seeds (they are the same users), and seeds, both with replacement.

    Args:
        values: float [N] of each seed, requests in the same order.
    """
    values_NS = np.stack(values, axis=1)
    resampled = bootstrap_means(values_NS, num=RESAMPLES, seed=0)
    drawn = np.random.default_rng(0).integers(values_NS.shape[1], size=resampled.shape)
    return percentile_interval(values_NS.mean(), np.take_along_axis(resampled, drawn, axis=1).mean(axis=1))


def against_best(systems: dict[str, float], values: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The best single baseline by its mean over the seeds, and the paired difference to it."""
    outside = {MODEL, FROZEN, SHUFFLED, "ensemble", *ABLATIONS, *ORACLES}
    single = {name: mean for name, mean in systems.items() if name not in outside}
    best = max(single, key=lambda name: single[name]) if single else None
    found: dict[str, Any] = {"best_baseline": best, "gain": None, "ensemble_gain": None}
    for key, name in (("gain", best), ("ensemble_gain", "ensemble")):
        pairs = [v[MODEL] - v[name] for v in values if MODEL in v and name in v]
        if name is not None and pairs:
            found[key] = pooled(pairs) | {"share": _share(float(np.mean(pairs)), systems[name])}
    return found


def _share(difference: float, of: float) -> float | None:
    return difference / of if of > 0 else None


def pooled_slice(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Requests of a slice and the means of its systems over the seeds."""
    return {"requests": max((s.get("requests", 0) for s in slices), default=0), "systems": pooled_means(slices)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; a column that is empty everywhere is left out."""
    header = ["data set", "requests", "ctxrec", "best single baseline", "gain over it", "linear ensemble"]
    header += [
        "gain over the ensemble",
        "SASRec",
        "encoder frozen, all else equal",
        "text only",
        "IDs only",
        "no context",
        "encoder frozen",
        "shuffled context",
        "cold items (un-tuned text)",
    ]
    header += ["new users (popularity 7 d)", "best possible (by the log, without context)", "minutes to train"]
    rows = [_cells(made, len(results["seeds"])) for made in results["datasets"]]
    kept = [c for c in range(len(header)) if c < 5 or any(cells[c] for cells in rows)]
    return [header[c] for c in kept], [[cells[c] for c in kept] for cells in rows]


def _cells(made: dict[str, Any], num_seeds: int) -> list[str]:
    systems = made.get("systems", {})
    best = made.get("best_baseline")
    slices = made.get("slices", {})
    done = len(made.get("seeds", []))
    label = made["label"] if done in (0, num_seeds) else f"{made['label']} ({done} of {num_seeds} seeds)"
    cells = [label, f"{made['requests']:,}" if "requests" in made else "", _interval(made.get("model"))]
    cells += [f"{display_name(best)} {_number(systems.get(best))}" if best else "", _gain(made.get("gain"))]
    cells += [_number(systems.get("ensemble")), _gain(made.get("ensemble_gain"))]
    cells += [_number(systems.get(name)) for name in ("sasrec", FROZEN, *ABLATIONS)]
    drop = made.get("context_drop")
    cells.append("" if drop is None else f"{round(-100 * drop, 1) or 0.0:+.1f} %")
    cells.append(_with_others(slices.get("cold_items"), MODEL, "untuned_encoder"))
    cells.append(_with_others(slices.get("new_users"), MODEL, "popularity_7d"))
    cells.append(_with_others({"systems": systems}, *ORACLES))
    minutes = made.get("train_minutes")
    cells.append("" if minutes is None else f"{minutes:.1f}")
    if made["failures"]:
        cells[2] = f"{cells[2]} (failed: {', '.join(failed_step(f) for f in made['failures'])})".strip()
    return cells


def failed_step(failure: dict[str, Any]) -> str:
    """The step that failed, and its seed where it has one."""
    return failure["step"] + ("" if failure["seed"] is None else f" of seed {failure['seed']}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f})"


def _gain(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    share = "" if value["share"] is None else f"{100 * value['share']:+.1f} %: "
    return f"{share}{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"


def _with_others(part: dict[str, Any] | None, first: str, *others: str) -> str:
    systems = (part or {}).get("systems", {})
    if first not in systems:
        return ""
    found = ", ".join(_number(systems[name]) for name in others if name in systems)
    return _number(systems[first]) + (f" ({found})" if found else "")


def about(results: dict[str, Any]) -> str:
    """How to read the table, in a few sentences."""
    seeds = results["seeds"]
    return (
        f"NDCG@10, full ranking, mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; in brackets 95 % intervals "
        "(bootstrap over requests and seeds). A gain is the paired difference on the same requests. "
        "Shuffled context: change of NDCG@10 when requests swap their contexts. Minutes to train: one run."
    )


def markdown(results: dict[str, Any]) -> str:
    """The table as Markdown, and below it the steps that failed."""
    header, rows = table_rows(results)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]
    lines += ["", about(results), ""]
    for made in results["datasets"]:
        for failure in made["failures"]:
            lines.append(f"- {made['label']}: {failed_step(failure)} failed: {failure['message']}")
    return "\n".join(lines).rstrip() + "\n"
