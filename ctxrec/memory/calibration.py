"""From the score of an item to a probability: what a bundle keeps for it, and how a request uses it.

What the probability is of depends on the log. Where values or actions of negative weight judge items
(`EventKinds.are_judged`), it is that of a success if the user meets the item now. Otherwise it is that the item is the
user's next event among the items that may be recommended to them.

The log odds are linear in the score and in at most two features of the request, the same for all of its items:

    log odds = slope * score + weight of each feature * feature + intercept,    slope >= 0

so within one request a higher score never has a lower probability. The features say what a score means for this request:

    spread  log of the sum of exp(score) over a fixed sample of items: how many items score high for this request. Without
            other terms, slope 1 and weight -1 make it a softmax.
    liking  log odds of the user's own share of successes in the history, drawn towards that of all users.

A curve may stand in the place of the logistic function: a rising one through a few points, made by isotonic regression.

Legend: N requests, P items of a request, S items of the sample, F features, B points of the curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.data.feedback import EventKinds
from ctxrec.data.requests import Requests
from ctxrec.memory.scoring import Scored, Scorer

SUCCESS, NEXT = "success", "next"
SPREAD, LIKING = "spread", "liking"
FEATURES = (SPREAD, LIKING)
_LEAST = 1e-6  # share that a history is drawn towards, at least
_LIKING_EVENTS = 10.0  # so many events of an average user are added to a history
_MOST = 0.9  # of a sample that another catalogue must have
_LIVE = "live."
_NAMES = "of"  # of the array that says what the probability is of


@dataclass(frozen=True)
class Sample:
    """Items by which the spread of a request's scores is told.

    items: int64 [S] positions, in order.
    log_weights: float64 [S], logarithm of the number of items that each stands for.
    """

    items: np.ndarray
    log_weights: np.ndarray

    def spread(self, scores: np.ndarray) -> np.ndarray:
        """The logarithm of the sum of exp(score) over the catalogue, estimated: float64 [N], of float [N, S]."""
        return np.logaddexp.reduce(scores.astype(np.float64) + self.log_weights, axis=1)


@dataclass(frozen=True)
class Curve:
    """Log odds to a probability: the logistic function, or a line through points. Both arrays float64 [B]; [0]: logistic."""

    log_odds: np.ndarray
    probabilities: np.ndarray

    def __call__(self, log_odds: np.ndarray) -> np.ndarray:
        if not len(self.log_odds):
            return 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
        return np.interp(log_odds, self.log_odds, self.probabilities)


LOGISTIC = Curve(np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Calibration:
    """What makes a score a probability.

    Attributes:
        of: `SUCCESS` or `NEXT`.
        base_rate: share of the pairs it was fitted to in which it happened.
        slope: of the score, 0 or more.
        weights: of the features of a request by name; a feature that is not named has none.
        intercept: of the log odds.
        curve: to a probability.
        sample: of the spread.
    """

    of: str
    base_rate: float
    slope: float
    weights: Mapping[str, float]
    intercept: float
    curve: Curve
    sample: Sample

    def probabilities(
        self,
        scorer: Scorer,
        requests: Requests,
        kinds: EventKinds,
        items: Sequence[np.ndarray],
        *,
        scored: Scored | None = None,
    ) -> list[np.ndarray]:
        """Probabilities of items by their own scores: for each request float64 [P].

        Args:
            scorer: the model.
            requests: N requests.
            kinds: what the events of their histories say.
            items: int64 [P] positions for each request.
            scored: what `scorer` makes of the requests; None: it is computed.
        """
        scored = scored or Scored.by(scorer, requests)
        vectors = scorer.vectors[self.sample.items] if SPREAD in self.weights else None
        liking, made = liking_of(requests, kinds, self.base_rate), []
        for n, wanted in enumerate(items):
            features = {LIKING: liking[n : n + 1]}
            scores = scored.scores_of(n, wanted, scorer.vectors[wanted])
            if vectors is not None:
                sampled = scored.scores_of(n, self.sample.items, vectors)
                features[SPREAD] = self.sample.spread(sampled[None])
            made.append(self.of_scores(scores[None], features)[0])
        return made

    def of_scores(self, scores: np.ndarray, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probabilities of scores, float64 [N, P], of requests with these features, float64 [N] each."""
        return self.curve(self.log_odds(scores, features))

    def log_odds(self, scores: np.ndarray, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the curve takes, float64 [N, P]: it rises with the score, or is level."""
        told = self.slope * scores.astype(np.float64) + self.intercept
        for name, weight in self.weights.items():
            told = told + weight * features[name][:, None]
        return told

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The calibration as plain arrays, which safetensors can hold: [F] each, [B] of the curve and [S] of the sample."""
        weights = [self.weights.get(name, np.nan) for name in FEATURES]
        used = np.isfinite(weights)
        return {
            _NAMES: np.frombuffer(self.of.encode(), np.uint8).copy(),
            "line": np.array([self.slope, self.intercept, self.base_rate]),
            "weights": np.where(used, weights, 0.0),
            "features": used.astype(np.uint8),
            "log_odds": self.curve.log_odds,
            "probabilities": self.curve.probabilities,
            "items": self.sample.items.astype(np.int64),
            "log_weights": self.sample.log_weights,
        }

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray], num_items: int) -> Calibration:
        """The inverse of `to_arrays`, for a catalogue of so many items.

        Raises:
            ValueError: the arrays do not fit together, or a probability would fall with the score.
        """
        of = bytes(arrays[_NAMES]).decode("ascii", "replace")
        slope, intercept, base_rate = arrays["line"].tolist()
        curve = Curve(arrays["log_odds"], arrays["probabilities"])
        sample = Sample(arrays["items"], arrays["log_weights"])
        used = arrays["features"] > 0
        if of not in (SUCCESS, NEXT) or slope < 0 or not 0 < base_rate < 1:
            raise ValueError(f"a calibration is of {of!r} with slope {slope:g} and base rate {base_rate:g}")
        if used.shape != (len(FEATURES),) or arrays["weights"].shape != used.shape:
            raise ValueError(f"a calibration has {len(used)} features; expected {len(FEATURES)}")
        rises = np.all(np.diff(curve.log_odds) >= 0) and np.all(np.diff(curve.probabilities) >= 0)
        inside = np.all((curve.probabilities >= 0) & (curve.probabilities <= 1))
        if curve.log_odds.shape != curve.probabilities.shape or not rises or not inside:
            raise ValueError("the curve of a calibration does not rise from 0 to 1")
        known = len(sample.items) and sample.items.min() >= 0 and sample.items.max() < num_items
        if sample.items.shape != sample.log_weights.shape or not known:
            raise ValueError(f"the sample of a calibration is not of the {num_items} items of the catalogue")
        weights = {name: float(arrays["weights"][place]) for place, name in enumerate(FEATURES) if used[place]}
        return Calibration(of, base_rate, slope, weights, intercept, curve, sample)


@dataclass(frozen=True)
class Calibrations:
    """The calibration of a model by what it was trained on, and that of its scores while live sources add to them.

    live: None where the model has no live sources. Scores with and without them have other weights.
    """

    plain: Calibration
    live: Calibration | None = None

    @property
    def of(self) -> str:
        """What the probabilities are of: `SUCCESS` or `NEXT`."""
        return self.plain.of

    def probabilities(
        self,
        scorer: Scorer,
        requests: Requests,
        kinds: EventKinds,
        items: Sequence[np.ndarray],
        current: np.ndarray,
        *,
        scored: Scored | None = None,
    ) -> list[np.ndarray]:
        """As `Calibration.probabilities`; `current`: which requests get live scores, bool [N]."""
        made: list[np.ndarray] = [np.zeros(0)] * len(items)
        for calibration, of in ((self.plain, ~current), (self.live or self.plain, current)):
            rows = np.flatnonzero(of)
            if len(rows):
                part = [items[n] for n in rows.tolist()]
                some = None if scored is None else scored.take(rows)
                found = calibration.probabilities(scorer, requests.take(rows), kinds, part, scored=some)
                for n, values in zip(rows.tolist(), found, strict=True):
                    made[n] = values
        return made

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of both (`Calibration.to_arrays`): [F], [B] and [S] of each; those of `live` have a prefix."""
        of_live = {} if self.live is None else self.live.to_arrays()
        return self.plain.to_arrays() | {_LIVE + name: array for name, array in of_live.items()}

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray], num_items: int) -> Calibrations:
        """The inverse of `to_arrays`, for a catalogue of so many items.

        Raises:
            ValueError: see `Calibration.of_arrays`.
        """
        of_live = {name.removeprefix(_LIVE): array for name, array in arrays.items() if name.startswith(_LIVE)}
        live = Calibration.of_arrays(of_live, num_items) if of_live else None
        return Calibrations(Calibration.of_arrays(arrays, num_items), live)

    def moved(self, places: np.ndarray) -> Calibrations | None:
        """The calibration without live sources for another catalogue; None where most of its sample is not there.

        Args:
            places: int64 [items of this catalogue], positions in the other one, -1 where it lacks the item.
        """
        sample = self.plain.sample
        there = places[sample.items] >= 0
        weights = np.exp(sample.log_weights)
        if weights[there].sum() < _MOST * weights.sum():
            return None
        items = places[sample.items[there]]
        order = np.argsort(items)
        moved = Sample(items[order], sample.log_weights[there][order])
        return Calibrations(Calibration(**{**vars(self.plain), "sample": moved}))


def liking_of(requests: Requests, kinds: EventKinds, base_rate: float) -> np.ndarray:
    """Log odds of each user's share of successes among the judged events of the history: float64 [N].

    Args:
        requests: N requests.
        kinds: what their events say.
        base_rate: share of successes of all users, towards which a short history is drawn.
    """
    codes, history = requests.history.actions, requests.history
    won, lost = (np.append(0, np.cumsum(found)) for found in (kinds.is_success(codes), kinds.is_no_success(codes)))
    successes, failures = (count[history.offsets[1:]] - count[history.offsets[:-1]] for count in (won, lost))
    base_rate = min(max(base_rate, _LEAST), 1 - _LEAST)
    share = (successes + _LIKING_EVENTS * base_rate) / (successes + failures + _LIKING_EVENTS)
    return np.log(share / (1 - share))
