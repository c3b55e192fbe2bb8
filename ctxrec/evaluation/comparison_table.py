"""The table of an evaluation for a terminal, with a sentence for each comparison that matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxrec.evaluation.encoder_comparison import encoder_sentence
from ctxrec.evaluation.feedback_metrics import sentences
from ctxrec.evaluation.slices import COLD_AMONG_COLD
from ctxrec.evaluation.systems import (
    FROZEN,
    MODEL,
    SHUFFLED,
    SHUFFLED_SAME_TIME,
    TEXT,
    SystemMetrics,
    best_baseline,
    display_name,
    ranked_systems,
)
from ctxrec.metrics.intervals import Interval

_COLUMNS = ("ndcg@10", "hr@10", "recall@10", "mrr@10", "coverage@10")


def format_table(metrics: dict[str, Any]) -> str:
    """The main metrics for a terminal, best system first, with 95 % intervals of NDCG@10.

    Args:
        metrics: the content of `metrics.json`.
    """
    title, rows, sentences = table_parts(metrics)
    return "\n".join([title, *aligned(rows), *sentences])


def table_parts(metrics: dict[str, Any]) -> tuple[str, list[list[str]], list[str]]:
    """What `format_table` joins: the title, the rows of cells below a row of names, and the sentences below the table.

    Args:
        metrics: the content of `metrics.json`.
    """
    rows = [["", "NDCG@10", "95 % interval", "HR@10", "Recall@10", "MRR@10", "Coverage@10", "ctxrec minus it"]]
    for system, values in ranked_systems(metrics):
        main = values["ndcg@10"]
        numbers = [f"{values[c]['mean']:.4f}" for c in _COLUMNS]
        gain = metrics["paired"].get(system, {}).get("ndcg@10")
        paired = "" if gain is None else f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        interval = f"{main['low']:.4f} - {main['high']:.4f}"
        rows.append([display_name(system), numbers[0], interval, *numbers[1:], paired])
        if system == MODEL and metrics.get("encoder", {}).get("state") == FROZEN:
            rows.append(["ctxrec, frozen encoder", numbers[0], interval, *numbers[1:], "the same model"])
    if not metrics["paired"]:
        rows = [row[:-1] for row in rows]
    title = f"{metrics['split']}: {metrics['requests']:,} requests, full ranking"
    return title, rows, _sentences(metrics)


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a text table with a rule below its header; the first `left` columns are flush left.

    >>> aligned([["", "n"], ["ab", "10"]])
    ['     n', '------', 'ab  10']
    """
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if c < left else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return [line.rstrip() for line in lines]


def verdict(gain: Interval) -> str:
    """Whether the 95 % interval of a paired difference excludes 0, as words."""
    if gain["low"] > 0:
        return "clearly better"
    return "clearly worse" if gain["high"] < 0 else "no clear difference"


def _sentences(metrics: dict[str, Any]) -> list[str]:
    """One sentence each about the best baseline, cold items and shuffled context, then the notes."""
    lines, best = [], best_baseline(metrics)
    if best is not None and metrics["paired"]:
        gain = metrics["paired"][best]["ndcg@10"]
        lines.append(
            f"ctxrec minus {display_name(best)}, the best baseline: NDCG@10 {gain['mean']:+.4f} (95 % interval "
            f"{gain['low']:+.4f} to {gain['high']:+.4f}, same users, p {_p(gain['p'])}): {verdict(gain)}"
        )
    lines += sentences(metrics)
    lines += [encoder_sentence(metrics)] if metrics.get("encoder") else []
    if metrics.get("knockouts"):
        lines.append(
            "NDCG@10 falls without (nothing trained again): " + "; ".join(map(_lost, metrics["knockouts"].items()))
        )
    for name, words in (("cold_items", "among everything"), (COLD_AMONG_COLD, "among cold items only")):
        entry = metrics["slices"].get(name, {"requests": 0})
        shown = {s: m for s, m in _flat(entry) if s in (MODEL, TEXT)} if entry["requests"] else {}
        if shown:
            values = ", ".join(f"{display_name(s)} {m['ndcg@10']['mean']:.4f}" for s, m in shown.items())
            lines.append(f"cold items {words} ({entry['requests']:,} requests): NDCG@10 {values}")
    for system, words in ((SHUFFLED, ""), (SHUFFLED_SAME_TIME, " but for the request's own time")):
        if metrics.get(system):
            drop = metrics[system]["drop"]
            lines.append(
                f"context shuffled among requests{words}: NDCG@10 falls by {_percent(drop['mean'])} % "
                f"(95 % interval {_percent(drop['low'])} to {_percent(drop['high'])} %)"
            )
    return lines + [f"note: {note}" for note in metrics["notes"]]


def _lost(knockout: tuple[str, dict[str, Any]]) -> str:
    """What one hidden source costs.

    >>> _lost(("texts", {"drop": {"mean": 0.061, "low": 0.02, "high": 0.1}}))
    'texts 6.1 % (2.0 to 10.0)'
    """
    source, drop = knockout[0], knockout[1]["drop"]
    return f"{source} {_percent(drop['mean'])} % ({_percent(drop['low'])} to {_percent(drop['high'])})"


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) or 0.0:.1f}"  # without the sign of what rounds to nothing


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.01 else "< 0.01"


def _flat(entry: dict[str, Any]) -> list[tuple[str, SystemMetrics]]:
    """(system, metrics) of a slice: the model, then the baselines."""
    return [(MODEL, entry[MODEL]), *entry["baselines"].items()] if entry[MODEL] else list(entry["baselines"].items())
