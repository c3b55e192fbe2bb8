"""What the tuning of the encoder brought: the tuned and the frozen encoder with everything else equal."""

from __future__ import annotations

from typing import Any

from ctxrec.evaluation.systems import FROZEN, MODEL, TUNED, TUNED_MINUS_FROZEN
from ctxrec.metrics.intervals import Interval
from ctxrec.training.encoder_outcome import EncoderOutcome

ABLATION = "frozen_encoder"
_GAIN = "ndcg@10"


def compare_encoders(metrics: dict[str, Any], outcome: EncoderOutcome) -> dict[str, Any]:
    """The keys `frozen`, `tuned` and `encoder` of `metrics.json`.

    The frozen and the tuned system are both refitted or neither. Of a run whose encoder stayed as it was, both are the
    model. Else the ablation `frozen_encoder` is the frozen one beside the model where it was evaluated, and otherwise the
    model before and after its encoder's phase are compared, without refit.

    Args:
        metrics: with the keys of `ctxrec.evaluation.summary.summarise`.
        outcome: of the run.

    Returns:
        `encoder` holds the state and the reason; which systems `frozen` and `tuned` are; and the gain, tuned minus
        frozen (an interval with p), None where there is nothing to compare.
    """
    about: dict[str, Any] = {"state": outcome.state, "reason": outcome.why, "gain": None}
    if not outcome.is_tuned:
        return {FROZEN: metrics[MODEL], TUNED: metrics[MODEL], "encoder": about | {FROZEN: MODEL, TUNED: MODEL}}
    paired: dict[str, dict[str, Interval]] = metrics["paired"]
    for frozen, tuned, difference in (
        (ABLATION, MODEL, ABLATION),
        (FROZEN, TUNED, TUNED_MINUS_FROZEN),
        (FROZEN, MODEL, FROZEN),
    ):
        if difference in paired:
            systems = {name: metrics["ablations"].get(name) or metrics[name] for name in (frozen, tuned)}
            about |= {FROZEN: frozen, TUNED: tuned, "gain": paired[difference][_GAIN]}
            return {FROZEN: systems[frozen], TUNED: systems[tuned], "encoder": about}
    return {FROZEN: {}, TUNED: metrics[MODEL], "encoder": about | {FROZEN: None, TUNED: MODEL}}


def encoder_sentence(metrics: dict[str, Any]) -> str:
    """What became of the encoder, as one line for the table, the demo and the report; "" without a run."""
    about = metrics.get("encoder")
    if not about:
        return ""
    if about["state"] == FROZEN:
        return f"the encoder is frozen, because {about['reason']}: with and without tuning this is the same model"
    if about["gain"] is None:
        return f"the encoder is tuned ({about['reason']}); the run has no model of the frozen encoder to compare with"
    gain, refitted = about["gain"], about[FROZEN] == ABLATION
    how = "both refitted" if refitted else "neither refitted"
    return (
        f"tuned minus frozen encoder, all else equal ({how}): NDCG@10 {gain['mean']:+.4f} (95 % interval "
        f"{gain['low']:+.4f} to {gain['high']:+.4f})"
    )
