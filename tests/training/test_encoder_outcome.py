"""What became of the encoder's phase, from the records of a training."""

from __future__ import annotations

import pytest

from ctxrec.core.config import Config, config_with
from ctxrec.training.encoder_outcome import encoder_outcome

TOWERS = [{"phase": "towers", "step": 9, "valid_ndcg@10": 0.5}]


def records(*found: float) -> list[dict]:
    return TOWERS + [
        {"phase": "encoder", "step": n, "valid_ndcg@10": value, "seconds": 10.0 * n} for n, value in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("options", "log", "state", "why"),
    [
        ({}, records(0.1, 0.2, 0.15), "tuned", "NDCG@10 from 0.1000 to 0.2000 in 20 s"),
        (
            {},
            records(0.1, 0.09),
            "frozen",
            "(NDCG@10 of the towers 0.1000 before, at most 0.0900 after); its 10 s were",
        ),
        ({}, records(0.1, 0.1), "frozen", "gained nothing"),
        ({}, TOWERS, "frozen", "no item has a text"),
        ({"train": {"preset": "quick"}}, [], "frozen", "train.preset is quick"),
        ({}, [*TOWERS, {"phase": "encoder", "step": 3, "seconds": 4.0}], "tuned", "no validation events"),
        ({"encoder": {"tune": "freeze"}}, TOWERS, "frozen", "encoder.tune is freeze"),
        ({"train": {"encoder_epochs": 0}}, TOWERS, "frozen", "train.encoder_epochs is 0"),
        ({"encoder": {"name": ""}}, TOWERS, "frozen", "the model reads no text"),
    ],
)
def test_outcomes(options, log, state, why):
    config = config_with(options, [], source="test") if options else Config()
    outcome = encoder_outcome(config, log)
    assert outcome.state == state and why in outcome.why
    assert outcome.sentence.startswith(f"encoder: {state}, because ")


def test_a_log_that_cannot_teach_the_encoder_is_the_reason():
    why = "the log has 4.0 training events an item, and tuning needs 10 or more"
    assert encoder_outcome(Config(), TOWERS, why).sentence == f"encoder: frozen, because {why}"
    assert encoder_outcome(Config(), records(0.1, 0.2), "").is_tuned
