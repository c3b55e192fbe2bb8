"""Sections of the report about quality: ranking, sources, context, new items, slices of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxrec.evaluation.comparison_table import verdict
from ctxrec.evaluation.encoder_comparison import encoder_sentence
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import (
    bar,
    chart,
    details,
    finding,
    gain_cell,
    interval_cell,
    kind,
    legend,
    paragraph,
    percent,
    section,
    table,
)
from ctxrec.evaluation.slices import COLD, COLD_AMONG_COLD, FEW, FEW_SHOT, HELD_OUT, NEW_USERS, WARM
from ctxrec.evaluation.systems import (
    FROZEN,
    MODEL,
    SHUFFLED,
    SHUFFLED_SAME_TIME,
    TEXT,
    TUNED,
    SystemMetrics,
    best_baseline,
    display_name,
    focus,
    ranked_systems,
)

MAIN = "ndcg@10"
COLUMNS = {
    MAIN: "NDCG@10",
    "hr@10": "HR@10",
    "coverage@10": "Coverage@10",
    "gini@10": "Gini@10",
    "novelty@10": "Novelty@10",
    "popularity@10": "Popularity@10",
}
_KINDS = (
    ("model", "ctxrec"),
    ("before", "ctxrec, not refitted"),
    ("best", "best baseline"),
    ("other", "others"),
    ("limit", "best possible"),
)
_LOST = {  # what an ablation does without, for the sentence about it
    "text_only": "IDs and features",
    "id_only": "text and features",
    "no_context": "context",
    "frozen_encoder": "the tuning of its encoder",
}
ITEM_SLICES = {
    WARM: "items with training events",
    FEW: f"items with 1 to {FEW_SHOT} training events",
    COLD: "new items, among everything",
    COLD_AMONG_COLD: "new items, among new items",
    HELD_OUT: "held-out items",
}


def ranking(metrics: dict[str, Any]) -> str:
    """Every system with its interval, and the model minus each."""
    best, systems = best_baseline(metrics), ranked_systems(metrics)
    bars = [bar(s, m, kind(s, best)) for s, m in systems]
    shown = {b.kind for b in bars}
    rows = []
    for system, values in systems:
        cells = [interval_cell(c, values[c]) for c in COLUMNS]
        gain = metrics["paired"].get(system, {}).get(MAIN)
        if metrics["paired"]:
            cells.insert(1, "<td></td>" if gain is None else gain_cell(gain))
        rows.append((display_name(system), cells, system == MODEL))
    names = list(COLUMNS.values())
    header = ["", names[0], *(["ctxrec minus it"] if metrics["paired"] else []), *names[1:]]
    others = [n for n in systems[0][1] if n not in COLUMNS and n != "drop"]
    more = [(display_name(s), [interval_cell(c, m[c]) for c in others], s == MODEL) for s, m in systems]
    return section(
        "Ranking quality",
        finding(_ranking_finding(metrics, best)) if best is not None else "",
        paragraph(
            "The whole catalogue is ranked for every request. NDCG is high if the items that the user took next are near "
            "the top. Bars show the mean, whiskers its 95 % interval."
        ),
        legend([(k, text) for k, text in _KINDS if k in shown], squares=True),
        chart(charts.bar_chart(bars, title="NDCG@10 of the model and the baselines")),
        table(header, rows),
        paragraph(
            "Coverage is the share of the catalogue that appears in any list. Gini is 0 if all items are shown equally "
            "often, and near 1 if a few items take every place. Novelty is the mean self-information of a recommended item "
            "in bits (10 bits: one event in 1,024 is an event of this item). Popularity is the mean number of training "
            "events of a recommended item."
            + (' "ctxrec minus it" is the difference in NDCG@10 on the same users.' if metrics["paired"] else ""),
            muted=True,
        ),
        details("All other metrics", table(["", *map(_metric_name, others)], more)),
        _options(metrics),
    )


def _ranking_finding(metrics: dict[str, Any], best: str) -> str:
    value = metrics["baselines"][best][MAIN]["mean"]
    if not metrics["paired"]:
        return f"The best baseline is {display_name(best)} with NDCG@10 {value:.4f}."
    gain = metrics["paired"][best][MAIN]
    share = percent(gain["mean"] / value, signed=True) if value else "from nothing"
    return (
        f"ctxrec against the best baseline, {display_name(best)}: {share} NDCG@10. On the same users the difference is "
        f"{gain['mean']:+.4f}, with 95 % certainty between {gain['low']:+.4f} and {gain['high']:+.4f}: {verdict(gain)}."
    )


def _metric_name(metric: str) -> str:
    family, _, k = metric.partition("@")
    return f"{ {'hr': 'HR', 'recall': 'Recall', 'mrr': 'MRR', 'ndcg': 'NDCG'}.get(family, family) }@{k}"


def _options(metrics: dict[str, Any]) -> str:
    """The options of the baselines, and where they were chosen."""
    options = metrics.get("options")
    if not options:
        return ""
    where = "on the validation split" if options["chosen_on"] == "valid" else "by default"
    parts = [f"ALS with {options['als_factors']} factors"]
    if "ease_lambda" in options:
        weights = ", ".join(f"{display_name(n)} {w:.2f}" for n, w in options["ensemble"].items() if w)
        parts += [f"EASE with lambda {options['ease_lambda']:g}", f"linear ensemble of {weights}"]
    return paragraph(f"Options of the baselines, chosen {where}: {'; '.join(parts)}.", muted=True)


def sources(metrics: dict[str, Any]) -> str:
    """What each source carries by knock-out and by ablation, and what the encoder's phase brought; "" without any."""
    if not metrics[MODEL]:
        return ""
    about = encoder_sentence(metrics)
    parts = [finding(f"{about[:1].upper()}{about[1:]}.")] if about else []
    if metrics.get("knockouts"):
        parts += [
            paragraph(
                "The trained model ranks the same requests with one source hidden, without any training. Context and user "
                "attributes are those of another request. Dots show how much NDCG@10 is lost, lines the 95 % interval of "
                "the difference on the same users."
            ),
            chart(
                charts.dot_chart(
                    [_lost(source, values) for source, values in metrics["knockouts"].items()],
                    title="NDCG@10 that is lost where a source is hidden",
                    description="; ".join(f"{s} {m['lost']['mean']:+.4f}" for s, m in metrics["knockouts"].items()),
                )
            ),
        ]
    parts += _ablations(metrics)
    return section("What each source adds", *parts) if parts else ""


def _lost(source: str, values: dict[str, Any]) -> charts.Dots:
    """A row of the chart of knock-outs."""
    lost = values["lost"]
    return charts.Dots(source, percent(values["drop"]["mean"]), ((lost["mean"], lost["low"], lost["high"], "model"),))


def _ablations(metrics: dict[str, Any]) -> list[str]:
    """The trainings without one source, and the models before and after the encoder's phase; nothing without any."""
    apart = [(s, m) for s, m in ranked_systems(metrics) if s in (FROZEN, TUNED)]
    shown = [*apart, *((s, m) for s, m in metrics["ablations"].items() if m)]
    if not shown:
        return []
    whole = metrics[MODEL][MAIN]["mean"]
    bars = [bar(MODEL, metrics[MODEL], "model")]
    bars += [bar(s, m, "before" if s in (FROZEN, TUNED) else "other") for s, m in shown]
    sentences = []
    for system, values in metrics["ablations"].items():
        change = values[MAIN]["mean"] / whole - 1 if whole else 0.0
        what = f"Without {_LOST.get(system, display_name(system))}"
        sentences.append(f"{what}: {percent(change, signed=True)} ({_certainty(metrics['paired'][system][MAIN])}).")
    return [
        paragraph("The same model, trained again without one source of information each time, or not refitted."),
        chart(charts.bar_chart(bars, title="NDCG@10 of the model with one source left out")),
        "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in sentences) + "</ul>" if sentences else "",
    ]


def _certainty(gain: dict[str, float]) -> str:
    return "no clear difference" if gain["low"] <= 0 <= gain["high"] else "a clear difference"


def context(metrics: dict[str, Any]) -> str:
    """The model with the context of other requests; "" if this was not evaluated."""
    shown = [s for s in (SHUFFLED, SHUFFLED_SAME_TIME) if metrics.get(s)]
    if not shown:
        return ""
    bars = [bar(MODEL, metrics[MODEL], "model")] + [bar(s, metrics[s], "other") for s in shown]
    if "no_context" in metrics["ablations"]:
        bars.append(bar("no_context", metrics["ablations"]["no_context"], "other"))
    return section(
        "Does context pay?",
        finding(_context_finding(metrics[shown[0]]["drop"], metrics.get(SHUFFLED_SAME_TIME, {}).get("drop"))),
        paragraph(
            "The same requests are ranked with the hour, weekday, month and every other feature of the context of another "
            'request. "Same time" keeps the time of the request, so that the context is wrong and the age of the events '
            "is right."
        ),
        chart(charts.bar_chart(bars, title="NDCG@10 with true and with shuffled context")),
    )


def _context_finding(drop: dict[str, float], same_time: dict[str, float] | None) -> str:
    """What the context of another request costs, in words; both drops are shares of NDCG.

    Args:
        drop: with the time of the other request too.
        same_time: with the time of the request itself; None where that was not evaluated.
    """
    interval = f"95 % interval {percent(drop['low'])} to {percent(drop['high'])}"
    asked = "With the time and context of another request the same model"
    if drop["low"] > 0:
        loses = f"{asked} loses {percent(drop['mean'])} of its NDCG@10 ({interval})"
        if same_time is None or same_time["low"] > 0:
            return f"{loses}: it uses the context."
        kept = f"95 % interval {percent(same_time['low'])} to {percent(same_time['high'])}"
        return (
            f"{loses}. Nearly all of that is the time of the request: where the time is kept and the rest of the context is "
            f"another's, the model loses {percent(same_time['mean'])}, which may be chance ({kept})."
        )
    if drop["high"] < 0:
        return f"{asked} gains {percent(-drop['mean'])} of its NDCG@10 ({interval} lost): its context misleads it."
    if drop["low"] == drop["high"] == 0:
        return f"{asked} gives the same lists: this model does not read the context."
    return (
        f"{asked} loses {percent(drop['mean'])} of its NDCG@10, which may be chance ({interval}): on these data the "
        "context tells it little."
    )


def new_items(metrics: dict[str, Any]) -> str:
    """Items by their number of training events: the model, the un-tuned encoder and the best baseline."""
    entries = {label: metrics["slices"].get(slice_name) for slice_name, label in ITEM_SLICES.items()}
    rows, cells = [], []
    systems = _compared(metrics, with_text=True)
    for label, entry in entries.items():
        if entry is None or not entry["requests"]:
            continue
        dots = _dots(entry, systems)
        rows.append(charts.Dots(label, f"n = {entry['requests']:,}", dots))
        cells.append((label, _slice_cells(entry, systems), False))
    if not metrics["slices"][COLD]["requests"]:
        remark = (
            "No request has a new item among its targets, so this evaluation cannot show how the model ranks new items."
        )
    else:
        remark = _cold_finding(metrics)
    return section(
        "New items",
        finding(remark),
        paragraph(
            "A new item has no training event, so only its content can rank it. On each line only the named items count as "
            'targets; "among everything" ranks them against the whole catalogue, "among new items" against each other.'
        ),
        legend([(k, display_name(s)) for s, k in systems]),
        chart(charts.dot_chart(rows, title="NDCG@10 by what is known of the item", description=f"{len(rows)} groups")),
        details("The same as a table", table(_slice_header(systems), cells)),
    )


def _cold_finding(metrics: dict[str, Any]) -> str:
    entry = metrics["slices"][COLD]
    model, text = entry[MODEL], entry["baselines"].get(TEXT)
    count = f"{entry['requests']:,} requests took a new item"
    if not model:
        return f"{count}."
    said = f"{count}; ctxrec reaches NDCG@10 {model[MAIN]['mean']:.4f} on them among the whole catalogue"
    if text and text[MAIN]["mean"] > 0:
        said += f", {model[MAIN]['mean'] / text[MAIN]['mean']:.1f} times what the un-tuned encoder's text alone does"
    return said + "."


def where_it_works(metrics: dict[str, Any]) -> str:
    """Slices of the requests: by history, user attribute, time and context."""
    systems = _compared(metrics, with_text=False)
    rows, cells = [], []
    for group, entries in slice_groups(metrics["slices"]).items():
        if len(entries) == 1 and next(iter(entries.values()))["requests"] == metrics["requests"]:
            continue  # an attribute with one value for all requests repeats the whole
        heading = charts.Dots((group[:1].upper() + group[1:]).replace("_", " "))
        lines = []
        for label, entry in entries.items():
            if entry["requests"]:
                lines.append(charts.Dots(label, f"n = {entry['requests']:,}", _dots(entry, systems)))
            cells.append((f"{group}: {label}", _slice_cells(entry, systems), False))
        rows += [heading, *lines] if lines else []
    description = f"{len(cells)} slices; the numbers are in the table below the chart"
    return section(
        "Where it works",
        paragraph(
            "NDCG@10 with its 95 % interval for slices of the requests. A slice of an action counts only the items that "
            "were taken by this action. Slices differ in difficulty: compare the two marks of a line, not the lines."
        ),
        legend([(k, display_name(s)) for s, k in systems]),
        chart(charts.dot_chart(rows, title="NDCG@10 by slice", description=description)),
        details("The same as a table", table(_slice_header(systems), cells)),
    )


def slice_groups(slices: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Slices of requests by heading: history, action, and every attribute of user and context."""
    groups: dict[str, dict[str, Any]] = {}
    for slice_name, entry in slices.items():
        if slice_name in ITEM_SLICES:
            continue
        if slice_name == NEW_USERS:
            group, label = "Events in the history", "none (new users)"
        elif slice_name.startswith("history_"):
            group, label = "Events in the history", slice_name.removeprefix("history_")
        elif slice_name.endswith(" missing"):
            group, label = slice_name.removesuffix(" missing"), "not known"
        elif slice_name.startswith("action="):
            group, label = "Taken by action", slice_name.removeprefix("action=")
        else:
            group, _, label = slice_name.partition("=") if "=" in slice_name else slice_name.partition(": ")
        groups.setdefault(group, {})[label] = entry
    return groups


def _compared(metrics: dict[str, Any], *, with_text: bool) -> list[tuple[str, str]]:
    """(system, kind of its mark) of the systems that the charts of slices compare."""
    best = best_baseline(metrics)
    systems = [(MODEL, "model")] if focus(metrics) == MODEL else []
    systems += [(best, "best")] if best is not None else []
    if with_text and TEXT in metrics["baselines"] and best != TEXT:
        systems.append((TEXT, "text"))
    return systems


def _of(entry: dict[str, Any], system: str) -> SystemMetrics:
    return entry[MODEL] if system == MODEL else entry["baselines"].get(system, {})


def _dots(entry: dict[str, Any], systems: Sequence[tuple[str, str]]) -> tuple[tuple[float, float, float, str], ...]:
    values = [(_of(entry, s).get(MAIN), k) for s, k in systems]
    return tuple((v["mean"], v["low"], v["high"], k) for v, k in values if v)


def _slice_header(systems: Sequence[tuple[str, str]]) -> list[str]:
    return ["", "requests", *(f"{display_name(s)}, {label}" for s, _ in systems for label in ("NDCG@10", "HR@10"))]


def _slice_cells(entry: dict[str, Any], systems: Sequence[tuple[str, str]]) -> list[str]:
    cells = [f"<td>{entry['requests']:,}</td>"]
    for system, _ in systems:
        values = _of(entry, system)
        cells += [interval_cell(m, values[m]) if values else "<td>–</td>" for m in (MAIN, "hr@10")]
    return cells
