"""Which logs can teach the text encoder, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.core.config import load_config
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.training.tuning_rule import TuningRuleParams, why_not_asked, why_not_taught

PARAMS = TuningRuleParams(min_events=10, min_differing=0.5, min_tokens=1)


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


@pytest.mark.parametrize(("lengths", "why"), [((3, 1, 3, 1, 3), ""), ((3, 1, 2, 1, 3), "2 tokens (median)")])
def test_texts_must_say_enough(lengths, why):
    words = np.repeat(np.arange(5, dtype=np.int32), lengths)  # each text repeats a word of its own
    tokens = Tokens(words, np.concatenate([[0], np.cumsum(lengths)]), pad_id=0)
    limits = TuningRuleParams(min_events=0, min_differing=0, min_tokens=3)
    assert why in why_not_taught(50, 5, tokens, np.arange(5), params=limits)
    assert bool(why_not_taught(50, 5, tokens, np.arange(5), params=limits)) == bool(why)
    if why:  # the short texts do not count where they have no events
        assert why_not_taught(50, 2, tokens, np.array([0, 4]), params=limits) == ""


def test_a_number_of_epochs_forces_the_phase_where_some_text_has_events():
    tokens = texts(1, 1)
    assert why_not_taught(2, 2, tokens, np.arange(2)) != ""
    assert why_not_taught(2, 2, tokens, np.arange(2), forced=True) == ""
    assert why_not_taught(2, 2, tokens, np.zeros(0, int), forced=True) == "no item with training events has a text"


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("train.seed=1", ""),
        ("encoder.name=", "the model reads no text"),
        ("train.preset=quick", "train.preset is quick"),
        ("encoder.tune=freeze", "encoder.tune is freeze"),
        ("train.encoder_epochs=3", ""),
        ("train.encoder_epochs=0", "train.encoder_epochs is 0"),
    ],
)
def test_what_the_options_ask_for(option, why):
    assert why_not_asked(load_config(None, [option])) == why
