"""`report.html`: one evaluation as one page that opens without a network; no script, every text escaped."""

from __future__ import annotations

import datetime
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ctxrec import charts, spec
from ctxrec.config import Config
from ctxrec.errors import UserError
from ctxrec.prepared import PreparedData
from ctxrec.report_style import STYLE
from ctxrec.summary import MODEL, NAMES, best_baseline, ranked_systems

_MAX_POINTS = 300  # of a curve; longer ones are averaged in steps
_MAX_TAKEN = 10  # titles of what an example user took
_ROLES = (
    ("model", "ctxrec"),
    ("before", "ctxrec before encoder tuning"),
    ("best", "best baseline"),
    ("other", "other baselines"),
)
PHASES = {"towers": "towers, encoder frozen", "encoder": "towers and encoder"}
COLUMNS = {
    "ndcg@10": "NDCG@10",
    "hr@10": "HR@10",
    "mrr@10": "MRR@10",
    "coverage@10": "Coverage@10",
    "gini@10": "Gini@10",
    "popularity@10": "Popularity@10",
}


@dataclass(frozen=True)
class Facts:
    """What the header says about the data and the model."""

    name: str
    counts: dict[str, int]
    split: str
    encoder: str
    fingerprint: str
    evaluated_at: str
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(prepared: PreparedData, config: Config) -> Facts:
        encoder = f"{config.encoder.name} ({config.encoder.tune})" if config.encoder.name else "none (IDs and features)"
        return Facts(
            name=prepared.spec.name,
            counts=prepared.meta["counts"],
            split=_describe_split(prepared.spec.split),
            encoder=encoder if config.model.use_text else f"{encoder}, text not used",
            fingerprint=prepared.fingerprint,
            evaluated_at=datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC"),
            notes=tuple(prepared.meta.get("notes", ())),
        )


def _describe_split(split: spec.SplitSpec) -> str:
    if split.strategy == "last":
        cut = "the last event of each user is the test event, the one before it the validation event"
    else:
        cut = f"by time, the last {split.test * 100:g} % of events for test, {split.valid * 100:g} % before them for validation"
    return f"{cut}; items already in a user's history {'may be' if split.repeats else 'are not'} recommended again"


@dataclass(frozen=True)
class Example:
    """One user by titles: the last items of the history, the recommendations with hits, what the user took."""

    user_id: str
    saw: Sequence[str]
    got: Sequence[tuple[str, bool]]
    took: Sequence[str]


def parse_train_log(text: str) -> list[dict[str, Any]]:
    """Records of a train_log.jsonl; a last line that a killed training left unfinished is dropped.

    Raises:
        UserError: another line is no JSON.
    """
    lines = text.splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"train_log.jsonl line {number} is not valid JSON: {error}") from error
    return records


def render_report(
    metrics: dict[str, Any],
    *,
    facts: Facts,
    train_log: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    config_toml: str,
) -> str:
    """The page for what `metrics.json` holds.

    Args:
        metrics: the content of metrics.json.
        facts: what to say about data and model.
        train_log: records of train_log.jsonl, may be empty.
        examples: a few users to show.
        config_toml: the options as TOML.
    """
    title = f"{facts.name}: ctxrec evaluation"
    sections = [
        _header(metrics, facts),
        _ranking(metrics),
        _where_it_works(metrics),
        _training(train_log),
        _users(examples, metrics),
        _about(metrics, facts, config_toml),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_e(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main>\n{''.join(sections)}</main></body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _name(system: str) -> str:
    return NAMES.get(system, system)


def _number(metric: str, value: float) -> str:
    return f"{value:,.0f}" if metric.startswith("popularity") else f"{value:.4f}"


def _header(metrics: dict[str, Any], facts: Facts) -> str:
    ndcg, hit = metrics[MODEL]["ndcg@10"], metrics[MODEL]["hr@10"]
    tiles = [
        ("NDCG@10", f"{ndcg['mean']:.4f}", f"95 % interval {ndcg['low']:.4f} to {ndcg['high']:.4f}"),
        ("Hit rate@10", _percent(hit["mean"]), f"95 % interval {_percent(hit['low'])} to {_percent(hit['high'])}"),
    ]
    best = best_baseline(metrics)
    if best is not None:
        gain = metrics["paired"][best]["ndcg@10"]
        tiles.append((f"Against {_name(best)}", f"{gain['mean']:+.4f}", f"NDCG@10, {_verdict(gain)}"))
    tiles.append(("Requests", f"{metrics['requests']:,}", f"of the {metrics['split']} split, full ranking"))
    cards = "".join(
        f'<div class="tile"><div class="tile-name">{_e(name)}</div><div class="tile-value">{_e(value)}</div>'
        f'<div class="muted">{_e(remark)}</div></div>'
        for name, value, remark in tiles
    )
    counts = facts.counts
    line = f"{counts['events']:,} events · {counts['users']:,} users · {counts['items']:,} items"
    return (
        f'<header><p class="kicker">ctxrec evaluation</p><h1>{_e(facts.name)}</h1>'
        f'<p class="lead">{_e(line)}<br>Encoder: {_e(facts.encoder)}<br>{_e(facts.evaluated_at)}</p>'
        f'<div class="tiles">{cards}</div></header>\n'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _verdict(gain: dict[str, float]) -> str:
    """In words whether the 95 % interval of a paired difference leaves out 0."""
    if gain["low"] > 0:
        return "clearly better"
    return "clearly worse" if gain["high"] < 0 else "no clear difference"


def _kind(system: str, best: str | None) -> str:
    return system if system in NAMES and system in (MODEL, "before") else "best" if system == best else "other"


def _ranking(metrics: dict[str, Any]) -> str:
    best = best_baseline(metrics)
    systems = ranked_systems(metrics)
    bars = [
        charts.Bar(_name(s), m["ndcg@10"]["mean"], m["ndcg@10"]["low"], m["ndcg@10"]["high"], _kind(s, best))
        for s, m in systems
    ]
    chart = charts.bar_chart(bars, title="NDCG@10 of the model and the baselines")
    rows = []
    for system, values in systems:
        cells = [_interval_cell(c, values[c]) for c in COLUMNS]
        gain = metrics["paired"].get(system, {}).get("ndcg@10")
        cells.insert(1, "<td></td>" if gain is None else _gain_cell(gain))
        rows.append((_name(system), cells, system == MODEL))
    names = list(COLUMNS.values())
    others = [name for name in systems[0][1] if name not in COLUMNS]
    more = [(_name(s), [_interval_cell(c, m[c]) for c in others], s == MODEL) for s, m in systems]
    return (
        "<section><h2>Ranking quality</h2><p>Every item of the catalogue is ranked for every request; no sampled "
        "negatives. Bars show the mean, whiskers its 95 % interval.</p>"
        f"{_legend([(kind, text) for kind, text in _ROLES if kind in {bar.kind for bar in bars}], squares=True)}"
        f'<div class="chart">{chart}</div>'
        + _table(["", names[0], "ctxrec minus it", *names[1:]], rows)
        + '<p class="muted">Coverage: share of the catalogue that appears in any list. Gini: 0 = all items shown equally '
        "often, near 1 = a few items get every place. Popularity: mean training events of a recommended item. "
        '"ctxrec minus it" is the difference in NDCG@10 on the same users.</p>'
        "<details><summary>All other metrics</summary>" + _table(["", *map(_e_metric, others)], more) + "</details>"
        "</section>\n"
    )


def _e_metric(name: str) -> str:
    family, _, k = name.partition("@")
    return f"{ {'hr': 'HR', 'recall': 'Recall', 'mrr': 'MRR', 'ndcg': 'NDCG'}.get(family, family) }@{k}"


def _interval_cell(metric: str, value: dict[str, float]) -> str:
    low, high = _number(metric, value["low"]), _number(metric, value["high"])
    return f'<td>{_number(metric, value["mean"])}<span class="interval">{low} – {high}</span></td>'


def _gain_cell(gain: dict[str, float]) -> str:
    return f'<td>{gain["mean"]:+.4f}<span class="interval">{gain["low"]:+.4f} – {gain["high"]:+.4f}</span></td>'


def _table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]]) -> str:
    """A table; each row has a name, finished cells, and whether it is the one to look at."""
    head = "".join(f'<th scope="col">{_e(h)}</th>' if h else "<td></td>" for h in header)
    body = "".join(
        f'<tr{" class=model" if marked else ""}><th scope="row">{_e(name)}</th>{"".join(cells)}</tr>'
        for name, cells, marked in rows
    )
    # Focusable, so that a wide table can be scrolled from the keyboard.
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _slice_groups(slices: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Slices under a heading each: items, history, and every user attribute."""
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in slices.items():
        if name.endswith("_items"):
            group, label = "Items", f"{name.removesuffix('_items')} items"
        elif name.startswith("history_"):
            group, label = "Events in the history", name.removeprefix("history_")
        elif name.endswith(" missing"):
            group, label = name.removesuffix(" missing"), "not known"
        else:
            group, _, label = name.partition("=") if "=" in name else name.partition(": ")
        groups.setdefault(group, {})[label] = entry
    return groups


def _where_it_works(metrics: dict[str, Any]) -> str:
    best = best_baseline(metrics)
    rows, table = [], []
    for group, entries in _slice_groups(metrics["slices"]).items():
        rows.append(charts.Dots(group[:1].upper() + group[1:]))
        for label, entry in entries.items():
            shown = [(MODEL, entry[MODEL])] + ([(best, entry["baselines"].get(best, {}))] if best else [])
            dots = tuple(
                (v["ndcg@10"]["mean"], v["ndcg@10"]["low"], v["ndcg@10"]["high"], "model" if s == MODEL else "best")
                for s, v in shown
                if v
            )
            if dots:
                rows.append(charts.Dots(label, f"n = {entry['requests']:,}", dots))
            cells = [f"<td>{entry['requests']:,}</td>"]
            cells += [_interval_cell("ndcg@10", v["ndcg@10"]) if v else "<td>–</td>" for _, v in shown]
            table.append((f"{group}: {label}", cells, False))
    legend = _legend([("model", _name(MODEL))] + ([("best", _name(best))] if best else []))
    description = f"{len(table)} slices; the numbers are in the table below the chart"
    chart = charts.dot_chart(rows, title="NDCG@10 by slice", description=description)
    header = ["", "requests", f"{_name(MODEL)}, NDCG@10"] + ([f"{_name(best)}, NDCG@10"] if best else [])
    empty = [f"{label} items" for label in ("cold", "warm") if not metrics["slices"][f"{label}_items"]["requests"]]
    remark = f" No request has {' or '.join(empty)} among its targets." if empty else ""
    return (
        "<section><h2>Where it works</h2><p>NDCG@10 with its 95 % interval for parts of the requests. "
        f"Cold items have no training event; only they count as targets there.{remark}</p>"
        f'{legend}<div class="chart">{chart}</div><details><summary>The same as a table</summary>'
        + _table(header, table)
        + "</details></section>\n"
    )


def _legend(entries: Sequence[tuple[str, str]], *, squares: bool = False) -> str:
    items = "".join(
        f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true">{charts.key(kind, square=squares)}</svg>{_e(text)}</li>'
        for kind, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _training(train_log: Sequence[dict[str, Any]]) -> str:
    if not train_log:
        return "<section><h2>Training</h2><p>This run has no training log.</p></section>\n"
    losses, valid, boundary = _curves(train_log)
    figures = []
    if losses:
        chart = charts.line_chart(losses, title="Training loss", x_label="step", boundary=boundary)
        figures.append(f"<figure><figcaption>Training loss</figcaption>{chart}</figure>")
    if valid:
        chart = charts.line_chart(
            valid, title="Validation NDCG@10", x_label="step", boundary=boundary, from_zero=True, dots=True
        )
        figures.append(f"<figure><figcaption>Validation NDCG@10</figcaption>{chart}</figure>")
    rows = []
    for record in train_log:
        if record.get("valid_ndcg@10") is not None:
            loss = f"{record['loss']:.4f}" if record.get("loss") is not None else "–"
            cells = [f"<td>{_epoch(record)}</td>", f"<td>{_e(record.get('step', '–'))}</td>"]
            cells += [f"<td>{loss}</td>", f"<td>{record['valid_ndcg@10']:.4f}</td>"]
            rows.append((PHASES.get(record["phase"], record["phase"]), cells, False))
    table = _table(["phase", "epoch", "step", "loss", "validation NDCG@10"], rows) if rows else ""
    legend = _legend([(line.kind, line.label) for line in losses or valid])
    return (
        "<section><h2>Training</h2><p>First the towers learn on the frozen encoder's vectors, then the encoder is tuned "
        f'with them.</p>{legend}<div class="figures">{"".join(figures)}</div>'
        + (f"<details><summary>Evaluations during training</summary>{table}</details>" if table else "")
        + "</section>\n"
    )


def _epoch(record: dict[str, Any]) -> str:
    return f"{record['epoch']:.1f}" if "epoch" in record else "–"


def _curves(
    train_log: Sequence[dict[str, Any]],
) -> tuple[list[charts.Line], list[charts.Line], tuple[float, str] | None]:
    """Loss and validation curves of each phase on one axis of steps, and where the last phase begins."""
    losses, valid, offset, boundary = [], [], 0.0, None
    phases = list(dict.fromkeys(record["phase"] for record in train_log))
    for n, phase in enumerate(phases):
        records = [r for r in train_log if r["phase"] == phase]
        if n and min(r["step"] for r in records) < offset:  # a phase that counts its own steps
            records = [r | {"step": r["step"] + offset} for r in records]
        if n:
            boundary = (offset, "encoder tuned" if phase == "encoder" else phase)
        kind, label = ("model" if n == len(phases) - 1 else "before"), PHASES.get(phase, phase)
        for key, lines in (("loss", losses), ("valid_ndcg@10", valid)):
            points = tuple((float(r["step"]), float(r[key])) for r in records if r.get(key) is not None)
            if points:
                lines.append(charts.Line(label, _thinned(points), kind))
        offset = max(float(r["step"]) for r in records)
    return losses, valid, boundary


def _thinned(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """At most _MAX_POINTS points, each the mean of its neighbours."""
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return tuple((sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups)


def _users(examples: Sequence[Example], metrics: dict[str, Any]) -> str:
    cards = []
    for example in examples:
        got = "".join(f"<li><mark>{_e(t)} ✓</mark></li>" if hit else f"<li>{_e(t)}</li>" for t, hit in example.got)
        saw = "".join(f"<li>{_e(title)}</li>" for title in reversed(example.saw)) or "<li>nothing yet</li>"
        took = "".join(f"<li>{_e(title)}</li>" for title in example.took[:_MAX_TAKEN])
        if len(example.took) > _MAX_TAKEN:
            took += f"<li>and {len(example.took) - _MAX_TAKEN:,} more</li>"
        cards.append(
            f'<article><h3>User {_e(example.user_id)}</h3><div class="columns">'
            f"<div><h4>Saw, latest first</h4><ul>{saw}</ul></div><div><h4>Got</h4><ol>{got}</ol></div>"
            f"<div><h4>Took</h4><ul>{took}</ul></div></div></article>"
        )
    share = metrics[MODEL]["hr@10"]["mean"]
    return (
        "<section><h2>A few users</h2><p>Drawn at random: up to three with a hit in the first ten and three without "
        f'({_percent(share)} of all requests have one). A hit is marked ✓.</p><div class="users">{"".join(cards)}</div></section>\n'
    )


def _about(metrics: dict[str, Any], facts: Facts, config_toml: str) -> str:
    counts = {k: v for k, v in facts.counts.items() if isinstance(v, int)}
    rows = [(name.replace("_", " "), [f"<td>{value:,}</td>"], False) for name, value in counts.items()]
    notes = "".join(f"<li>{_e(note)}</li>" for note in (*metrics["notes"], *facts.notes))
    seconds = " · ".join(f"{name} {value:.1f} s" for name, value in metrics["seconds"].items())
    return (
        f"<section><h2>About this evaluation</h2><p>Split: {_e(facts.split)}.</p>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + f'<p class="muted">Time: {_e(seconds)}. Data fingerprint {_e(facts.fingerprint[:16])}.</p>'
        f"<details><summary>Counts of the data</summary>{_table(['', 'count'], rows)}</details>"
        f"<details><summary>Options of the run</summary><pre tabindex=0>{_e(config_toml)}</pre></details></section>\n"
    )
