"""Section of the report about probabilities: whether what is told comes true as often as it is told."""

from __future__ import annotations

from typing import Any

from ctxrec.evaluation.probability_check import PROBABILITY
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import chart, details, finding, paragraph, section, table
from ctxrec.memory.calibration import SUCCESS


def probabilities(metrics: dict[str, Any]) -> str:
    """The reliability diagram with its figures; "" where the model tells no probabilities."""
    facts = metrics.get(PROBABILITY)
    if not facts:
        return ""
    judged = facts["of"] == SUCCESS
    area, loss, base, gain = (facts[name] for name in ("auc", "log_loss", "log_loss_of_base_rate", "log_loss_gain"))
    clear = (
        "less, and clearly so"
        if gain["low"] > 0
        else ("more, and clearly so" if gain["high"] < 0 else "no clear difference")
    )
    of = (
        "that an item is a success if the user meets it now. An item counts that the user first met and judged in this split"
        if judged
        else "that an item is among the next events of the user, those of one moment. All items of the catalogue count that may be "
        "recommended, or a sample that stands for them"
    )
    points = [
        charts.Point(one["predicted"], one["observed"], one["low"], one["high"], "model") for one in facts["bins"]
    ]
    rows = [
        (
            f"{one['predicted']:.3g}",
            [
                f'<td>{one["observed"]:.3g}<span class="interval">{one["low"]:.3g} – {one["high"]:.3g}</span></td>',
                f"<td>{one['pairs']:,.0f}</td>",
            ],
            False,
        )
        for one in facts["bins"]
    ]
    return section(
        "Probabilities",
        finding(
            f"Log-loss {loss['mean']:.4g} ({loss['low']:.4g} to {loss['high']:.4g}), {clear} than with the base rate for all "
            f"({base['mean']:.4g}). AUC {area['mean']:.3f} ({area['low']:.3f} to {area['high']:.3f})."
        ),
        paragraph(
            f"The probability is {of}. It was fitted to the validation events. Each dot holds as many "
            f"{'pairs' if judged else 'next events'}; on the line as many come true as are told. The mean distance of the dots from the "
            f"line, each with its number of pairs, is {facts['calibration_error']:.2g} (expected calibration error). On average "
            f"{facts['predicted']:.3g} is told and {facts['observed']:.3g} is seen."
        ),
        chart(
            charts.reliability_chart(
                points, title="Reliability of the probabilities", x_label="told", y_label="seen", logarithmic=not judged
            )
        ),
        details("The same as a table", table(["told", "seen", "pairs"], rows)),
        paragraph(
            f"{facts['requests']:,} moments, {facts['happened']:,} {'successes' if judged else 'next events'}. Bars of the dots are "
            "95 % intervals (Wilson); those of the figures are of resampled users. AUC is the chance that a pair that came true "
            "was given a higher probability than one that did not.",
            muted=True,
        ),
    )
