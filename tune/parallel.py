"""Parallel coordinates as inline SVG: an axis for each option and for the result, a line for each trial."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 980, 360, 30, 46
_SIDE = 56


def parallel_coordinates(
    trials: Sequence[tuple[dict[str, Any], float]],
    keys: Sequence[str],
    *,
    logs: set[str],
    metric: str,
    best: int,
    higher_is_better: bool,
) -> str:
    """An SVG element with the trials of a sweep.

    Args:
        trials: the values by key and the result of each trial.
        keys: the axes from left to right. The last axis is the result.
        logs: keys whose axes are logarithmic.
        metric: name of the result.
        best: position of the best trial.
        higher_is_better: whether a higher result is better.
    """
    columns = [[values[key] for values, _ in trials] for key in keys] + [[result for _, result in trials]]
    axes = [_Axis(column, log=key in logs) for column, key in zip(columns, [*keys, metric], strict=True)]
    gap = (_WIDTH - 2 * _SIDE) / max(len(axes) - 1, 1)
    parts = []
    order = sorted(range(len(trials)), key=lambda n: trials[n][1], reverse=higher_is_better)
    good = set(order[: max(len(order) // 4, 1)])
    for n in sorted(range(len(trials)), key=lambda n: (n == best, n in good)):
        points = " ".join(f"{_SIDE + gap * a:.1f},{axis.place(columns[a][n]):.1f}" for a, axis in enumerate(axes))
        kind = " best" if n == best else " good" if n in good else ""
        parts.append(
            f'<polyline class="thread{kind}" points="{points}"><title>trial with {trials[n][1]:.4f}</title></polyline>'
        )
    for a, (axis, key) in enumerate(zip(axes, [*keys, metric], strict=True)):
        x = _SIDE + gap * a
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts += [
            _text(x, axis.place(value) - (7 if n else -9), _label(value), "muted") for n, value in enumerate(axis.marks)
        ]
        low = a % 2  # names in two rows, so that neighbours do not touch
        parts.append(_text(x, _HEIGHT - 22 + 13 * low, key.split(".")[-1], "strong"))
    described = f"{len(trials)} trials over {', '.join(keys)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(described)}">{"".join(parts)}</svg>'
    )


class _Axis:
    """Where the values of one column are, from the bottom up. Values that are not numbers are evenly spaced."""

    def __init__(self, values: Sequence[Any], *, log: bool) -> None:
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        distinct: list[Any] = sorted(set(values)) if numbers else sorted(set(map(str, values)))
        self._log, self._names = log, None if numbers else distinct
        if numbers:
            self.marks = [distinct[0], distinct[-1]] if len(distinct) > 1 else distinct
            ends = [self._scaled(distinct[0]), self._scaled(distinct[-1])]
        else:
            self.marks, ends = distinct, [0.0, float(len(distinct) - 1)]
        self._low, self._span = ends[0], (ends[1] - ends[0]) or 1.0

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else float(value)

    def place(self, value: Any) -> float:
        """The y coordinate of a value."""
        at = self._scaled(value) if self._names is None else float(self._names.index(str(value)))
        share = (at - self._low) / self._span
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:14]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="middle">{html.escape(text)}</text>'
