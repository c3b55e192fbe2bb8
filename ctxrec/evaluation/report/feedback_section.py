"""Section of the report about what users liked: liked targets alone, and disliked items in lists."""

from __future__ import annotations

from typing import Any

from ctxrec.evaluation.feedback_metrics import DISLIKED, LIKED
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import bar, chart, finding, gain_cell, interval_cell, kind, paragraph, section, table
from ctxrec.evaluation.report.sections import MAIN
from ctxrec.evaluation.systems import MODEL, best_baseline, display_name, ranked_systems


def liked(metrics: dict[str, Any]) -> str:
    """Both ways to count: every event as a target, and successes alone; empty where values do not count."""
    facts, of_liked = metrics.get("feedback"), metrics.get(LIKED)
    if not facts or not of_liked or not of_liked["requests"]:
        return ""
    best, everything = best_baseline(metrics), dict(ranked_systems(metrics))
    systems = ranked_systems(of_liked)
    rows = []
    for system, values in systems:
        cells = [interval_cell(name, values[name]) for name in (MAIN, "hr@10")]
        gain = of_liked["paired"].get(system, {}).get(MAIN)
        cells.insert(1, "<td></td>" if gain is None else gain_cell(gain))
        cells.append(interval_cell(MAIN, everything[system][MAIN]))
        taken = everything[system].get(DISLIKED)
        cells.append("<td>–</td>" if taken is None else interval_cell(DISLIKED, taken))
        rows.append((display_name(system), cells, system == MODEL))
    negative = f" Negative feedback is a {facts['negative']}." if "negative" in facts else ""
    return section(
        "What users liked",
        finding(f"A success is a {facts['success']}.{negative}"),
        paragraph(
            f"Of {metrics['requests']:,} requests, {of_liked['requests']:,} have such a target. The bars count these targets "
            "alone; the section above counts every event. The last column is the share of the places of a list of 10 that "
            "items take which the user is known to dislike, before or after the request."
        ),
        chart(charts.bar_chart([bar(s, m, kind(s, best)) for s, m in systems], title="NDCG@10 of successes alone")),
        table(["", "NDCG@10 of successes", "ctxrec minus it", "HR@10", "NDCG@10 of every event", "disliked"], rows),
    )
