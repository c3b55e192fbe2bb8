"""Probabilities by the validation events: what each moment's score said, and what came of it."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.core import schema
from ctxrec.data.outcomes import outcome_requests
from ctxrec.data.requests import Requests
from ctxrec.memory.calibration import Calibrations
from ctxrec.memory.calibration_fit import CALIBRATION, fit_calibration
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCounts
from ctxrec.memory.live_replay import Replayed, ReplayedSources
from ctxrec.memory.live_sources import AddsNow, LiveSources, LiveWeights
from ctxrec.memory.scoring import BlendScorer
from ctxrec.training.live_calibration import stream_of
from ctxrec.training.phase_setup import Setup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveScorer:
    """The scores of a model with live sources (`ctxrec.memory.scoring.Scorer`); asked in the order of time.

    scorer: with the weights of the blend that hold beside live sources. live: what these add.
    """

    scorer: BlendScorer
    live: AddsNow

    @property
    def vectors(self) -> np.ndarray:
        """Search vectors of all items: float32 [I, D]."""
        return self.scorer.vectors

    def queries(self, requests: Requests) -> np.ndarray:
        """Queries for `vectors`: float32 [N, D]."""
        return self.scorer.queries(requests)

    def remembered(self, requests: Requests) -> sp.csr_array:
        """What the item memory and the live sources add: float32 [N, I], 0 or more."""
        now, before = self.live.scores(requests, len(self.vectors)), self.scorer.remembered(requests)
        return now if before is None else sp.csr_array(before + now)


def calibrated(setup: Setup, scorer: BlendScorer, live: LiveWeights | None) -> Calibrations | None:
    """The calibrations of a model; None where the validation events are too few.

    Args:
        setup: what all phases share.
        scorer: the model, which knows the training events alone.
        live: weights of its live sources, where it has any.
    """
    data, seed = setup.log.data, setup.config.train.seed
    requests = outcome_requests(data, schema.VALID, CALIBRATION.requests)
    if requests is None:
        logger.info("no probabilities: no validation event says what came of a request")
        return None
    repeats = data.spec.split.repeats
    plain = fit_calibration(scorer, requests, data.kinds, repeats=repeats, seed=seed)
    if plain is None or live is None or scorer.blend is None:
        return None if plain is None else Calibrations(plain)
    counts = LiveCounts(data.num_items, dataclasses.replace(LIVE_COUNTS, half_lives_s=live.half_lives_s))
    replayed = Replayed(stream_of(setup.log.scan.events, before=schema.TEST), counts)
    beside = dataclasses.replace(scorer, blend=dataclasses.replace(scorer.blend, weights_2K=live.blend_2K))
    moving = LiveScorer(beside, ReplayedSources(replayed, LiveSources(counts, live)))
    found = fit_calibration(moving, requests, data.kinds, repeats=repeats, seed=seed, sample=plain.sample)
    return Calibrations(plain, found)
