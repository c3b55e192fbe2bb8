"""Charts as inline SVG: no script, no network, colours from the page's CSS variables (light and dark)."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 760  # units of the view box; the page scales it
_CHARACTER = 6.6  # width of a character of a label, about


@dataclass(frozen=True)
class Bar:
    """A value with its interval; `kind` picks the colour: model, before, best, text, other or limit."""

    label: str
    value: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Dots:
    """A row of a dot plot: a label, a remark, and one (value, low, high, kind) a system; a heading has no dots."""

    label: str
    remark: str = ""
    dots: tuple[tuple[float, float, float, str], ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y) in order of x; `kind` picks the colour."""

    label: str
    points: tuple[tuple[float, float], ...]
    kind: str


@dataclass(frozen=True)
class Point:
    """A point with an upright interval; `kind` picks the colour."""

    x: float
    y: float
    low: float
    high: float
    kind: str


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `about` of them.

    >>> ticks(0, 0.108)
    [0.0, 0.025, 0.05, 0.075, 0.1, 0.125]
    """
    if not high > low:
        high = low + (abs(low) or 1)
    raw = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999) * scale
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def bar_chart(bars: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars with error bars; the value stands at the end of each."""
    left, right, row, top = _label_width(b.label for b in bars), 70, 34, 8
    longest = max(b.high for b in bars) or 1.0
    height = top + row * len(bars) + 28

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * value / longest

    parts = _grid([m for m in ticks(0, longest) if m <= longest], x, top=top, bottom=height - 24)
    for n, bar in enumerate(bars):
        middle = top + row * n + row / 2
        parts.append(_text(left - 10, middle, bar.label, anchor="end", kind="strong" if bar.kind == "model" else ""))
        parts.append(
            f'<rect class="bar {bar.kind}" x="{left}" y="{middle - 10:.1f}" '
            f'width="{max(x(bar.value) - left, 1):.1f}" height="20" rx="3"/>'
        )
        if bar.high > bar.low:  # what is no estimate has no interval
            parts.append(_whisker(x(bar.low), x(bar.high), middle))
        parts.append(_text(x(bar.high) + 8, middle, f"{bar.value:.4f}", kind="strong" if bar.kind == "model" else ""))
    described = "; ".join(f"{b.label} {b.value:.4f} ({b.low:.4f} to {b.high:.4f})" for b in bars)
    return _svg(height, parts, title=title, description=described)


def dot_chart(rows: Sequence[Dots], *, title: str, description: str) -> str:
    """A dot with its interval for each system in each row; rows without dots are headings. The axis holds 0."""
    labels = [r.label + "  " + r.remark for r in rows if r.dots]
    left, right, top = max(_label_width(labels or [""]), 180), 24, 8
    shortest = min((d[1] for r in rows for d in r.dots), default=0.0)
    shortest, longest = min(shortest, 0.0), max((d[2] for r in rows for d in r.dots), default=0.0)
    span = longest - shortest if longest > shortest else 1.0
    heights = [30 if not r.dots else max(28, 11 * len(r.dots) + 6) for r in rows]
    height = top + sum(heights) + 28

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - shortest) / span

    marks = [m for m in ticks(shortest, shortest + span) if shortest <= m <= shortest + span]
    parts = _grid(marks, x, top=top, bottom=height - 24)
    if shortest < 0:
        parts.append(f'<line class="boundary" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{height - 24}"/>')
    y = float(top)
    for row, size in zip(rows, heights, strict=True):
        middle = y + size / 2
        y += size
        if not row.dots:
            parts.append(_text(12, middle + 4, row.label, kind="heading"))
            continue
        label = f'{html.escape(row.label)} <tspan class="muted">{html.escape(row.remark)}</tspan>'
        parts.append(f'<text x="{left - 12}" y="{middle:.1f}" dy=".35em" text-anchor="end">{label}</text>')
        for n, (value, low, high, kind) in enumerate(row.dots):
            at = middle + 10.0 * (n - (len(row.dots) - 1) / 2)
            parts.append(f'<line class="range {kind}" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{at}" y2="{at}"/>')
            parts.append(_mark(x(value), at, kind))
    return _svg(height, parts, title=title, description=description)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    boundary: tuple[float, str] | None = None,
    from_zero: bool = False,
    dots: bool = False,
) -> str:
    """Curves over a shared x axis; `boundary` draws a labelled vertical line, `dots` marks the points."""
    width, left, top, bottom = WIDTH / 2, 52, 14, 40
    height = 250
    points = [p for line in lines for p in line.points]
    y_marks = ticks(0 if from_zero else min(p[1] for p in points), max(p[1] for p in points))
    x_marks = ticks(0, max(p[0] for p in points), about=4)
    right = 4 + _CHARACTER * len(f"{x_marks[-1]:,.10g}") / 2  # half of the last mark's label stands beyond the axis

    def x(value: float) -> float:
        return left + (width - left - right) * value / x_marks[-1]

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * (value - y_marks[0]) / (y_marks[-1] - y_marks[0])

    parts = []
    for mark in y_marks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(_text(left - 8, y(mark), f"{mark:g}", anchor="end", kind="muted"))
    for mark in x_marks:
        parts.append(_text(x(mark), height - bottom + 14, f"{mark:,.10g}", anchor="middle", kind="muted"))
    parts.append(_text((left + width - right) / 2, height - 8, x_label, anchor="middle", kind="muted"))
    if boundary is not None:
        at = x(boundary[0])
        parts.append(f'<line class="boundary" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        late = at > width / 2  # the label stands on the side that has room
        side, anchor = (-5, "end") if late else (5, "start")
        parts.append(_text(at + side, top + 6, boundary[1], anchor=anchor, kind="muted"))
    for line in lines:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        parts.append(f'<polyline class="curve {line.kind}" points="{path}"/>')
        if dots or len(line.points) == 1:
            parts += [_mark(x(px), y(py), line.kind) for px, py in line.points]
    described = "; ".join(
        f"{line.label}: from {line.points[0][1]:.4g} at {line.points[0][0]:g} to {line.points[-1][1]:.4g} at "
        f"{line.points[-1][0]:g}"
        for line in lines
    )
    return _svg(height, parts, title=title, description=described, width=width)


def reliability_chart(
    points: Sequence[Point], *, title: str, x_label: str, y_label: str, logarithmic: bool = False
) -> str:
    """Points over two axes of one scale, with the line on which both are equal; on logarithmic axes 0 is the left end."""
    size, left, top, bottom, right = WIDTH / 2, 64, 14, 40, 24
    shown = [v for p in points for v in (p.x, p.y, p.low, p.high)]
    largest = max(*shown, 1e-12)
    if logarithmic:
        least = min([v for p in points for v in (p.x, p.y) if v > 0], default=largest / 10)
        first, last = (
            math.floor(math.log10(least)),
            max(math.ceil(math.log10(largest)), math.floor(math.log10(least)) + 1),
        )
        marks = [10.0**n for n in range(first, last + 1)]

        def share(value: float) -> float:
            return (math.log10(max(value, marks[0])) - first) / (last - first)
    else:
        marks = ticks(0, min(largest, 1))

        def share(value: float) -> float:
            return value / marks[-1]

    def x(value: float) -> float:
        return left + (size - left - right) * share(value)

    def y(value: float) -> float:
        return size - bottom - (size - bottom - top) * share(value)

    parts = []
    for mark in marks:
        parts.append(f'<line class="grid" x1="{left}" x2="{size - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(_text(left - 8, y(mark), f"{mark:g}", anchor="end", kind="muted"))
        parts.append(_text(x(mark), size - bottom + 14, f"{mark:g}", anchor="middle", kind="muted"))
    ends = [(x(mark), y(mark)) for mark in (marks[0], marks[-1])]
    parts.append(_text((left + size - right) / 2, size - 8, x_label, anchor="middle", kind="muted"))
    parts.append(_text(left + 6, top + 4, y_label, kind="muted"))
    parts.append(
        f'<line class="boundary" x1="{ends[0][0]:.1f}" y1="{ends[0][1]:.1f}" x2="{ends[1][0]:.1f}" y2="{ends[1][1]:.1f}"/>'
    )
    for point in points:
        at = x(point.x)
        parts.append(
            f'<line class="range {point.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
        )
        parts.append(_mark(at, y(point.y), point.kind))
    described = "; ".join(f"{p.x:.3g} {x_label}, {p.y:.3g} {y_label}" for p in points)
    return _svg(size, parts, title=title, description=described, width=size)


def key(kind: str, *, square: bool = False) -> str:
    """The sign of a legend, in a view box from -8 to 8: a bar's colour, or the mark of a dot plot."""
    return f'<rect class="bar {kind}" x="-6" y="-6" width="12" height="12" rx="2"/>' if square else _mark(0, 0, kind)


def _svg(height: float, parts: Sequence[str], *, title: str, description: str, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(f"{title}: {description}")}">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )


def _label_width(labels: object) -> float:
    return 22 + _CHARACTER * max(len(label) for label in labels)  # type: ignore[attr-defined]


def _grid(marks: Sequence[float], x: object, *, top: float, bottom: float) -> list[str]:
    parts = []
    for mark in marks:
        at = x(mark)  # type: ignore[operator]
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 13, f"{mark:g}", anchor="middle", kind="muted"))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{html.escape(text)}</text>'


def _whisker(low: float, high: float, y: float) -> str:
    ends = "".join(f'<line x1="{e:.1f}" x2="{e:.1f}" y1="{y - 4}" y2="{y + 4}"/>' for e in (low, high))
    return f'<g class="whisker"><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>{ends}</g>'


def _mark(x: float, y: float, kind: str) -> str:
    """A disc for the model, a square for text alone and a diamond for the rest: shapes, not colours alone."""
    if kind == "model":
        return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if kind == "text":
        return f'<rect class="dot {kind}" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    return f'<path class="dot {kind}" d="M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'
