"""The live table of a sweep in the terminal, and the record of all trials, from which the results are made."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray.tune

from ctxrec.core import storage

_REDRAW_S, _REPRINT_S, _WRITE_S = 1.0, 60.0, 2.0
_MOST_ROWS = 24
_STATUS = {"PENDING": "waits", "RUNNING": "runs", "PAUSED": "waits", "TERMINATED": "ended", "ERROR": "failed"}


class Board(ray.tune.Callback):
    """Shows and records the trials. Ray Tune calls it in the process of the sweep."""

    def __init__(self, record: str, *, title: str, planned: int, metric: str, mode: str) -> None:
        """Make the board.

        Args:
            record: JSON file that the trials are written to.
            title: what stands before each summary.
            planned: number of trials.
            metric: what the best trial is found by.
            mode: "max" or "min".
        """
        self.record, self.title, self.planned, self.metric = record, title, planned, metric
        self.best = max if mode == "max" else min
        self._lines, self._shown, self._written = 0, 0.0, 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._update(trials)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        self._update(trials, {trial.trial_id: result})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._update(trials, event=trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._update(trials, event=trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._write(trials)
        self._show(trials)

    def _update(self, trials: list[Any], news: dict[str, dict] | None = None, event: Any = None) -> None:
        now = time.monotonic()
        if event is not None or now - self._written > _WRITE_S:
            self._written = now
            self._write(trials, news)
        live = sys.stdout.isatty()
        if now - self._shown > (_REDRAW_S if live else _REPRINT_S):
            self._show(trials, news)
        elif event is not None and not live:
            number = trials.index(event)
            print(f"{self.title}: " + "  ".join(_row(number, _facts(event, None))), flush=True)

    def _write(self, trials: list[Any], news: dict[str, dict] | None = None) -> None:
        storage.write_json(self.record, [_facts(t, (news or {}).get(t.trial_id)) for t in trials])

    def _show(self, trials: list[Any], news: dict[str, dict] | None = None) -> None:
        self._shown = time.monotonic()
        facts = [_facts(t, (news or {}).get(t.trial_id)) for t in trials]
        lines = table(facts, title=self.title, planned=self.planned, metric=self.metric, best=self.best)
        if sys.stdout.isatty() and self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="")
        print("\n".join(lines), flush=True)
        self._lines = len(lines)


def _facts(trial: Any, result: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of a trial, as plain values. `result` is newer than the last one that the trial itself knows."""
    last = result or trial.last_result or {}
    figures = {k: v for k, v in last.items() if isinstance(v, (int, float, str)) and not k.startswith("config/")}
    figures = {k: v for k, v in figures.items() if not isinstance(v, float) or math.isfinite(v)}
    error = trial.get_error() if trial.status == "ERROR" else None
    return {
        "trial_id": trial.trial_id,
        "status": trial.status,
        "values": dict(trial.config),
        "result": figures,
        "failures": trial.run_metadata.num_failures,
        "error": reason(str(error)) if error is not None else "",
    }


def reason(error: str) -> str:
    """The line of a chain of tracebacks that says what went wrong.

    >>> reason("ray::A()\\n  File x\\nValueError: bad lr\\n\\nThe above exception was the direct cause")
    'ValueError: bad lr'
    """
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = [line for line in lines if line.split(":")[0].replace(".", "").isidentifier() and ": " in line]
    own = [line for line in said if not line.startswith(("ray.", "The above", "ray::"))]
    return (own or said or lines or ["no message"])[-1][:500]


def table(facts: Sequence[dict[str, Any]], *, title: str, planned: int, metric: str, best: Any) -> list[str]:
    """The lines of the table: a summary, then the trials that run, the best ones and the failed ones.

    Args:
        facts: what is known of each trial.
        title: what stands before the summary.
        planned: number of trials.
        metric: what the best trial is found by.
        best: `max` or `min`.
    """
    by_status = [_STATUS[f["status"]] for f in facts]
    counts = ", ".join(f"{by_status.count(s)} {s}" for s in ("runs", "ended", "failed", "waits") if s in by_status)
    known = [(n, f["result"][metric]) for n, f in enumerate(facts) if metric in f["result"]]
    top = best(known, key=lambda pair: pair[1]) if known else None
    found = f"; best {metric} {top[1]:.4f} (trial {top[0]})" if top else ""
    lines = [f"{title}: {len(facts)} of {planned} trials: {counts or 'none yet'}{found}"]
    rows = [_row(n, f, metric) for n, f in enumerate(facts)]
    if len(rows) > _MOST_ROWS:
        order = [n for n, _ in sorted(known, key=lambda pair: pair[1], reverse=best is max)]
        shown = {n for n, f in enumerate(facts) if f["status"] in ("RUNNING", "ERROR")} | set(order[:8])
        rows = [row for n, row in enumerate(rows) if n in shown][-_MOST_ROWS:]
    header = ["trial", "status", "epoch", metric, "values"]
    widths = [max(len(r[c]) for r in [header, *rows]) for c in range(4)]
    for row in [header, *rows]:
        lines.append(("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=False)) + "  " + row[4])[:160])
    return lines


def _row(number: int, facts: dict[str, Any], metric: str = "valid_ndcg@10") -> list[str]:
    result = facts["result"]
    value = f"{result[metric]:.4f}" if metric in result else "-"
    epoch = f"{result['epoch']:.1f}" if "epoch" in result else "-"
    values = " ".join(f"{key.split('.')[-1]}={_short(v)}" for key, v in facts["values"].items())
    return [str(number), _STATUS[facts["status"]], epoch, value, facts["error"] or values]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
