"""Calibrated probabilities: the truth is found where it is known, they never fall as scores rise, and files keep them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.events import US, Context, Events, Users
from ctxrec.data.feedback import EventKinds
from ctxrec.data.requests import Requests
from ctxrec.memory.calibration import (
    LIKING,
    LOGISTIC,
    NEXT,
    SPREAD,
    SUCCESS,
    Calibration,
    Calibrations,
    Curve,
    Sample,
    liking_of,
)
from ctxrec.memory.calibration_fit import CALIBRATION, fit_calibration, isotonic_curve, outcome_pairs
from ctxrec.metrics.probability_metrics import auc, log_losses, reliability

ITEMS, WIDTH = 60, 5
PLAIN = EventKinds.of(EventsSpec(path=""), [], {})
JUDGED = EventKinds.of(
    EventsSpec(path="", action="kind", actions={"like": 1.0, "dislike": -1.0}), ["like", "dislike"], {}
)


@dataclass
class Known:
    """Scores that are inner products of fixed vectors; the memory adds 1 to one item of each request."""

    vectors: np.ndarray
    asks: np.ndarray

    def queries(self, requests: Requests) -> np.ndarray:
        return self.asks[requests.times // US]

    def remembered(self, requests: Requests) -> sp.csr_array:
        num = len(requests)
        places = (np.arange(num), requests.times // US % ITEMS)
        return sp.csr_array((np.ones(num, np.float32), places), (num, ITEMS))

    def all_scores(self) -> np.ndarray:
        times = np.arange(len(self.asks)) * US
        return self.asks @ self.vectors.T + self.remembered(requests_at(times, np.zeros(len(times)))).toarray()


def requests_at(times: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Requests:
    num, none = len(times), np.zeros(0, np.int64)
    return Requests(
        users=Users(ids=np.array([f"u{n // 4}" for n in range(num)], object)),
        history=Events(np.zeros(num + 1, np.int64), none.astype(np.int32), none, none.astype(np.int16), Context()),
        times=times.astype(np.int64),
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=targets.astype(np.int32),
        target_weights=weights,
    )


def known(num: int, seed: int) -> Known:
    rng = np.random.default_rng(seed)
    vectors = np.random.default_rng(99).normal(size=(ITEMS, WIDTH)).astype(np.float32)
    return Known(vectors, rng.normal(size=(num, WIDTH)).astype(np.float32))


def judged_log(num: int, seed: int, slope: float = 1.5, intercept: float = -0.5) -> tuple[Known, Requests, np.ndarray]:
    """Items met by chance, which are a success with the log odds `slope` * score + `intercept`."""
    rng, model = np.random.default_rng(seed), known(num, seed)
    items = rng.integers(ITEMS, size=num)
    truth = 1 / (1 + np.exp(-(slope * model.all_scores()[np.arange(num), items] + intercept)))
    weights = np.where(rng.random(num) < truth, 1, -1).astype(np.float32)
    return model, requests_at(np.arange(num) * US, items, weights), truth


def next_log(num: int, seed: int, heat: float = 0.8) -> tuple[Known, Requests, np.ndarray]:
    """Next events by a softmax of `heat` times the scores."""
    rng, model = np.random.default_rng(seed), known(num, seed)
    truth = np.exp(heat * model.all_scores())
    truth /= truth.sum(1, keepdims=True)
    items = np.array([rng.choice(ITEMS, p=row) for row in truth])
    return model, requests_at(np.arange(num) * US, items), truth


def test_the_probability_of_a_success_is_the_true_one():
    model, requests, _ = judged_log(4000, 0)
    found = fit_calibration(model, requests, JUDGED, repeats=True, seed=0)
    assert found is not None and found.of == SUCCESS
    fresh, later, truth = judged_log(4000, 1)
    (told,) = np.stack(found.probabilities(fresh, later, JUDGED, [row[None] for row in later.target_items])).T
    assert np.abs(told - truth).mean() < 0.03
    happened = later.target_weights > 0
    ones = np.ones(len(told))
    assert reliability(told, happened, ones, by=ones, num=10).expected_error < 0.03
    gap = log_losses(told, happened).mean() - log_losses(truth, happened).mean()
    assert -0.002 < gap < 0.01, "no better than the truth, and nearly as good"
    assert auc(told, happened, ones) > auc(truth, happened, ones) - 0.01


def test_the_probability_of_the_next_event_is_the_true_one():
    model, requests, _ = next_log(4000, 0)
    found = fit_calibration(model, requests, PLAIN, repeats=True, seed=0)
    assert found is not None and found.of == NEXT and SPREAD in found.weights
    fresh, later, truth = next_log(200, 1)
    told = np.stack(found.probabilities(fresh, later, PLAIN, [np.arange(ITEMS)] * 200))
    assert np.abs(told - truth).mean() < 0.15 * truth.mean()
    assert told.sum() == pytest.approx(200, rel=0.05), "the probabilities of a request sum to about 1"
    assert np.corrcoef(told.ravel(), truth.ravel())[0, 1] > 0.98


def test_a_drawn_sample_says_about_what_the_whole_catalogue_says():
    model, requests, _ = next_log(3000, 0)
    small = dataclasses.replace(CALIBRATION, sample=30, best=5, drawn=10)
    found = fit_calibration(model, requests, PLAIN, repeats=True, seed=0, params=small)
    assert found is not None and len(found.sample.items) == 30
    fresh, later, truth = next_log(300, 1)
    told = np.stack(found.probabilities(fresh, later, PLAIN, [np.arange(ITEMS)] * 300))
    assert told.sum() == pytest.approx(300, rel=0.15)
    assert np.corrcoef(told.ravel(), truth.ravel())[0, 1] > 0.9


def test_pairs_stand_for_all_that_could_have_come():
    """Drawn pairs have the weights of those that they stand for; items of the history are no pairs without repeats."""
    model, requests, _ = next_log(50, 0)
    sample = Sample(np.arange(ITEMS), np.zeros(ITEMS))
    whole = outcome_pairs(model, requests, PLAIN, sample, repeats=True)
    drawn = outcome_pairs(model, requests, PLAIN, sample, repeats=True, draw=(5, 7), rng=np.random.default_rng(0))
    assert len(whole.rows) == 50 * ITEMS and len(drawn.rows) == 50 * 13
    assert whole.weights.sum() == pytest.approx(drawn.weights.sum())
    assert whole.base_rate == pytest.approx(1 / ITEMS)
    history = Events(
        np.arange(51), (requests.target_items + 1) % ITEMS, requests.times, np.zeros(50, np.int16), Context()
    )
    less = outcome_pairs(model, dataclasses.replace(requests, history=history), PLAIN, sample, repeats=False)
    assert len(less.rows) == 50 * (ITEMS - 1)


def test_scores_that_say_the_reverse_say_nothing():
    model, requests, _ = judged_log(3000, 0, slope=-1.5)
    found = fit_calibration(model, requests, JUDGED, repeats=True, seed=0)
    assert found is not None and found.slope == 0
    told = found.probabilities(model, requests.take(np.array([0])), JUDGED, [np.arange(ITEMS)])[0]
    assert np.ptp(told) == 0


def test_too_few_outcomes_make_no_calibration(caplog):
    model, requests, _ = judged_log(300, 0, intercept=20)
    with caplog.at_level("INFO", logger="ctxrec.memory.calibration_fit"):
        assert fit_calibration(model, requests, JUDGED, repeats=True, seed=0) is None
    assert "no probabilities: 300 and 0 outcomes of each kind; 20 are needed" in caplog.text


def test_liking_is_the_users_own_share_of_successes_drawn_to_that_of_all():
    requests = requests_at(np.arange(3) * US, np.zeros(3))
    codes = np.array([1, 1, 2, 1, 0, 2], np.int16)  # like, like, dislike; like, no action, dislike; nothing
    history = Events(np.array([0, 3, 6, 6]), np.zeros(6, np.int32), np.zeros(6, np.int64), codes, Context())
    found = liking_of(dataclasses.replace(requests, history=history), JUDGED, base_rate=0.5)
    shares = np.array([(2 + 5) / 13, (1 + 5) / 12, 0.5])
    np.testing.assert_allclose(found, np.log(shares / (1 - shares)))


odds = st.lists(st.floats(-50, 50), min_size=2, max_size=30)


@settings(max_examples=100, deadline=None)
@given(
    scores=odds,
    slope=st.floats(0, 100),
    weights=st.dictionaries(st.sampled_from([SPREAD, LIKING]), st.floats(-10, 10)),
    intercept=st.floats(-100, 100),
    knots=st.lists(st.tuples(st.floats(-50, 50), st.booleans(), st.floats(0.1, 5)), max_size=40),
)
def test_a_probability_never_falls_as_the_score_rises(scores, slope, weights, intercept, knots):
    curve = LOGISTIC
    if knots:
        at, happened, many = (np.array(column) for column in zip(*knots, strict=True))
        curve = isotonic_curve(at, happened, many, points=2.0)
    made = Calibration(SUCCESS, 0.5, slope, weights, intercept, curve, Sample(np.arange(3), np.zeros(3)))
    made = Calibration.of_arrays(made.to_arrays(), 3)
    told = made.of_scores(np.sort(scores)[None], {SPREAD: np.array([3.0]), LIKING: np.array([-1.0])})[0]
    assert (np.diff(told) >= 0).all() and (told >= 0).all() and (told <= 1).all()


@pytest.mark.parametrize(
    "change",
    [
        {"of": np.frombuffer(b"luck", np.uint8)},
        {"line": np.array([-1.0, 0.0, 0.5])},
        {"line": np.array([1.0, 0.0, 1.0])},
        {"features": np.zeros(3, np.uint8)},
        {"log_odds": np.array([0.0, 1.0]), "probabilities": np.array([0.6, 0.5])},
        {"log_odds": np.array([1.0, 0.0]), "probabilities": np.array([0.5, 0.6])},
        {"log_odds": np.array([0.0, 1.0]), "probabilities": np.array([0.5, 1.6])},
        {"items": np.array([0, 1, 3])},
        {"log_weights": np.zeros(2)},
    ],
)
def test_what_cannot_be_a_calibration_is_refused(change):
    made = Calibration(
        NEXT, 0.5, 1.0, {SPREAD: -1.0}, 0.0, Curve(np.zeros(1), np.ones(1)), Sample(np.arange(3), np.zeros(3))
    )
    arrays = made.to_arrays()
    assert Calibration.of_arrays(arrays, 3).weights == {SPREAD: -1.0}
    with pytest.raises(ValueError, match="calibration"):
        Calibration.of_arrays(arrays | change, 3)


def some_calibration(of: str = NEXT, slope: float = 1.0) -> Calibration:
    sample = Sample(np.array([1, 3, 5]), np.array([0.0, 0.5, 0.0]))
    return Calibration(of, 0.5, slope, {SPREAD: -1.0}, 0.0, LOGISTIC, sample)


def test_requests_with_live_scores_have_a_calibration_of_their_own():
    model, requests, _ = next_log(3, 0)
    both = Calibrations(some_calibration(), some_calibration(slope=0.5))
    again = Calibrations.of_arrays(both.to_arrays(), ITEMS)
    items, current = [np.arange(4)] * 3, np.array([False, True, False])
    found = again.probabilities(model, requests, PLAIN, items, current)
    for n, calibration in enumerate((both.plain, both.live, both.plain)):
        alone = calibration.probabilities(model, requests.take(np.array([n])), PLAIN, [np.arange(4)])[0]
        np.testing.assert_allclose(found[n], alone)
    assert Calibrations.of_arrays(Calibrations(both.plain).to_arrays(), ITEMS).live is None


def test_a_calibration_follows_its_items_into_another_catalogue():
    both = Calibrations(some_calibration(), some_calibration())
    places = np.array([9, 8, 7, 6, 5, 4])  # of items 0 to 5
    moved = both.moved(places)
    assert moved is not None and moved.live is None
    assert moved.plain.sample.items.tolist() == [4, 6, 8] and moved.plain.sample.log_weights.tolist() == [0.0, 0.5, 0.0]
    assert both.moved(np.where(places == 6, -1, places)) is None, "the item that stands for most is not there"
