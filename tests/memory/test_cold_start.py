"""The bonus of new items: what it is chosen by, worked by hand, and that nothing is paid where nothing is gained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.data.events import Context, Events, Users
from ctxrec.data.requests import Requests
from ctxrec.memory.cold_start import choose_bonus, hidden_items, without_items

NUM, KNOWN, NEW = 400, 60, 20


def asked(targets: np.ndarray, history: np.ndarray | None = None) -> Requests:
    num = len(targets)
    items = np.zeros(num, np.int32) if history is None else history.astype(np.int32)
    return Requests(
        users=Users(ids=np.array([str(n) for n in range(num)], object)),
        history=Events(
            offsets=np.arange(num + 1),
            items=items,
            times=np.zeros(num, np.int64),
            actions=np.zeros(num, np.int16),
            context=Context(),
        ),
        times=np.arange(num, dtype=np.int64),  # the number of the request, so that scores can be looked up
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=targets.astype(np.int32),
    )


@pytest.fixture
def world():
    """Scores that find the known targets and, two points too low, the new ones: 1 request in 10 wants a new item."""
    rng = np.random.default_rng(0)
    new = np.arange(KNOWN + NEW) >= KNOWN
    targets = rng.integers(0, KNOWN, NUM)
    targets[::10] = KNOWN + rng.integers(0, NEW, NUM // 10)
    scores = rng.normal(size=(NUM, KNOWN + NEW)).astype(np.float32)
    scores[np.arange(NUM), targets] += 1.5
    scores[:, new] -= 2
    return scores, asked(targets), new


def choose(world, cost=0.05, repeats=True):
    scores, requests, new = world
    return choose_bonus(lambda part: scores[part.times], requests, new, cost=cost, repeats=repeats)


def ndcg(scores, requests, bonus, new):
    """By sorting everything: mean over all requests, and over those that want a new item."""
    raised = scores + bonus * new
    rank = (raised > raised[np.arange(NUM), requests.target_items][:, None]).sum(1)
    gain = np.where(rank < 10, 1 / np.log2(rank + 2), 0)
    return gain.mean(), gain[new[requests.target_items]].mean()


def test_the_bonus_is_the_one_that_gains_most_of_those_that_cost_little(world):
    scores, requests, new = world
    found = choose(world)
    assert 0.5 < found.value < 4
    for place, bonus in enumerate((0, found.value)):
        assert (found.ndcg[place], found.new_ndcg[place]) == pytest.approx(ndcg(scores, requests, bonus, new))
    assert found.new_ndcg[1] > 2 * found.new_ndcg[0]
    step, best = 0.05 * scores.std(1).mean(), 0.0
    for number in range(60):
        best = max(best, ndcg(scores, requests, number * step, new)[0])
    assert found.ndcg[1] >= 0.95 * best
    dearer = ndcg(scores, requests, found.value + 0.5, new)[0]
    assert dearer < 0.95 * best or choose(world, cost=0.5).value > found.value


def test_more_may_be_given_up_for_more(world):
    values = [choose(world, cost=cost) for cost in (0.001, 0.02, 0.1)]
    assert values[0].value <= values[1].value <= values[2].value and values[0].value < values[2].value
    assert values[0].new_ndcg[1] < values[2].new_ndcg[1]


def test_nothing_is_paid_where_new_items_cannot_be_told_apart(world):
    scores, requests, new = world
    many = np.concatenate([scores[:, ~new], np.full((NUM, 1000), -5, np.float32)], 1)
    wanted = np.random.default_rng(1).integers(KNOWN, KNOWN + 1000, NUM)
    targets = np.where(new[requests.target_items], wanted, requests.target_items)
    found = choose((many, dataclasses.replace(requests, target_items=targets), np.arange(KNOWN + 1000) >= KNOWN))
    assert found.ndcg[1] >= 0.999 * found.ndcg[0]
    known_alone = dataclasses.replace(requests, target_items=np.minimum(requests.target_items, KNOWN - 1))
    assert choose((scores, known_alone, new)).value == 0, "and where nobody took one"


def test_seen_items_do_not_compete_unless_they_may_come_again(world):
    scores, requests, new = world
    first = scores.copy()
    first[:, 0] = 50
    seen = dataclasses.replace(requests, target_items=np.maximum(requests.target_items, 1))
    without, with_it = choose((first, seen, new), repeats=False), choose((first, seen, new), repeats=True)
    assert without.ndcg[0] > with_it.ndcg[0]


def test_hidden_items_are_a_few_of_the_known_ones_and_leave_the_histories():
    known = np.arange(200) % 4 > 0
    hidden = hidden_items(known, seed=3)
    assert hidden.sum() == 8 and not (hidden & ~known).any()
    np.testing.assert_array_equal(hidden, hidden_items(known, seed=3))
    assert (hidden != hidden_items(known, seed=4)).any()
    assert not hidden_items(np.arange(5) == 2, seed=0).any()
    assert hidden_items(np.ones(200_000, bool), seed=0).sum() == 5000
    requests = without_items(asked(np.arange(200), np.arange(200)), hidden)
    assert requests.history.items.tolist() == np.flatnonzero(~hidden).tolist()
    assert (requests.history.lengths == ~hidden).all()
