"""What became of the encoder's phase of a training: its result is kept, or thrown away, or there was no such phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxrec.core.config import Config
from ctxrec.training.tuning_rule import why_not_asked

TUNED, FROZEN = "tuned", "frozen"


@dataclass(frozen=True)
class EncoderOutcome:
    """Whether the model's text vectors are by a tuned or a frozen encoder, and why, in words."""

    state: str  # TUNED or FROZEN
    why: str

    @property
    def is_tuned(self) -> bool:
        """Whether the result of the phase was kept."""
        return self.state == TUNED

    @property
    def sentence(self) -> str:
        """The outcome as one line.

        >>> EncoderOutcome("frozen", "encoder.tune is freeze").sentence
        'encoder: frozen, because encoder.tune is freeze'
        """
        return f"encoder: {self.state}, because {self.why}"


def encoder_outcome(config: Config, train_log: Sequence[dict[str, Any]], why_not: str = "") -> EncoderOutcome:
    """The outcome of a finished training.

    The phase keeps its best weights by validation NDCG@10. Where the best are those that it began with, the encoder stays
    as it was. Without validation events the last weights are kept.

    Args:
        config: the options of the training.
        train_log: its records (`ctxrec.training.trackers.read_train_log`).
        why_not: why there was no such phase, in words, where the log was the reason (`ctxrec.training.tuning_rule`).
    """
    if not_asked := why_not_asked(config):
        return EncoderOutcome(FROZEN, not_asked)
    records = [record for record in train_log if record["phase"] == "encoder"]
    if not records:
        return EncoderOutcome(FROZEN, why_not or "no item has a text")
    seconds = max(record.get("seconds", 0.0) for record in records)
    found = [record["valid_ndcg@10"] for record in records if "valid_ndcg@10" in record]
    if not found:
        return EncoderOutcome(TUNED, f"there are no validation events to judge it by (the phase took {seconds:.0f} s)")
    start, best = found[0], max(found[1:], default=float("-inf"))
    if best > start:
        why = f"tuning lifted the towers' validation NDCG@10 from {start:.4f} to {best:.4f} in {seconds:.0f} s"
        return EncoderOutcome(TUNED, why)
    most = f"{start:.4f} before, at most {best:.4f} after" if found[1:] else f"{start:.4f} before"
    why = (
        f"tuning gained nothing on the validation events (NDCG@10 of the towers {most}); its {seconds:.0f} s were lost"
    )
    return EncoderOutcome(FROZEN, why)
