"""Small parts that the sections of `report.html` share: escaped text, tables, legends, numbers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.style import STYLE
from ctxrec.evaluation.systems import FROZEN, MODEL, ORACLES, TUNED, SystemMetrics, display_name
from ctxrec.metrics.intervals import Interval

Row = tuple[str, Sequence[str], bool]  # name, finished cells, whether the row is highlighted


def page(title: str, sections: Sequence[str], *, style: str = "") -> str:
    """A whole page; `style` is added to the common style sheet."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{e(title)}</title><style>{STYLE}{style}</style></head>\n'
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def e(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def percent(share: float, *, signed: bool = False) -> str:
    """A share in per cent; what rounds to nothing has no sign.

    >>> percent(0.125, signed=True), percent(-0.0001)
    ('+12.5 %', '0.0 %')
    """
    value = round(100 * share, 1) or 0.0
    return f"{value:+.1f} %" if signed and value else f"{value:.1f} %"


def number(metric: str, value: float) -> str:
    """A metric's value as text: counts without decimals, shares with four."""
    if metric.startswith("popularity"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if metric.startswith("novelty") else f"{value:.4f}"


def interval_cell(metric: str, value: Interval) -> str:
    """A table cell with a mean and its interval below."""
    low, high = number(metric, value["low"]), number(metric, value["high"])
    return f'<td>{number(metric, value["mean"])}<span class="interval">{low} – {high}</span></td>'


def gain_cell(gain: Interval) -> str:
    """A table cell with a difference and its interval, both with their sign."""
    return f'<td>{gain["mean"]:+.4f}<span class="interval">{gain["low"]:+.4f} – {gain["high"]:+.4f}</span></td>'


def table(header: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that scrolls inside the page where it is wide."""
    head = "".join(f'<th scope="col">{e(h)}</th>' if h else "<td></td>" for h in header)
    body = "".join(
        f'<tr{" class=model" if marked else ""}><th scope="row">{e(label)}</th>{"".join(cells)}</tr>'
        for label, cells, marked in rows
    )
    # Focusable, so that a wide table can be scrolled from the keyboard.
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(entries: Sequence[tuple[str, str]], *, squares: bool = False) -> str:
    """(kind, text) of each colour or mark."""
    items = "".join(
        f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true">{charts.key(kind, square=squares)}</svg>{e(text)}</li>'
        for kind, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def kind(system: str, best: str | None) -> str:
    """The colour of a system's bar."""
    if system == MODEL:
        return system
    if system in (FROZEN, TUNED):
        return "before"
    if system in ORACLES:
        return "limit"
    return "best" if system == best else "other"


def bar(system: str, values: SystemMetrics, of_kind: str, metric: str = "ndcg@10") -> charts.Bar:
    """One bar of a chart: a system's value with its interval."""
    value = values[metric]
    return charts.Bar(display_name(system), value["mean"], value["low"], value["high"], of_kind)


def section(title: str, *parts: str) -> str:
    """A section of the page; `parts` are HTML already."""
    return f"<section><h2>{e(title)}</h2>{''.join(parts)}</section>\n"


def paragraph(text: str, *, muted: bool = False) -> str:
    """A paragraph; `text` is escaped."""
    return f'<p class="muted">{e(text)}</p>' if muted else f"<p>{e(text)}</p>"


def finding(text: str) -> str:
    """The most important sentence of a section."""
    return f'<p class="finding">{e(text)}</p>'


def chart(svg: str) -> str:
    """A frame around an SVG."""
    return f'<div class="chart">{svg}</div>'


def details(summary: str, inner: str) -> str:
    """A part of the page that opens on a click; `inner` is HTML already."""
    return f"<details><summary>{e(summary)}</summary>{inner}</details>"
