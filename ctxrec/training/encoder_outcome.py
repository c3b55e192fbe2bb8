"""What became of the encoder's phase of a training: its result is kept, or thrown away, or there was no such phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
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


@dataclass(frozen=True)
class PairOutcome:
    """What tuning on the pairs of several logs came to (`ctxrec.training.pair_phase`).

    logs: how many, the own one included. pairs: of items, in all of them. kept: whether the encoder changed.
    before, best: NDCG@10 of the own validation events by texts alone, with the encoder as it was and with the best of the
        phase; None without such events.
    """

    logs: int
    pairs: int
    kept: bool
    before: float | None
    best: float | None
    seconds: float

    @property
    def why(self) -> str:
        """What the phase brought, in words."""
        told = f"{self.pairs:,} pairs of items of {self.logs} logs"
        if self.before is None or self.best is None:
            return f"{told} tuned it, without validation events to judge it by ({self.seconds:.0f} s)"
        what = "validation NDCG@10 of the texts alone"
        if self.kept:
            return f"{told} lifted {what} from {self.before:.4f} to {self.best:.4f} in {self.seconds:.0f} s"
        return f"{told} gained nothing for {what} ({self.before:.4f} before); their {self.seconds:.0f} s were lost"

    def write(self, path: str) -> None:
        """Write it as JSON."""
        storage.write_json(path, vars(self))

    @staticmethod
    def read(path: str) -> PairOutcome:
        """Read what `write` wrote."""
        return PairOutcome(**storage.read_json(path))


def with_pairs(outcome: EncoderOutcome, pairs: PairOutcome) -> EncoderOutcome:
    """The outcome of a training that also tuned the encoder on pairs, before the towers."""
    if pairs.kept:
        after = (
            f"; after that {outcome.why}" if outcome.is_tuned else f"; no other phase tuned it, because {outcome.why}"
        )
        return EncoderOutcome(TUNED, pairs.why + after)
    return EncoderOutcome(outcome.state, f"{outcome.why}; {pairs.why}")


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
