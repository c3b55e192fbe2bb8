"""`report.html` of a stream: who ranks best, event after event, and curves over time."""

from __future__ import annotations

from typing import Any

from ctxrec.evaluation.comparison_table import table_parts
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import details, e, finding, legend, page, paragraph, section, table
from ctxrec.evaluation.report.page import Facts
from ctxrec.evaluation.systems import MODEL, best_baseline, display_name

_KINDS = {MODEL: "model", "no_live": "before", "oracle": "limit"}


def render_stream(metrics: dict[str, Any], facts: Facts) -> str:
    """The page for the `metrics.json` of a stream (`ctxrec.evaluation.stream.stream_metrics`)."""
    title, (header, *rows), sentences = table_parts(metrics)
    lines = [(row[0], [f"<td>{e(cell)}</td>" for cell in row[1:]], row[0] == display_name(MODEL)) for row in rows]
    live = "; ".join(f"{name} {weight:.2f}" for name, weight in metrics["live"].items())
    told = f"Weights of the live sources, for a history of six events: {live}." if live else ""
    return page(
        f"{facts.name}: ctxrec stream",
        [
            f'<header><p class="kicker">ctxrec evaluation of a stream</p><h1>{e(facts.name)}</h1>'
            f'<p class="lead">{e(title)}<br>{e(facts.evaluated_at)}</p></header>\n',
            section(
                "Event after event",
                paragraph(
                    "Every test event is a request at its own time. The histories, the live sources and the moving "
                    "baselines know what came before it; the model itself stands still."
                ),
                *(finding(sentence) for sentence in sentences[:1]),
                table(["", *header[1:]], lines),
                *(paragraph(sentence) for sentence in sentences[1:]),
                paragraph(told) if told else "",
            ),
            _over_time(metrics),
            section(
                "About this evaluation",
                paragraph(f"Split: {facts.split}."),
                paragraph(
                    " · ".join(f"{name} {value:,.1f} s" for name, value in metrics["seconds"].items())
                    + f". Data fingerprint {facts.fingerprint[:16]}.",
                    muted=True,
                ),
            ),
        ],
    )


def _over_time(metrics: dict[str, Any]) -> str:
    """Curves of accuracy, of new items and of the drift, and their figures as a table."""
    found = metrics["curves"]
    hours = found["hours"]
    wanted = (MODEL, "no_live", best_baseline(metrics) or "", "oracle")
    shown = [system for system in wanted if system in found["ndcg@10"]]
    accuracy = [
        charts.Line(display_name(s), tuple(zip(hours, found["ndcg@10"][s], strict=True)), _KINDS.get(s, "best"))
        for s in shown
    ]
    moves = [charts.Line("targets that are new items", tuple(zip(hours, found["new_items"], strict=True)), "model")]
    drift = tuple((at, value) for at, value in zip(hours, found["drift"], strict=True) if value is not None)
    moves += [charts.Line("drift of the log", drift, "best")] if drift else []
    figures = []
    for lines, title in ((accuracy, "NDCG@10"), (moves, "New items and drift")):
        made = charts.line_chart(lines, title=title, x_label="hours since the first request", from_zero=True, dots=True)
        key = legend([(line.kind, line.label) for line in lines])
        figures.append(f"<figure><figcaption>{title}</figcaption>{key}{made}</figure>")
    rows = [
        (
            f"{at:.1f}",
            [f"<td>{num:,}</td>", *(f"<td>{found['ndcg@10'][s][n]:.4f}</td>" for s in shown)]
            + [f"<td>{found['new_items'][n]:.3f}</td>", f"<td>{_number(found['drift'][n])}</td>"],
            False,
        )
        for n, (at, num) in enumerate(zip(hours, found["requests"], strict=True))
    ]
    names = ["hours", "requests", *map(display_name, shown), "new items", "drift"]
    return section(
        "Over time",
        paragraph(
            "Each point is a span of equally many requests. Drift is the total variation distance between the items of a "
            "span and those of the span before: 0 is a log that stands still."
        ),
        f'<div class="figures">{"".join(figures)}</div>',
        details("The figures of the curves", table(names, rows)),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
