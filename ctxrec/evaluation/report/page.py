"""`report.html`: one evaluation as one page that opens without a network; no script, every text escaped."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxrec.core import dataset_spec
from ctxrec.core.config import Config
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.comparison_table import verdict
from ctxrec.evaluation.diversity_tradeoff import tradeoff_rows
from ctxrec.evaluation.report import sections
from ctxrec.evaluation.report.feedback_section import liked
from ctxrec.evaluation.report.html import details, e, page, paragraph, percent, section, table
from ctxrec.evaluation.report.probability_section import probabilities
from ctxrec.evaluation.report.training_curves import training
from ctxrec.evaluation.systems import MODEL, best_baseline, display_name, focus
from ctxrec.training.encoder_outcome import TUNED

__all__ = ["Example", "Facts", "render_report"]

_MAX_TAKEN = 10  # titles of what an example user took


@dataclass(frozen=True)
class Facts:
    """Facts about the data and the model for the header."""

    name: str
    counts: dict[str, int]
    split: str
    encoder: str
    fingerprint: str
    evaluated_at: str
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(prepared: PreparedData, config: Config, outcome: dict[str, Any] | None = None) -> Facts:
        """The facts of an evaluation; `outcome` is what `metrics.json` says of the encoder, None without a model."""
        return Facts(
            name=prepared.spec.name,
            counts=prepared.meta["counts"],
            split=_describe_split(prepared.spec.split),
            encoder=_describe_encoder(config, outcome),
            fingerprint=prepared.fingerprint,
            evaluated_at=datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC"),
            notes=tuple(prepared.meta.get("notes", ())),
        )


def _describe_encoder(config: Config, outcome: dict[str, Any] | None) -> str:
    """The encoder of a model and whether it is tuned, and of an evaluation without a model the one that baselines use."""
    if not config.encoder.name:
        return "none (IDs and features)"
    if "text" not in config.model.sources:
        return f"{config.encoder.name}, text not used"
    if outcome is None:
        return f"{config.encoder.name} (frozen)"
    if outcome["state"] == TUNED:
        return f"{config.encoder.name} ({config.encoder.tune})"
    return f"{config.encoder.name} (frozen, because {outcome['reason']})"


def _describe_split(split: dataset_spec.SplitSpec) -> str:
    if split.strategy == "last":
        cut = "the last event of each user is the test event, the one before it the validation event"
    else:
        cut = f"by time, the last {split.test * 100:g} % of events for test, {split.valid * 100:g} % before them for validation"
    return f"{cut}; items already in a user's history {'may be' if split.repeats else 'are not'} recommended again"


@dataclass(frozen=True)
class Taken:
    """An item that a user took, and its rank in the list; None if the list did not contain it."""

    title: str
    rank: int | None


@dataclass(frozen=True)
class Example:
    """One request as titles.

    Attributes:
        user_id: the user.
        about: the time, then the known attributes of the user and of the context.
        saw: the latest items of the history, oldest first.
        got: the recommended items, and whether the user took each.
        took: the items that the user took.
        others: the items of the best baseline, like `got`; empty without one.
    """

    user_id: str
    about: Sequence[str]
    saw: Sequence[str]
    got: Sequence[tuple[str, bool]]
    took: Sequence[Taken]
    others: Sequence[tuple[str, bool]] = ()


def render_report(
    metrics: dict[str, Any],
    *,
    facts: Facts,
    train_log: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    config_toml: str,
) -> str:
    """The page for the content of `metrics.json`.

    Args:
        metrics: the content of metrics.json.
        facts: facts about the data and the model.
        train_log: records of train_log.jsonl, may be empty.
        examples: a few users to show.
        config_toml: the options as TOML.
    """
    title = f"{facts.name}: ctxrec evaluation"
    parts = [
        _header(metrics, facts),
        sections.ranking(metrics),
        liked(metrics),
        probabilities(metrics),
        _users(examples, metrics),
        sections.sources(metrics),
        sections.context(metrics),
        sections.new_items(metrics),
        sections.where_it_works(metrics),
        _diversity(metrics),
        training(train_log) if metrics[MODEL] else "",
        _about(metrics, facts, config_toml),
    ]
    return page(title, parts)


def _diversity(metrics: dict[str, Any]) -> str:
    """Cost and gain of diversity and rules; "" if they were not evaluated."""
    if "diversity" not in metrics:
        return ""
    header, *lines = tradeoff_rows(metrics["diversity"])
    return section(
        "Diversity and rules",
        paragraph(
            "Distance is a mean over the pairs of a list: 1 - cosine of the content vectors, and 1 - Jaccard similarity of "
            "the values of each categorical column. Coverage is the share of the catalogue that is in any list. Gini is 0 "
            "if all items are shown equally often."
        ),
        table(["", *header[1:]], [(line[0], [f"<td>{e(c)}</td>" for c in line[1:]], False) for line in lines]),
    )


def _header(metrics: dict[str, Any], facts: Facts) -> str:
    system = focus(metrics)
    values = metrics[MODEL] or metrics["baselines"][system]
    ndcg, hit = values["ndcg@10"], values["hr@10"]
    tiles = [
        ("Hit rate@10", percent(hit["mean"]), "of requests have an item in the first ten that the user took"),
        ("NDCG@10", f"{ndcg['mean']:.4f}", f"95 % interval {ndcg['low']:.4f} to {ndcg['high']:.4f}"),
    ]
    best = best_baseline(metrics)
    if best is not None and metrics["paired"]:
        gain = metrics["paired"][best]["ndcg@10"]
        tiles.append((f"Against {display_name(best)}", f"{gain['mean']:+.4f}", f"NDCG@10, {verdict(gain)}"))
    tiles.append(("Requests", f"{metrics['requests']:,}", _about_requests(metrics, facts)))
    cards = "".join(
        f'<div class="tile"><div class="tile-name">{e(label)}</div><div class="tile-value">{e(value)}</div>'
        f'<div class="muted">{e(remark)}</div></div>'
        for label, value, remark in tiles
    )
    counts = facts.counts
    line = f"{counts['events']:,} events · {counts['users']:,} users · {counts['items']:,} items"
    whose = "" if metrics[MODEL] else f"<br>There is no model; the figures below are those of {e(display_name(system))}"
    return (
        f'<header><p class="kicker">ctxrec evaluation</p><h1>{e(facts.name)}</h1>'
        f'<p class="lead">{e(line)}<br>Encoder: {e(facts.encoder)}<br>{e(facts.evaluated_at)}{whose}</p>'
        f'<div class="tiles">{cards}</div></header>\n'
    )


def _about_requests(metrics: dict[str, Any], facts: Facts) -> str:
    """Of which split the requests are, and why they are fewer than its events."""
    split, events = metrics["split"], facts.counts.get(metrics["split"])
    said = f"of the {split} split, full ranking"
    if events is None or events <= metrics["requests"]:
        return said
    return (
        f"{said}; its {events:,} events make one request for each user who took an item that may be recommended (items "
        "already in the history count only where repeats are allowed)"
    )


def _users(examples: Sequence[Example], metrics: dict[str, Any]) -> str:
    system, best = focus(metrics), best_baseline(metrics)
    values = metrics[MODEL] or metrics["baselines"][system]
    return section(
        "A few users",
        paragraph(
            "Users are drawn at random: up to three with a hit in the first ten, and three without "
            f"({percent(values['hr@10']['mean'])} of all requests have a hit). Items that the user took are marked ✓."
        ),
        f'<div class="users">{"".join(_card(example, system, best) for example in examples)}</div>',
    )


def _card(example: Example, system: str, best: str | None) -> str:
    saw = "".join(f"<li>{e(title)}</li>" for title in reversed(example.saw)) or "<li>nothing yet</li>"
    took = "".join(
        f'<li>{e(item.title)} <span class="muted">{_place(item.rank)}</span></li>' for item in example.took[:_MAX_TAKEN]
    )
    if len(example.took) > _MAX_TAKEN:
        took += f"<li>and {len(example.took) - _MAX_TAKEN:,} more</li>"
    about = f'<p class="muted">{e(" · ".join(example.about))}</p>' if example.about else ""
    columns = [
        ("Saw, latest first", f"<ul>{saw}</ul>"),
        (f"Got from {display_name(system)}", f"<ol>{_listed(example.got)}</ol>"),
    ]
    columns.append(("Took", f"<ul>{took}</ul>"))
    if example.others and best is not None and best != system:
        columns.append((f"{display_name(best)} would have shown", f"<ol>{_listed(example.others)}</ol>"))
    inner = "".join(f"<div><h4>{e(label)}</h4>{content}</div>" for label, content in columns)
    return f'<article><h3>User {e(example.user_id)}</h3>{about}<div class="columns">{inner}</div></article>'


def _listed(items: Sequence[tuple[str, bool]]) -> str:
    return "".join(f"<li><mark>{e(t)} ✓</mark></li>" if hit else f"<li>{e(t)}</li>" for t, hit in items)


def _place(rank: int | None) -> str:
    return "further down" if rank is None else f"place {rank}"


def _about(metrics: dict[str, Any], facts: Facts, config_toml: str) -> str:
    counts = {k: v for k, v in facts.counts.items() if isinstance(v, int)}
    rows = [(label.replace("_", " "), [f"<td>{value:,}</td>"], False) for label, value in counts.items()]
    notes = "".join(f"<li>{e(note)}</li>" for note in (*metrics["notes"], *facts.notes))
    seconds = " · ".join(f"{step} {value:.1f} s" for step, value in metrics["seconds"].items())
    return section(
        "About this evaluation",
        paragraph(f"Split: {facts.split}."),
        f"<ul>{notes}</ul>" if notes else "",
        paragraph(f"Time: {seconds}. Data fingerprint {facts.fingerprint[:16]}.", muted=True),
        details("Counts of the data", table(["", "count"], rows)),
        details("Options of the run", f"<pre tabindex=0>{e(config_toml)}</pre>"),
    )
