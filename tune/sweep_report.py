"""The `report.html` of a sweep: what was found, how the trials learned, what mattered, what early stopping saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import chart, details, e, finding, legend, page, paragraph, percent, section, table
from tune.parallel import parallel_coordinates
from tune.sweep_options import Sweep

Rows = Sequence[dict[str, Any]]

_STYLE = """
.axis { stroke: var(--rule); stroke-width: 1.5; }
.thread { fill: none; stroke: var(--other); stroke-width: 1.2; opacity: .55; }
.thread.good { stroke: var(--before); stroke-width: 1.6; opacity: .9; }
.thread.best { stroke: var(--model); stroke-width: 3; opacity: 1; }
.chart .curve.other, .figures .curve.other { stroke-width: 1.2; opacity: .7; }
.alone svg { max-width: 620px; min-width: 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); }
td.words, .errors thead th { text-align: left; overflow-wrap: anywhere; }
"""


def render(name: str, rows: Rows, summary: dict[str, Any], plan: Sweep, importance: dict[str, float]) -> str:
    """The page as HTML.

    Args:
        name: name of the sweep.
        rows: as `tune.sweep_results.collect` returns them.
        summary: as `tune.sweep_results.summarise` returns it.
        plan: the sweep.
        importance: as `tune.findings.importance` returns it.
    """
    parts = [
        _head(name, summary),
        _values(summary, plan),
        _curves(rows, summary),
        _coordinates(rows, summary, plan),
        _importance(importance),
        _front(rows, summary, plan),
        _saving(summary),
        _trials(rows, summary, plan),
    ]
    return page(f"{name}: sweep", parts, style=_STYLE)


def _head(name: str, summary: dict[str, Any]) -> str:
    best, default = summary["best"], summary["default"]
    gain = "" if default is None else f"The options as they were reach {default:.4f}"
    if default and best["value"] > default:
        gain += f"; the best is {percent(best['value'] / default - 1, signed=True)} from there"
    tiles = [
        (f"best {summary['metric']}", f"{best['value']:.4f}", f"trial {best['number']}"),
        ("the options as they were", "–" if default is None else f"{default:.4f}", "first trial"),
        ("trials", str(summary["trials"]), _counts(summary)),
        ("epochs run", percent(summary["share_of_epochs"]), f"{summary['epochs']:.0f} of {summary['epochs_to_the_end']:.0f}"),
        ("time", _hours(summary["hours"]), f"{summary['gpu_hours']:.2f} GPU-hours" if summary["gpu_hours"] else "no GPU"),
    ]  # fmt: skip
    cells = "".join(
        f'<div class="tile"><div class="tile-name">{e(n)}</div><div class="tile-value">{e(v)}</div>'
        f'<div class="muted">{e(more)}</div></div>'
        for n, v, more in tiles
    )
    said = f'<p class="lead">{e(gain)}.</p>' if gain else ""
    return f'<p class="kicker">ctxrec sweep</p><h1>{e(name)}</h1>{said}<div class="tiles">{cells}</div>'


def _counts(summary: dict[str, Any]) -> str:
    words = {"finished": "to the end", "stopped": "stopped early", "failed": "failed"}
    return ", ".join(f"{summary[k]} {w}" for k, w in words.items() if summary[k])


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _values(summary: dict[str, Any], plan: Sweep) -> str:
    best = summary["best"]["values"]
    own = summary["as_they_were"]
    rows = [
        (p.key, [f"<td>{e(_short(own[p.key]))}</td>", f"<td>{e(_short(best[p.key]))}</td>"], False) for p in plan.space
    ]
    return section(
        "The best options",
        paragraph("The complete options are in best.toml, which ctxrec train --config takes."),
        table(["option", "as it was", "best"], rows),
    )


def _curves(rows: Rows, summary: dict[str, Any]) -> str:
    lines, best = [], summary["best"]["number"]
    for row in sorted(rows, key=lambda r: (r["number"] == best, r["status"] == "finished")):
        kind = "model" if row["number"] == best else "before" if row["status"] == "finished" else "other"
        points = tuple(row["curve"])
        if points:
            lines.append(charts.Line(f"trial {row['number']}", points, kind))
    if not lines:
        return ""
    figure = charts.line_chart(lines, title="Validation NDCG@10 of every trial", x_label="epoch")
    return section(
        "Learning curves",
        paragraph("The best validation NDCG@10 so far, by epoch. A line that ends early is a trial that was stopped."),
        legend([("model", "best"), ("before", "run to the end"), ("other", "stopped early or failed")], squares=True),
        f'<div class="alone">{figure}</div>',
    )


def _coordinates(rows: Rows, summary: dict[str, Any], plan: Sweep) -> str:
    metric = summary["metric"]
    known = [r for r in rows if metric in r["result"]]
    if len(known) < 2:
        return ""
    picture = parallel_coordinates(
        [(r["values"], r["result"][metric]) for r in known],
        [p.key for p in plan.space],
        logs={p.key for p in plan.space if p.log},
        metric=metric,
        best=next(n for n, r in enumerate(known) if r["number"] == summary["best"]["number"]),
        higher_is_better=plan.options.mode[0] == "max",
    )
    told = "Each line is a trial, from its values to its result. The best trial is thick; the best quarter is tinted."
    return section("Parallel coordinates", paragraph(told), chart(picture))


def _importance(importance: dict[str, float]) -> str:
    if not importance:
        return section("What mattered", paragraph("There are too few trials to say which option mattered.", muted=True))
    bars = [
        charts.Bar(key, share, share, share, "model" if n == 0 else "before")
        for n, (key, share) in enumerate(importance.items())
    ]
    top = next(iter(importance))
    told = (
        "The share of each option in what sets the better trials apart (PED-ANOVA, Watanabe et al. 2023, "
        "arXiv:2304.10255). Trials that were stopped early count with the value that they had reached."
    )
    return section(
        "What mattered",
        finding(f"{top} mattered most."),
        paragraph(told),
        chart(charts.bar_chart(bars, title="Importance")),
    )


def _front(rows: Rows, summary: dict[str, Any], plan: Sweep) -> str:
    """The Pareto front where several metrics were optimised."""
    metrics = plan.options.metric
    if len(metrics) < 2:
        return ""
    front = set(summary["front"])
    body = [
        (
            f"trial {r['number']}",
            [f"<td>{_short(r['result'][m])}</td>" for m in metrics],
            r["number"] == summary["best"]["number"],
        )
        for r in rows
        if r["number"] in front
    ]
    told = "No other trial is better than one of these in every metric."
    return section("Pareto front", paragraph(told), table(["trial", *metrics], body))


def _saving(summary: dict[str, Any]) -> str:
    done, whole = summary["epochs"], summary["epochs_to_the_end"]
    told = (
        f"The trials took {done:.0f} epochs. To their end they would have taken at most {whole:.0f} epochs of about "
        f"{summary['seconds_per_epoch']:.1f} s, so {_hours(max(whole - done, 0) * summary['seconds_per_epoch'] / 3600)} of training was saved."
    )
    return section(
        "Saved by early stopping",
        finding(f"{percent(1 - summary['share_of_epochs'])} of the epochs were not run."),
        paragraph(told),
    )


def _trials(rows: Rows, summary: dict[str, Any], plan: Sweep) -> str:
    keys = [p.key for p in plan.space]
    body = []
    for row in rows:
        value = row["result"].get(summary["metric"])
        cells = [
            f"<td>{e(row['status'])}</td>",
            f"<td>{row['epochs']:.1f}</td>",
            "<td>–</td>" if value is None else f"<td>{value:.4f}</td>",
        ]
        cells += [f"<td>{e(_short(row['values'].get(k)))}</td>" for k in keys]
        name = f"{row['number']}" if row["stage"] == "full" else f"{row['number']} ({row['stage']})"
        body.append((name, cells, row["number"] == summary["best"]["number"]))
    header = ["trial", "status", "epochs", summary["metric"], *(k.split(".")[-1] for k in keys)]
    failed = [(f"trial {r['number']}", [f'<td class="words">{e(r["error"])}</td>'], False) for r in rows if r["error"]]
    errors = f'<div class="errors">{table(["failed", "why"], failed)}</div>' if failed else ""
    return section("Trials", errors, details(f"All {len(rows)} trials", table(header, body)))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
