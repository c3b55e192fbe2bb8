"""Fit the calibration of a model to moments whose outcome is known.

A logistic line (Platt, "Probabilistic outputs for support vector machines", 1999, with his soft targets) and on top of it an
isotonic curve (Zadrozny and Elkan, 2002) are fitted with each set of features. The one with the least log-loss on users it was
not fitted to is taken, and fitted again to all.

Legend: N requests, T targets, P pairs of a request and an item, S items of the sample, F columns of the line.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from ctxrec.data.feedback import EventKinds
from ctxrec.data.requests import Requests
from ctxrec.memory.calibration import LIKING, LOGISTIC, NEXT, SPREAD, SUCCESS, Calibration, Curve, Sample, liking_of
from ctxrec.memory.scoring import Scorer, score_all
from ctxrec.metrics.probability_metrics import log_losses

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationParams:
    """Limits of the fit. No measurement supports them.

    Attributes:
        requests: so many moments are asked at most.
        sample: items by which the spread of scores is told, and against which a next event stands.
        looked_at: requests whose scores choose the first half of the sample, those with the highest mean.
        best, drawn: other items of a request that count against its next event: those with the highest scores, and others
            drawn at random, which stand for all the rest.
        folds: parts of the users, each judged by a fit to the others.
        fewest: with fewer outcomes of a kind there is no calibration.
        points: events of an average user that are added to each block of an isotonic curve.
    """

    requests: int = 4_000
    sample: int = 4_096
    looked_at: int = 256
    best: int = 50
    drawn: int = 200
    folds: int = 5
    fewest: int = 20
    points: float = 2.0


CALIBRATION = CalibrationParams()
_AT_ONCE = 256  # requests that are scored together
_ITERATIONS = 30


@dataclass(frozen=True)
class Pairs:
    """Pairs of requests and items with their outcome.

    scores, weights: float64 [P]. happened: bool [P]. rows: int64 [P], their requests. features: float64 [N] by name.
    users: int64 [N], numbers of the users.
    """

    scores: np.ndarray
    happened: np.ndarray
    weights: np.ndarray
    rows: np.ndarray
    features: Mapping[str, np.ndarray]
    users: np.ndarray

    @property
    def base_rate(self) -> float:
        """Share of the pairs in which it happened."""
        return float(self.weights[self.happened].sum() / self.weights.sum())

    def where(self, keep: np.ndarray) -> Pairs:
        """Those that a mask keeps, bool [P]; the requests stay."""
        parts = {name: getattr(self, name)[keep] for name in ("scores", "happened", "weights", "rows")}
        return Pairs(**parts, features=self.features, users=self.users)

    def probabilities(self, calibration: Calibration) -> np.ndarray:
        """What a calibration says of each pair: float64 [P]."""
        of_pair = {name: self.features[name][self.rows] for name in calibration.weights}
        return calibration.of_scores(self.scores[:, None], of_pair)[:, 0]


def fit_calibration(
    scorer: Scorer,
    requests: Requests,
    kinds: EventKinds,
    *,
    repeats: bool,
    seed: int,
    sample: Sample | None = None,
    params: CalibrationParams = CALIBRATION,
) -> Calibration | None:
    """The calibration of a model; None, and a line in the log, where the outcomes are too few to fit one.

    Args:
        scorer: the model, which has not seen the outcomes.
        requests: of `ctxrec.data.outcomes.outcome_requests`.
        kinds: what events say.
        repeats: whether the items of a history may be recommended.
        seed: makes draws repeatable.
        sample: of the spread; None: it is drawn. A scorer that must be asked in the order of time needs one.
        params: limits.
    """
    rng = np.random.default_rng(seed)
    requests = requests.evenly(params.requests)
    judged = kinds.are_judged
    sample = drawn_sample(scorer, requests, rng, params) if sample is None else sample
    pairs = outcome_pairs(scorer, requests, kinds, sample, repeats=repeats, draw=(params.best, params.drawn), rng=rng)
    outcomes = pairs.happened.sum(), (~pairs.happened).sum()
    if min(outcomes) < params.fewest:
        logger.info("no probabilities: %d and %d outcomes of each kind; %d are needed", *outcomes, params.fewest)
        return None
    fold = np.random.default_rng(seed).permutation(int(pairs.users.max()) + 1)[pairs.users][pairs.rows] % params.folds
    tried = []
    for features, curved in itertools.product(_feature_sets(judged), (False, True)):
        losses = np.zeros(len(pairs.rows))
        for number in range(params.folds):
            made = _fitted(pairs.where(fold != number), judged, features, curved, sample, params)
            out = fold == number
            part = pairs.where(out)
            losses[out] = log_losses(part.probabilities(made), part.happened)
        tried.append((float(np.average(losses, weights=pairs.weights)), features, curved))
    loss, features, curved = min(tried, key=lambda each: each[0])
    base = float(
        np.average(log_losses(np.full(len(pairs.rows), pairs.base_rate), pairs.happened), weights=pairs.weights)
    )
    logger.info(
        "probabilities of %s: %s of the score%s; log-loss on users left out %.6f, of the base rate %.6f",
        "a success" if judged else "the next event",
        "isotonic curve" if curved else "logistic line",
        "".join(f" and {name}" for name in features),
        loss,
        base,
    )
    return _fitted(pairs, judged, features, curved, sample, params)


def drawn_sample(
    scorer: Scorer, requests: Requests, rng: np.random.Generator, params: CalibrationParams = CALIBRATION
) -> Sample:
    """The sample of a catalogue: all of it, or the items with the highest mean scores and as many of the others by chance."""
    num = len(scorer.vectors)
    if num <= params.sample:
        return Sample(np.arange(num), np.zeros(num))
    some, total = requests.evenly(params.looked_at), np.zeros(num)
    for start in range(0, len(some), _AT_ONCE // 8):
        total += score_all(scorer, some.take(np.arange(start, min(start + _AT_ONCE // 8, len(some))))).sum(0)
    order, half = np.argsort(-total, kind="stable"), params.sample // 2
    others = rng.choice(order[half:], params.sample - half, replace=False)
    items = np.concatenate([order[:half], others])
    weights = np.repeat([0.0, np.log((num - half) / len(others))], [half, len(others)])
    place = np.argsort(items)
    return Sample(items[place], weights[place])


def outcome_pairs(
    scorer: Scorer,
    requests: Requests,
    kinds: EventKinds,
    sample: Sample,
    *,
    repeats: bool,
    draw: tuple[int, int] | None = None,
    rng: np.random.Generator | None = None,
    base_rate: float | None = None,
) -> Pairs:
    """Scores and outcomes of requests: of their judged targets, or of their targets and of the sample's other items.

    Args:
        scorer, requests, kinds, repeats: as in `fit_calibration`.
        sample: items that a next event stands against.
        draw: so many of these with the highest scores, and so many of the others; None: all.
        rng: draws them.
        base_rate: to which a user's own share of successes is drawn; None: that of the pairs.
    """
    judged = kinds.are_judged
    parts: list[tuple[np.ndarray, ...]] = []
    spread = [np.zeros(0)]
    for start in range(0, len(requests), _AT_ONCE):
        part = requests.take(np.arange(start, min(start + _AT_ONCE, len(requests))))
        others = sample if judged or rng is None else _other_tail(sample, len(scorer.vectors), rng)
        sampled, of_others, scores = _scores(scorer, part, sample, others)
        spread.append(sample.spread(sampled))
        parts += _of_targets(part, start, scores, judged=judged)
        if not judged:
            parts += _of_others(part, start, of_others, others, repeats=repeats, draw=draw, rng=rng)
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    users = np.unique(requests.users.ids.astype(str), return_inverse=True)[1].astype(np.int64)
    made = Pairs(joined[0], joined[1], joined[2], joined[3], {SPREAD: np.concatenate(spread)}, users)
    liking = liking_of(requests, kinds, made.base_rate if base_rate is None else base_rate)
    return Pairs(**{**vars(made), "features": {SPREAD: made.features[SPREAD], LIKING: liking}})


def _other_tail(sample: Sample, num_items: int, rng: np.random.Generator) -> Sample:
    """The sample with other items in the place of those that stand for several: one draw for all requests would be lopsided."""
    alone = sample.log_weights == 0
    if alone.all():
        return sample
    rest = np.ones(num_items, bool)
    rest[sample.items[alone]] = False
    drawn = rng.choice(np.flatnonzero(rest), int((~alone).sum()), replace=False)
    items = np.concatenate([sample.items[alone], drawn])
    order = np.argsort(items)
    return Sample(items[order], np.concatenate([sample.log_weights[alone], sample.log_weights[~alone]])[order])


def _scores(
    scorer: Scorer, requests: Requests, sample: Sample, others: Sample
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the sample and of others, float32 [N, S] each, and of the targets, float32 [T]."""
    assert requests.target_offsets is not None and requests.target_items is not None
    queries, remembered = scorer.queries(requests), scorer.remembered(requests)
    rows = np.repeat(np.arange(len(requests)), np.diff(requests.target_offsets))
    found = []
    for items in [sample.items] if others is sample else [sample.items, others.items]:
        scores = queries @ scorer.vectors[items].T
        found.append(scores if remembered is None else scores + remembered[:, items].toarray())
    own = (queries[rows] * scorer.vectors[requests.target_items]).sum(1)
    if remembered is not None:
        own = own + remembered[rows, requests.target_items]
    return found[0], found[-1], own


def _of_targets(requests: Requests, start: int, scores: np.ndarray, *, judged: bool) -> list[tuple[np.ndarray, ...]]:
    """Scores, outcomes, weights and rows of the targets."""
    assert requests.target_offsets is not None
    num = len(scores)
    rows = start + np.repeat(np.arange(len(requests)), np.diff(requests.target_offsets))
    happened = np.ones(num, bool)
    if judged:
        assert requests.target_weights is not None
        happened = requests.target_weights > 0
    return [(scores.astype(np.float64), happened, np.ones(num), rows)]


def _of_others(
    requests: Requests,
    start: int,
    sampled: np.ndarray,
    sample: Sample,
    *,
    repeats: bool,
    draw: tuple[int, int] | None,
    rng: np.random.Generator | None,
) -> list[tuple[np.ndarray, ...]]:
    """The same of items of the sample that a request could have had and did not take."""
    made: list[tuple[np.ndarray, ...]] = []
    for n in range(len(requests)):
        taken = (
            requests.targets(n)
            if repeats
            else np.concatenate([requests.targets(n), requests.history.items[requests.history.row(n)]])
        )
        open_S = np.flatnonzero(~np.isin(sample.items, taken))
        weights = np.exp(sample.log_weights[open_S])
        if draw is not None and rng is not None and len(open_S) > sum(draw):
            order = np.argpartition(-sampled[n, open_S], draw[0])
            rest = rng.choice(order[draw[0] :], draw[1], replace=False)
            weights[rest] *= (len(open_S) - draw[0]) / draw[1]
            kept = np.concatenate([order[: draw[0]], rest])
            open_S, weights = open_S[kept], weights[kept]
        num = len(open_S)
        made.append((sampled[n, open_S].astype(np.float64), np.zeros(num, bool), weights, np.full(num, start + n)))
    return made


def _feature_sets(judged: bool) -> Sequence[tuple[str, ...]]:
    return ((), (SPREAD,), (LIKING,), (SPREAD, LIKING)) if judged else ((), (SPREAD,))


def _fitted(
    pairs: Pairs, judged: bool, features: tuple[str, ...], curved: bool, sample: Sample, params: CalibrationParams
) -> Calibration:
    """The best line with these features, and its curve."""
    columns = [pairs.scores, *(pairs.features[name][pairs.rows] for name in features)]
    coefficients = _line(np.stack(columns, 1), pairs, rising=True)
    line = Calibration(
        of=SUCCESS if judged else NEXT,
        base_rate=pairs.base_rate,
        slope=float(coefficients[0]),
        weights=dict(zip(features, coefficients[1:-1].tolist(), strict=True)),
        intercept=float(coefficients[-1]),
        curve=LOGISTIC,
        sample=sample,
    )
    if not curved:
        return line
    of_pair = {name: pairs.features[name][pairs.rows] for name in features}
    log_odds = line.log_odds(pairs.scores[:, None], of_pair)[:, 0]
    return Calibration(
        **{**vars(line), "curve": isotonic_curve(log_odds, pairs.happened, pairs.weights, params.points)}
    )


def _line(columns_PF: np.ndarray, pairs: Pairs, *, rising: bool) -> np.ndarray:
    """Coefficients of the likeliest logistic line and its intercept, float64 [F + 1], by Newton's method.

    With `rising` the first is 0 or more: where the likeliest is below 0, the score says nothing, and the others are fitted
    without it.
    """
    mean = np.average(columns_PF, axis=0, weights=pairs.weights)
    scale = np.sqrt(np.average((columns_PF - mean) ** 2, axis=0, weights=pairs.weights)) + 1e-12
    design = np.concatenate([(columns_PF - mean) / scale, np.ones((len(columns_PF), 1))], 1)
    won, lost = pairs.weights[pairs.happened].sum(), pairs.weights[~pairs.happened].sum()
    wanted = np.where(pairs.happened, (won + 1) / (won + 2), 1 / (lost + 2))
    found = np.zeros(design.shape[1])
    found[-1] = np.log((won + 1) / (lost + 1))
    for _ in range(_ITERATIONS):
        expected = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (pairs.weights * (wanted - expected))
        curvature = (design * (pairs.weights * np.maximum(expected * (1 - expected), 1e-12))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-6 * won * np.eye(len(found)), slope - 1e-6 * won * found)
        found += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    if rising and found[0] < 0:
        rest = _line(columns_PF[:, 1:], pairs, rising=False)
        return np.concatenate([[0.0], rest])
    coefficients = found[:-1] / scale
    return np.append(coefficients, found[-1] - coefficients @ mean)


def isotonic_curve(log_odds: np.ndarray, happened: np.ndarray, weights: np.ndarray, points: float) -> Curve:
    """The rising curve of least squared error, with a few points for each of its level parts.

    Pairs of one value are pooled, `points` pairs of the base rate are added to each level part, and between two parts the
    curve is a line. It is never 0 or 1.

    Args:
        log_odds: float64 [P].
        happened: bool [P].
        weights: float64 [P].
        points: pairs of the base rate.
    """
    values, place = np.unique(log_odds, return_inverse=True)
    total, won = np.bincount(place, weights), np.bincount(place, weights * happened)
    level = isotonic_regression(won / total, weights=total).x
    part = np.append(0, np.cumsum(np.diff(level) > 0))
    sums, wins = np.bincount(part, total), np.bincount(part, won)
    base = won.sum() / total.sum()
    smooth = isotonic_regression((wins + points * base) / (sums + points), weights=sums).x
    starts = np.flatnonzero(np.append(True, np.diff(part) > 0))
    stops = np.append(starts[1:], len(values)) - 1
    corners = np.unique(np.concatenate([starts, stops]))
    return Curve(values[corners], smooth[part[corners]])
