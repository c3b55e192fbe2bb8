"""Probabilities by the validation events: what each moment's score said, and what came of it."""

from __future__ import annotations

import logging

from ctxrec.core import schema
from ctxrec.data.outcomes import outcome_requests
from ctxrec.memory.calibration import Calibration
from ctxrec.memory.calibration_fit import CALIBRATION, fit_calibration
from ctxrec.memory.scoring import Scorer
from ctxrec.training.phase_setup import Setup

logger = logging.getLogger(__name__)


def calibrated(setup: Setup, scorer: Scorer) -> Calibration | None:
    """The calibration of a model; None where the validation events are too few.

    Args:
        setup: what all phases share.
        scorer: the model, which knows the training events alone.
    """
    data = setup.log.data
    requests = outcome_requests(data, schema.VALID, CALIBRATION.requests)
    if requests is None:
        logger.info("no probabilities: no validation event says what came of a request")
        return None
    return fit_calibration(scorer, requests, data.kinds, repeats=data.spec.split.repeats, seed=setup.config.train.seed)
