"""`report.html` of a benchmark: one page for all data sets, without script or network."""

from __future__ import annotations

import datetime
from typing import Any

from ctxrec.benchmarks import results as results_table
from ctxrec.evaluation.comparison_table import verdict
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import chart, e, finding, legend, page, paragraph, percent, section, table
from ctxrec.evaluation.systems import display_name


def render(results: dict[str, Any]) -> str:
    """The page for what `results.json` holds."""
    made = [row for row in results["datasets"] if row.get("model")]
    sections = [_header(results), _gains(made), _levels(made), _table(results), _failures(results)]
    return page("ctxrec benchmark", sections)


def _header(results: dict[str, Any]) -> str:
    rows = results["datasets"]
    gains = [row["gain"] for row in rows if row.get("gain")]
    ahead, behind = sum(g["low"] > 0 for g in gains), sum(g["high"] < 0 for g in gains)
    tiles = [
        ("Data sets", f"{len(rows)}", f"{len(results['seeds'])} seeds each"),
        ("Clearly ahead", f"{ahead}", "of the best single baseline: the 95 % interval of the gain is above 0"),
        ("No clear difference", f"{len(gains) - ahead - behind}", "the interval holds 0"),
        ("Clearly behind", f"{behind}", "the interval is below 0"),
    ]
    cards = "".join(
        f'<div class="tile"><div class="tile-name">{e(title)}</div><div class="tile-value">{e(value)}</div>{e(text)}</div>'
        for title, value, text in tiles
    )
    today = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    return f'<header><p class="kicker">ctxrec</p><h1>Benchmark</h1><p class="lead">{e(today)}</p></header><div class="tiles">{cards}</div>\n'


def _gains(made: list[dict[str, Any]]) -> str:
    """The gains over the best single baseline and over the linear ensemble, in per cent of each."""
    rows = []
    for row in made:
        lines = []
        for gain, system in ((row.get("gain"), row.get("best_baseline")), (row.get("ensemble_gain"), "ensemble")):
            level = row["systems"].get(system)
            if gain and level and system:
                scaled = [100 * gain[key] / level for key in ("mean", "low", "high")]
                lines.append(charts.Dots(f"against {display_name(system)}", "", ((*scaled, "model"),)))
        rows += [charts.Dots(row["label"]), *lines] if lines else []
    if not rows:
        return ""
    best = max((row for row in made if row.get("gain")), key=lambda row: row["gain"]["share"] or 0)
    share = percent(best["gain"]["share"] or 0, signed=True)
    said = f"Largest gain: {best['label']}, {share} against {display_name(best['best_baseline'])}: {verdict(best['gain'])}."
    title = "Gain in NDCG@10, per cent of the baseline's"
    drawing = charts.dot_chart(rows, title=title, description="The lines of each data set, with 95 % intervals")
    return section("Against the strongest baselines", finding(said), paragraph(f"{title}."), chart(drawing))


def _levels(made: list[dict[str, Any]]) -> str:
    """NDCG@10 of the model and of the best single baseline."""
    rows = []
    for row in made:
        model, best = row["model"], row.get("best_baseline")
        dots = [(model["mean"], model["low"], model["high"], "model")]
        if best:
            level = row["systems"][best]
            dots.append((level, level, level, "best"))
        rows.append(charts.Dots(row["label"], f"{row['requests']:,} requests", tuple(dots)))
    if not rows:
        return ""
    drawing = charts.dot_chart(rows, title="NDCG@10", description="ctxrec and the best single baseline")
    signs = legend([("model", "ctxrec"), ("best", "best single baseline")])
    return section("NDCG@10 on each data set", signs, chart(drawing))


def _table(results: dict[str, Any]) -> str:
    header, rows = results_table.table_rows(results)
    finished = [(cells[0], [_cell(text) for text in cells[1:]], False) for cells in rows]
    return section("All figures", paragraph(results_table.about(results)), table(["", *header[1:]], finished))


def _cell(text: str) -> str:
    """A cell with what stands in brackets on a line of its own."""
    value, _, rest = text.partition(" (")
    return f"<td>{e(value)}" + (f'<span class="interval">({e(rest)}</span></td>' if rest else "</td>")


def _failures(results: dict[str, Any]) -> str:
    lines = [
        paragraph(f"{row['label']}, {results_table.failed_step(failure)}: {failure['message']}")
        for row in results["datasets"]
        for failure in row["failures"]
    ]
    return section("What failed", *lines) if lines else ""
