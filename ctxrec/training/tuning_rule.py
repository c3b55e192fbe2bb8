"""Whether a log can teach the text encoder anything: decided from the log and the texts, before any time is spent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ctxrec.core.config import Config
from ctxrec.encoder.cache import item_keys
from ctxrec.encoder.encode_plan import Tokens


@dataclass(frozen=True)
class TuningRuleParams:
    """Limits below which the encoder is not tuned. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        min_events: training events of an item, on average. With 4 (Amazon Industrial) every way to tune made the model
            worse. Logs with 58 and 80 events an item are above it. Nothing between 4 and 58 has been measured.
        min_differing: share of the texts of items with events that no other item has. No measurement supports it.
        min_tokens: tokens of the texts of items with events, median. Titles and names of products gained nothing or next
            to nothing (MovieLens-100K 12 tokens, Online Retail 7, the simulated log some 8). The descriptions of `ctxrec
            datasets simulate --descriptions` have 109, and tuning gains there. Nothing between them has been measured.
    """

    min_events: float = 10.0
    min_differing: float = 0.5
    min_tokens: float = 32.0


TUNING_RULE = TuningRuleParams()


def why_not_asked(config: Config) -> str:
    """Why the options leave the encoder's phase out, in words; "" where they ask for it."""
    why_not = why_never_tuned(config)
    return why_not or ("train.encoder_epochs is 0" if config.train.encoder_epochs == 0 else "")


def why_never_tuned(config: Config) -> str:
    """Why no phase can change the encoder, in words; "" where one can."""
    if not config.encoder.name or "text" not in config.model.sources:
        return "the model reads no text"
    if config.train.preset == "quick":
        return "train.preset is quick"
    return "encoder.tune is freeze" if config.encoder.tune == "freeze" else ""


def why_not_taught(
    num_events: int,
    num_items: int,
    tokens: Tokens,
    shown: np.ndarray,
    *,
    forced: bool = False,
    params: TuningRuleParams = TUNING_RULE,
) -> str:
    """Why a log cannot teach the encoder, in words; "" where it may.

    Args:
        num_events: training events.
        num_items: items that have some.
        tokens: texts of the catalogue.
        shown: positions of the items that have training events and a text, [N].
        forced: the options demand the phase, so that no limit counts.
        params: the limits.
    """
    if not len(shown):
        return "no item with training events has a text"
    if forced:
        return ""
    each = num_events / num_items
    if each < params.min_events:
        return f"the log has {each:.1f} training events an item, and tuning needs {params.min_events:g} or more"
    length = float(np.median(tokens.lengths[shown]))
    if length < params.min_tokens:
        return (
            f"the texts of items with training events have {length:g} tokens (median), and tuning needs "
            f"{params.min_tokens:g} or more"
        )
    keys = item_keys(tokens)
    shared = Counter(keys[item] for item in shown.tolist())
    differing = sum(count == 1 for count in shared.values()) / len(shown)
    if differing < params.min_differing:
        return (
            f"{differing:.0%} of the items with training events have a text that no other item has, and tuning needs "
            f"{params.min_differing:.0%} or more"
        )
    return ""
