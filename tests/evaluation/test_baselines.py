"""Baselines by hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl

from ctxrec.data import log_statistics
from ctxrec.data.events import Context, Events, Users
from ctxrec.data.log_statistics import LogStatistics, TrainingEvents, count_followers, gather_statistics, users_of_both
from ctxrec.data.requests import Requests
from ctxrec.evaluation.baselines.als import ALS
from ctxrec.evaluation.baselines.ensemble import Ensemble, choose_weights, standardised
from ctxrec.evaluation.baselines.itemknn import ItemKNN
from ctxrec.evaluation.baselines.markov import Markov
from ctxrec.evaluation.baselines.popularity import Popularity, RecentPopularity
from ctxrec.evaluation.baselines.text import UntunedEncoder
from ctxrec.index.topk import top_k
from ctxrec.memory import ease
from ctxrec.memory.ease import EASE, _symmetric_float32
from ctxrec.metrics.ranking import request_metrics

DAY_US = 86_400_000_000


def events_of(rows: list[list[int]], times: list[list[int]] | None = None) -> Events:
    lengths = [len(row) for row in rows]
    items = np.array([i for row in rows for i in row], np.int32)
    flat = [t for row in times for t in row] if times is not None else np.arange(len(items))
    return Events(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=items,
        times=np.array(flat, np.int64),
        actions=np.zeros(len(items), np.int16),
        context=Context(),
    )


def training(rows: list[list[int]], times: list[list[int]] | None = None) -> TrainingEvents:
    events = events_of(rows, times)
    return TrainingEvents(offsets=events.offsets, items=events.items, times=events.times)


def requests_of(histories: list[list[int]], times: list[int] | None = None) -> Requests:
    return Requests(
        users=Users(ids=np.array([f"u{n}" for n in range(len(histories))], object)),
        history=events_of(histories),
        times=np.array(times or [0] * len(histories), np.int64),
        context=Context(),
    )


def statistics(*parts: TrainingEvents, num_items: int) -> LogStatistics:
    return gather_statistics(parts, num_items)


def test_statistics_do_not_depend_on_the_buckets():
    rows = [[0, 1, 2, 1], [2, 0], [3], [], [1, 1, 0]]
    one = statistics(training(rows), num_items=5)
    two = statistics(training(rows[:2]), training(rows[2:], [[10], [], [7, 8, 9]]), num_items=5)
    np.testing.assert_array_equal(one.item_counts, [3, 4, 2, 1, 0])
    np.testing.assert_array_equal(one.item_counts, two.item_counts)
    np.testing.assert_array_equal(one.transitions.toarray(), two.transitions.toarray())
    assert two.times.tolist() == sorted(two.times.tolist())
    np.testing.assert_array_equal(one.users_items.toarray(), two.users_items.toarray())
    assert one.users_items.toarray()[0].tolist() == [1, 1, 1, 0, 0]
    assert one.transitions[1, 1] == 1 and one.transitions[2, 2] == 0, "no transition from one user to the next"


def test_gathering_leaves_the_events_as_they_are():
    part = training([[0, 0, 1], [1, 1]])
    before = part.offsets.copy(), part.items.copy()
    statistics(part, num_items=2)
    np.testing.assert_array_equal(part.offsets, before[0])
    np.testing.assert_array_equal(part.items, before[1])


def test_where_keeps_the_rows_of_their_users():
    keep = np.array([True, False, False, True, True, False])
    events = events_of([[0, 1], [2], [3, 4, 5]])
    part = TrainingEvents(events.offsets, events.items, events.times).where(keep)
    assert part.offsets.tolist() == [0, 1, 1, 3] and part.items.tolist() == [0, 3, 4]


def test_popularity_counts_training_events():
    scores = Popularity().fit(statistics(training([[0, 1, 1], [1]]), num_items=3)).scores(requests_of([[], []]))
    assert scores.tolist() == [[1, 3, 0]] * 2


def test_recent_popularity_looks_back_seven_days_from_each_request():
    part = training([[0, 1, 2, 2]], [[0, 5 * DAY_US, 8 * DAY_US, 20 * DAY_US]])
    fitted = RecentPopularity().fit(statistics(part, num_items=3))
    asked = [8 * DAY_US, 7 * DAY_US, 1, 300 * DAY_US, 13 * DAY_US]
    assert fitted.scores(requests_of([[]] * 5, asked)).tolist() == [
        [0, 1, 0],  # day 1 to 8: the event at the moment of asking is not known yet
        [1, 1, 0],  # day 0 to 7, its first moment included
        [1, 0, 0],
        [0, 0, 1],  # after the log: its last seven days
        [0, 0, 1],  # day 6 to 13
    ]


def test_markov_follows_the_last_item_and_breaks_ties_by_popularity():
    log = statistics(training([[0, 1, 0, 1], [0, 2], [2, 2]]), num_items=4)
    scores = Markov().fit(log).scores(requests_of([[2, 0], [1], []]))
    assert np.floor(scores).tolist() == [[0, 2, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert top_k(scores, 4)[2].tolist() == [0, 2, 1, 3], "without history: by popularity 3, 3, 2, 0"


def test_users_of_both_are_counted_once(monkeypatch):
    rows = [[0, 1, 2, 1], [2, 0], [3], [], [1, 1, 0]]
    users = statistics(training(rows), num_items=5).users_items
    monkeypatch.setattr(log_statistics, "_ROWS_AT_ONCE", 2)
    counts = users_of_both(users)
    np.testing.assert_array_equal(counts, users.toarray().T @ users.toarray())
    assert counts[0, 1] == 2 and counts[1, 1] == 2  # users 0 and 4


def test_itemknn_by_hand():
    # Items 0 and 1 share both their users (cosine 1); 0 and 2 share one of two and one (1/sqrt(2)).
    users = users_of_both(statistics(training([[0, 1, 2], [0, 1]]), num_items=4).users_items)
    requests = requests_of([[0], [0, 2], []])
    half = 1 / np.sqrt(2)
    scores = ItemKNN(neighbours=100).fit(users).scores(requests)
    np.testing.assert_allclose(scores, [[0, 1, half, 0], [half, 1 + half, half, 0], [0, 0, 0, 0]], atol=1e-6)
    nearest = ItemKNN(neighbours=1).fit(users).scores(requests)
    np.testing.assert_allclose(nearest[0], [0, 1, 0, 0], atol=1e-6)


def test_ease_solves_its_ridge_regression():
    rng = np.random.default_rng(0)
    rows = [rng.permutation(8)[: rng.integers(1, 6)].tolist() for _ in range(30)]
    log = statistics(training(rows), num_items=8)
    weights = EASE(weight=2.0).fit(users_of_both(log.users_items)).weights
    users = np.zeros((30, 8))
    for n, row in enumerate(rows):
        users[n, row] = 1
    # Column j of B is the ridge regression of item j on all others.
    for j in range(8):
        others = np.delete(np.arange(8), j)
        x = users[:, others]
        expected = np.linalg.solve(x.T @ x + 2 * np.eye(7), x.T @ users[:, j])
        np.testing.assert_allclose(weights[others, j], expected, atol=1e-5)
    assert (np.diagonal(weights) == 0).all()


def test_the_inverse_of_ease_is_put_together_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    full = rng.normal(size=(23, 23))
    full = full + full.T
    garbage = np.tril(full) + np.triu(np.full((23, 23), 99.0), 1)  # LAPACK leaves the other triangle as it was
    monkeypatch.setattr(ease, "_ROWS_AT_ONCE", 5)
    np.testing.assert_allclose(_symmetric_float32(garbage), full, atol=1e-6)


def test_als_is_made_without_threads_of_blas(monkeypatch, recwarn):
    """The package warns of them once in a process, whenever a model is made with them."""
    import implicit.utils

    monkeypatch.setattr(implicit.utils, "_checked_blas_config", False)
    with threadpoolctl.threadpool_limits(2, "blas"):
        ALS(factors=2).fit(statistics(training([[0, 1], [1, 2]]), num_items=3))
    assert implicit.utils._checked_blas_config and not [w for w in recwarn if "threads" in str(w.message)]


def test_als_solves_a_user_by_its_own_equations():
    rng = np.random.default_rng(0)
    rows = [rng.permutation(12)[: rng.integers(2, 7)].tolist() for _ in range(40)]
    log = statistics(training(rows), num_items=12)
    fitted = ALS(factors=4, alpha=10.0, regularization=0.05).fit(log)
    users = fitted.users(requests_of([[0, 3, 3], []]))
    # Confidence 10 where the user had the item, else 1; preference 1 and 0 (Hu, Koren and Volinsky, equation 4).
    confidence = np.ones(12)
    confidence[[0, 3]] = 10
    left = fitted.items.T @ (confidence[:, None] * fitted.items) + 0.05 * np.eye(4)
    expected = np.linalg.solve(left, fitted.items.T @ (confidence * (confidence > 1)))
    np.testing.assert_allclose(users[0], expected, rtol=1e-3)
    np.testing.assert_array_equal(users[1], 0)
    # What was learned tells items of the same users from others.
    again = ALS(factors=4).fit(log)
    np.testing.assert_array_equal(again.items, fitted.items)


def test_markov_of_the_last_items_decays_with_age():
    log = statistics(training([[0, 1], [2, 3], [2, 3], [3, 1]]), num_items=4)
    fitted = Markov(last=2, decay=0.5).fit(log)
    scores = fitted.scores(requests_of([[0, 2], [0, 0, 2], [3, 0, 2], []]))
    bare = scores - fitted.tie_breaks
    np.testing.assert_allclose(bare, [[0, 0.5, 0, 2], [0, 0.5, 0, 2], [0, 0.5, 0, 2], [0, 0, 0, 0]])
    assert fitted.tie_breaks.max() < 0.5, "no tie-break outweighs a count of the oldest item"


def test_the_ensemble_adds_standardised_scores():
    log = statistics(training([[0, 1, 1], [1, 2]]), num_items=3)
    parts = {"markov": Markov().fit(log), "popularity": Popularity(logarithm=True).fit(log)}
    requests = requests_of([[0], [2, 1], []])
    mixed = Ensemble(parts, {"markov": 0.25, "popularity": 0.75}).scores(requests)
    expected = 0.25 * standardised(parts["markov"].scores(requests)) + 0.75 * standardised(
        parts["popularity"].scores(requests)
    )
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    alone = Ensemble(parts, {"markov": 0.0, "popularity": 1.0})
    assert set(alone.components) == {"popularity"}
    np.testing.assert_array_equal(parts["popularity"].scores(requests), np.tile(np.log1p([1, 3, 1]), (3, 1)))


def test_weights_are_found_that_no_single_component_reaches():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 30))
    noise = [rng.normal(size=truth.shape) for _ in range(3)]
    parts = [standardised(truth + noise[0]), standardised(truth + noise[1]), standardised(noise[2])]
    targets = truth.argmax(axis=1)

    def quality(scores: np.ndarray) -> float:
        top = top_k(scores, 10)
        return float(request_metrics(top, np.arange(61), targets, [10])["ndcg@10"].mean())

    weights, best = choose_weights(parts, quality)
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    assert best == pytest.approx(quality(sum(w * p for w, p in zip(weights, parts, strict=True))), abs=1e-9)
    assert best > max(quality(part) for part in parts)
    assert weights[2] < 0.2, "noise gets little"


def test_untuned_encoder_by_hand():
    # Mean of the present vectors is 0, so centring changes nothing; item 3 has no text.
    vectors = np.array([[1.0, 0], [0, 1], [-1, -1], [9, 9]], np.float32)
    fitted = UntunedEncoder().fit(vectors, np.array([1, 1, 1, 0], np.uint8))
    scores = fitted.scores(requests_of([[1, 0], [3], []]))
    query = np.array([1.0, 0.7]) / np.hypot(1, 0.7)  # the last item weighs 1, the one before it 0.7
    np.testing.assert_allclose(scores[0], [query[0], query[1], -query.sum() / np.sqrt(2), 0], atol=1e-6)
    assert (scores[1:] == 0).all()
    nothing = UntunedEncoder().fit(vectors, np.zeros(4, np.uint8)).scores(requests_of([[0]]))
    assert (nothing == 0).all()


def test_untuned_encoder_reads_the_last_ten():
    vectors = np.eye(12, dtype=np.float32)
    fitted = UntunedEncoder().fit(vectors, np.ones(12))
    assert np.array_equal(
        fitted.scores(requests_of([list(range(12))])), fitted.scores(requests_of([list(range(2, 12))]))
    )


def test_without_training_events_scores_are_defined():
    log = statistics(training([[], []]), num_items=3)
    users = users_of_both(log.users_items)
    for baseline in (
        Popularity().fit(log),
        RecentPopularity().fit(log),
        Markov(last=10).fit(log),
        ItemKNN(neighbours=5).fit(users),
        EASE(weight=1).fit(users),
        ALS(factors=2).fit(log),
    ):
        assert np.isfinite(baseline.scores(requests_of([[], [1]]))).all(), baseline


def test_followers_of_several_steps_count_less_and_end_with_the_user():
    part = training([[0, 1, 2, 1], [2, 0]])
    found = count_followers(part, 3, steps=3).toarray()
    # 0: 1 next and again three steps on, 2 two steps on. 1: 2 next, itself two steps on. 2: 1 next, 0 next.
    np.testing.assert_allclose(found, [[0, 1 + 1 / 3, 1 / 2], [0, 1 / 2, 1], [1, 1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(count_followers(part, 3, steps=1).toarray(), [[0, 1, 0], [0, 0, 1], [1, 1, 0]])
