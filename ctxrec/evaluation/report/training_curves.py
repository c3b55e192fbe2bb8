"""The report's section about training: curves of loss and validation quality, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import details, e, legend, paragraph, section, table

_MAX_POINTS = 300  # of a curve; longer ones are averaged in steps
PHASES = {"towers": "towers", "encoder": "towers and encoder", "refit": "refit"}
_KINDS = {"towers": "before", "encoder": "model", "refit": "text"}  # of the curves: marks and colours


def training(train_log: Sequence[dict[str, Any]]) -> str:
    """Curves of a training, and its evaluations as a table.

    Args:
        train_log: records of train_log.jsonl, may be empty.
    """
    if not train_log:
        return section("Training", paragraph("This run has no training log."))
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
            cells = [f"<td>{_epoch(record)}</td>", f"<td>{e(record.get('step', '–'))}</td>"]
            cells += [f"<td>{loss}</td>", f"<td>{record['valid_ndcg@10']:.4f}</td>"]
            rows.append((PHASES.get(record["phase"], record["phase"]), cells, False))
    evaluations = table(["phase", "epoch", "step", "loss", "validation NDCG@10"], rows) if rows else ""
    return section(
        "Training",
        paragraph(_story({record["phase"] for record in train_log})),
        legend([(line.kind, line.label) for line in losses or valid]),
        f'<div class="figures">{"".join(figures)}</div>',
        details("Evaluations during training", evaluations) if evaluations else "",
    )


def _story(phases: set[str]) -> str:
    """The phases of a training in words."""
    told = "The towers are trained on the training events."
    if "encoder" in phases:
        told = "First the towers are trained on the vectors of the frozen encoder, then the encoder is tuned with them."
    if "refit" in phases:
        told += " At last the towers are trained again on training and validation events (refit), for the number of steps that was best before."
    return told


def _epoch(record: dict[str, Any]) -> str:
    return f"{record['epoch']:.1f}" if "epoch" in record else "–"


def _curves(
    train_log: Sequence[dict[str, Any]],
) -> tuple[list[charts.Line], list[charts.Line], tuple[float, str] | None]:
    """Loss and validation curves of each phase on one axis of steps, and where the last phase begins."""
    losses: list[charts.Line] = []
    valid: list[charts.Line] = []
    offset, boundary = 0.0, None
    phases = list(dict.fromkeys(record["phase"] for record in train_log))
    for n, phase in enumerate(phases):
        records = [r for r in train_log if r["phase"] == phase]
        if n and min(r["step"] for r in records) <= offset:  # a phase that counts its own steps
            records = [r | {"step": r["step"] + offset} for r in records]
        if n:
            boundary = (offset, "encoder tuned" if phase == "encoder" else phase)
        kind, label = _KINDS.get(phase, "other"), PHASES.get(phase, phase)
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
