"""Gates on lists made by hand: what passes, what fails, and what cannot be told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.core import schema
from ctxrec.data.events import Context, Events, Users
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.data.requests import Requests
from ctxrec.lifecycle.decision import verdict_of
from ctxrec.lifecycle.gates import Gate
from ctxrec.lifecycle.other_version import in_codes_of
from ctxrec.lifecycle.paired_ranking import Ranked, untrained
from ctxrec.lifecycle.ranking_gates import KNOWN_ITEMS, NEW_ITEMS, ranking_gates

ITEMS, REQUESTS = 50, 1000


class Data(PreparedData):
    """Prepared data of which only the features and the number of items are asked."""

    features = FeatureMeta({}, {}, {"gender": ["F", "M"]}, {}, {}, {}, [], [])  # type: ignore[assignment]
    items = range(ITEMS)  # type: ignore[assignment]


DATA = Data("", {})


def ranked(candidate, served, targets: np.ndarray, *, gender=None, known=None, among_known=None) -> Ranked:
    """Requests of one target each."""
    num = len(targets)
    none = np.zeros(0, np.int64)
    history = Events(np.zeros(num + 1, np.int64), none.astype(np.int32), none, none.astype(np.int16), Context())
    cat = {} if gender is None else {"gender": gender}
    requests = Requests(
        users=Users(np.array([f"u{n}" for n in range(num)], object), cat),
        history=history,
        times=np.zeros(num, np.int64),
        context=Context(),
        target_offsets=np.arange(num + 1),
        target_items=targets.astype(np.int32),
    )
    return Ranked(
        requests=requests,
        candidate=candidate,
        served=served,
        candidate_known=(among_known or (candidate, served))[0],
        served_known=(among_known or (candidate, served))[1],
        known_I=np.ones(ITEMS, bool) if known is None else known,
        known_N=np.ones(num, bool),
        left_out=0,
        seconds={"candidate": 1.0, "served": 1.0},
    )


def lists(targets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Lists of 10 in which each target stands at its place; a place from 10 on leaves it out."""
    made = (targets[:, None] + 1 + np.arange(10)) % ITEMS
    rows = np.flatnonzero(places < 10)
    made[rows, places[rows]] = targets[rows]
    return made


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return rng.integers(0, ITEMS, REQUESTS), rng.integers(0, 14, REQUESTS), rng


def gates_of(found: Ranked) -> dict[str, Gate]:
    return {gate.name: gate for gate in ranking_gates(found, DATA)}


def test_an_equal_candidate_passes(drawn):
    targets, places, _ = drawn
    gates = gates_of(ranked(lists(targets, places), lists(targets, places), targets))
    assert {gate.verdict for gate in gates.values()} == {"passed"}
    assert gates["NDCG@10"].difference["low"] == 0


def test_a_small_loss_fails_and_a_gain_passes(drawn):
    targets, places, rng = drawn
    other = np.where(rng.random(REQUESTS) < 0.1, 13, places)
    better, worse = lists(targets, places), lists(targets, other)
    assert gates_of(ranked(worse, better, targets))["NDCG@10"].verdict == "failed"
    assert gates_of(ranked(better, worse, targets))["NDCG@10"].verdict == "passed"


def test_an_interval_on_both_sides_of_the_limit_is_no_evidence(drawn):
    """As many requests gain as lose, so that the mean is level and its interval wide."""
    targets, places, rng = drawn
    other = rng.permutation(places)
    gates = gates_of(ranked(lists(targets, other), lists(targets, places), targets))
    overall = gates["NDCG@10"]
    assert overall.difference["low"] < -0.01 and overall.difference["high"] > 0 and overall.verdict == "no evidence"
    assert not verdict_of([*gates.values()], without_evidence=False)[0]
    assert verdict_of([*gates.values()], without_evidence=True)[0]


def test_requests_of_one_user_are_one_draw(drawn):
    """The same requests by a fifth as many users have a wider interval."""
    targets, places, rng = drawn
    lost = np.repeat(rng.random(REQUESTS // 5) < 0.5, 5)
    made = ranked(lists(targets, np.where(lost, 13, 0)), lists(targets, places), targets)
    together = dataclasses.replace(made.requests.users, ids=np.repeat(made.requests.users.ids[::5], 5))
    grouped = dataclasses.replace(made, requests=dataclasses.replace(made.requests, users=together))
    alone, joined = (gates_of(found)["NDCG@10"].difference for found in (made, grouped))
    assert alone["mean"] == joined["mean"]
    assert joined["high"] - joined["low"] > 1.5 * (alone["high"] - alone["low"])


def test_few_requests_are_no_evidence(drawn):
    targets, places, _ = (part[:20] if isinstance(part, np.ndarray) else part for part in drawn)
    gates = ranking_gates(ranked(lists(targets, places), lists(targets, places), targets), DATA)
    assert gates[0].verdict == "no evidence"
    assert not verdict_of(gates, without_evidence=False)[0]
    assert verdict_of(gates, without_evidence=True)[0]
    nothing = ranking_gates(None, DATA)
    assert not verdict_of(nothing, without_evidence=False)[0]


def test_a_ruined_slice_fails_though_the_whole_gains(drawn):
    """One request of twelve is of gender F and lost; all others gain more than that."""
    targets, places, _ = drawn
    gender = np.where(np.arange(REQUESTS) % 12 == 0, 2, 3).astype(np.int32)
    better = np.where(gender == 2, 13, np.maximum(places - 1, 0))
    gates = gates_of(ranked(lists(targets, better), lists(targets, places), targets, gender=gender))
    assert gates["NDCG@10"].verdict == "passed" and gates["slice gender=M"].verdict == "passed"
    assert gates["slice gender=F"].verdict == "failed" and gates["slice gender=F"].difference["mean"] < -0.9
    publish, why = verdict_of(list(gates.values()), without_evidence=True)
    assert not publish and "gender=F" in why


def test_a_slice_of_few_requests_is_told_only_if_its_fall_is_real(drawn):
    targets, places, _ = drawn
    gender = np.where(np.arange(REQUESTS) < 8, 2, 3).astype(np.int32)
    first = np.flatnonzero(places < 10)[:1]
    moved = places.copy()
    moved[first] = 13
    gates = gates_of(ranked(lists(targets, moved), lists(targets, places), targets, gender=gender))
    assert gates["slice gender=F"].verdict == "no evidence" and gates["slice gender=F"].requests == 8


def test_new_items_do_not_hide_a_fall_of_known_ones(drawn):
    targets, places, _ = drawn
    known = np.arange(ITEMS) < 40
    is_known = known[targets]
    served = np.where(is_known, places, 13)
    candidate = np.where(is_known, np.where(np.arange(REQUESTS) % 3 == 0, 13, places), 0)
    gates = gates_of(ranked(lists(targets, candidate), lists(targets, served), targets, known=known))
    assert gates["NDCG@10"].verdict == "passed" and gates[f"slice {NEW_ITEMS}"].verdict == "passed"
    assert gates[f"slice {KNOWN_ITEMS}"].verdict == "failed"
    less = np.where(is_known, np.where(np.arange(REQUESTS) % 10 == 0, 13, places), 0)
    weighed = gates_of(ranked(lists(targets, less), lists(targets, served), targets, known=known))[
        f"slice {KNOWN_ITEMS}"
    ]
    assert weighed.difference["high"] < -0.05 and weighed.verdict != "failed", "the blend may weigh known items less"
    moved = ranked(
        lists(targets, candidate),
        lists(targets, served),
        targets,
        known=known,
        among_known=2 * [lists(targets, served)],
    )
    assert gates_of(moved)[f"slice {KNOWN_ITEMS}"].verdict == "passed", "among themselves they are ranked as before"


def test_one_item_everywhere_and_lists_that_are_not_full(drawn):
    targets, places, _ = drawn
    good = lists(targets, places)
    everywhere = good.copy()
    everywhere[:, 9] = 3
    assert gates_of(ranked(everywhere, good, targets))["most shown item"].verdict == "failed"
    short = good.copy()
    short[::2, 5:] = -1
    assert gates_of(ranked(short, good, targets))["full lists"].verdict == "failed"
    few = np.tile(np.arange(10), (REQUESTS, 1))
    assert gates_of(ranked(few, good, targets))["items shown"].verdict == "failed"


def test_requests_in_the_codes_of_another_version(make_world):
    """The same catalogue backwards, and vocabularies in another order: the same request for people."""
    world = make_world()
    recommender = world.recommender(world.config())
    ours = dataclasses.replace(
        recommender.features,
        context_categories={"device": ["radio", "phone", "tv"]},
        user_categories={"gender": ["M", "F"]},
        actions=["buy", "wish", "view"],
    )
    ids = [*reversed(recommender.item_ids), "unknown"]
    items_I = np.array([recommender.item_position.get(item, -1) for item in ids])
    events = Events(
        np.array([0, 3]),
        np.array([20, 0, 19], np.int32),
        np.array([1, 2, 3]) * 1_000_000,
        np.array([1, 2, 3], np.int16),
        Context(
            cat={"device": np.array([2, 3, 4], np.int32)} | {n: np.zeros(3, np.int32) for n in schema.TIME_CONTEXT},
            num={"basket": np.array([1, 2, 3], np.float32)},
            text={"query": np.array(["a", "b", "c"], object)},
        ),
    )
    asked = Requests(
        users=Users(np.array(["u1"], object), {"gender": np.array([3], np.int32)}, {"age": np.array([9], np.float32)}),
        history=events,
        times=np.array([4_000_000]),
        context=events.context.take(np.array([1])),
    )
    found = in_codes_of(recommender, asked, ours, items_I)
    assert found.history.items.tolist() == [19, 0], "the unknown item is left out"
    assert found.history.actions.tolist() == [0, 1] and found.history.times.tolist() == [2_000_000, 3_000_000]
    assert found.history.context.cat["device"].tolist() == [3, 2], "phone and tv in the version's vocabulary"
    assert found.history.context.text["query"].tolist() == ["b", "c"]
    assert found.users.cat["gender"].tolist() == [2] and found.context.cat["device"].tolist() == [3]
    assert np.isfinite(recommender.scores(found)).all()


def test_requests_that_the_served_version_was_trained_on_do_not_count(make_world):
    world = make_world(lengths=(4, 2))
    served = world.recommender(world.config())
    events = served.histories.events
    served.histories.split[:] = [0, 0, 1, 2, 0, 2]
    last = events.times[[2, 4]]  # the last training events of both users

    def at(times) -> Requests:
        empty = dataclasses.replace(events.cut(np.zeros(3, np.int64), np.zeros(3, np.int64)))
        return Requests(Users(np.array(["u0", "u1", "new"], object)), empty, np.array(times), Context())

    asked = at([last[0] + 1, last[1], 5])
    assert untrained(asked, served, temporal=False).tolist() == [True, False, True]
    both = at([last.max(), last.max() + 1, last.max() + 2])
    assert untrained(both, served, temporal=True).tolist() == [False, True, True]
