"""Which logs can teach the text encoder, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.core.config import load_config
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.training.tuning_rule import TuningRuleParams, why_not_asked, why_not_taught

PARAMS = TuningRuleParams(min_events=10, min_differing=0.5)


def texts(*words: int) -> Tokens:
    """Texts of one token each."""
    return Tokens(np.array(words, np.int32), np.arange(len(words) + 1), pad_id=0)


@pytest.mark.parametrize(
    ("events", "items", "words", "shown", "why"),
    [
        (40, 4, (1, 2, 3, 4), (0, 1, 2, 3), ""),
        (39, 4, (1, 2, 3, 4), (0, 1, 2, 3), "the log has 9.8 training events an item, and tuning needs 10 or more"),
        (40, 4, (1, 2, 3, 4), (), "no item with training events has a text"),
        (40, 4, (1, 1, 3, 4), (0, 1, 2, 3), ""),  # half of the texts are of one item alone
        (40, 4, (1, 1, 1, 4), (0, 1, 2, 3), "25% of the items with training events have a text that no other item has"),
        (40, 4, (1, 1, 1, 4), (0, 3), ""),  # items without training events do not count
    ],
)
def test_what_a_log_can_teach(events, items, words, shown, why):
    found = why_not_taught(events, items, texts(*words), np.array(shown, int), params=PARAMS)
    assert found.startswith(why) and bool(found) == bool(why)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("train.seed=1", ""),
        ("encoder.name=", "the model reads no text"),
        ("train.preset=quick", "train.preset is quick"),
        ("encoder.tune=freeze", "encoder.tune is freeze"),
        ("train.encoder_epochs=0", "train.encoder_epochs is 0"),
    ],
)
def test_what_the_options_ask_for(option, why):
    assert why_not_asked(load_config(None, [option])) == why
