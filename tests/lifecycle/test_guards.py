"""Guards on counts made by hand and on drawn ones: how often they break without a reason, and how soon with one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.lifecycle.guards import WATCH, broken_guard, lost_hits
from ctxrec.lifecycle.service_look import Look


def usual(answers: float = 1000.0, **changed: float | dict[str, float]) -> Look:
    """A look at a service of which .2 % of the calls fail and a fifth take above 10 ms; the mean is 10 ms."""
    share = answers / 1000
    within = {"0.001": 0.0, "0.01": 800 * share, "0.02": 990 * share, "0.05": 1000 * share, "+Inf": 1000 * share}
    counts = {"errors": 2, "seconds": 10, "lists": 1000, "fallbacks": 50, "posts": 800, "events": 1600}
    made = Look(0.0, answers=answers, within=within, **{name: share * value for name, value in counts.items()})
    return dataclasses.replace(made, **changed)


@pytest.mark.parametrize(
    ("after", "guard"),
    [
        (usual(), ""),
        (usual(errors=11), ""),  # within the limit
        (usual(errors=30), "of 1,000 calls fail, 0.2% before"),
        (usual(1, errors=1), ""),
        (usual(3, errors=3), "100.0% of 3 calls fail"),
        (usual(10, errors=2), ""),  # chance explains it
        (usual(seconds=21, within={"0.01": 0, "0.02": 400, "+Inf": 1000}), "a call takes 21.0 ms, 10.0 ms before"),
        (usual(5, seconds=0.5, within={"0.01": 0, "0.02": 0, "+Inf": 5}), "a call takes 100.0 ms"),
        (usual(100, seconds=5, within={"0.01": 80, "0.02": 99, "+Inf": 100}), ""),  # one call took four seconds
        (usual(seconds=19, within={"0.01": 0, "0.02": 600, "+Inf": 1000}), ""),  # slower, but not twice
        (usual(seconds=30, within={}), ""),  # of another service
        (usual(fallbacks=160), "16.0% of the lists are for users who are not known, 5.0% before"),
        (usual(20, fallbacks=12), "not known"),
        (usual(20, fallbacks=4), ""),
        (usual(posts=500, events=1000), "1.000 events a list, 1.600 before"),
        (usual(events=800), ""),  # as many calls bring events
        (usual(50, posts=0, events=0), "0.000 events a list"),
        (usual(10, posts=4, events=4), ""),
        (usual(0.0), ""),
        (usual(lists=0, fallbacks=0, posts=1000), ""),
    ],
)
def test_guards(after, guard):
    found = broken_guard(usual(), after)
    assert (guard in found) if guard else found == "", found


def test_without_a_time_before_only_errors_count():
    nothing = Look(0.0)
    assert broken_guard(nothing, usual(seconds=99, fallbacks=900, posts=0, events=0)) == ""
    assert "fail" in broken_guard(nothing, usual(errors=40))
    assert "fail" in broken_guard(nothing, usual(3, errors=3))
    assert "fail" in broken_guard(usual(20, errors=0), usual(3, errors=3)), "with few answers before, too"
    assert broken_guard(nothing, usual(200, errors=3)) == ""


@pytest.mark.parametrize(
    ("ours", "others", "lost"),
    [
        ([40, 100], [80, 100], True),
        ([0, 10], [80, 100], True),
        ([2, 10], [8, 10], False),  # too few of both
        ([70, 100], [80, 100], False),  # a fall of less than a fifth
        ([15, 200], [20, 200], False),  # a fall that chance explains
        ([100, 2000], [200, 2000], True),
        ([0, 0], [80, 100], False),
        ([10, 20], [0, 0], False),
    ],
)
def test_hits_are_compared_with_those_of_all_other_versions(ours, others, lost):
    halves = {"old": [others[0] / 4, others[1] / 4], "older": [others[0] * 3 / 4, others[1] * 3 / 4]}
    found = lost_hits("new", Look(0.0, listed={"new": [float(n) for n in ours], **halves}))
    assert bool(found) == lost and (not lost or "in the list" in found)


LOOKS, A_LOOK, BEFORE = 60, 20, 1000


def drawn(rng: np.random.Generator, answers: int, **worse: float) -> Look:
    """What is counted of so many independent calls."""
    shares = {"errors": 0.005, "slow": 0.2, "unknown": 0.05, "posted": 0.5, "hit": 0.3} | worse
    is_slow = rng.random(answers) < shares["slow"]
    times = np.where(is_slow, 0.04, 0.004)
    within = {str(bound): float((times <= bound).sum()) for bound in (0.005, 0.01, 0.02, 0.05)} | {"+Inf": answers}
    posts = rng.binomial(answers, shares["posted"])
    lists = rng.binomial(answers, 0.5)
    hits = rng.binomial(lists, shares["hit"])
    return Look(
        0.0, answers=answers, errors=rng.binomial(answers, shares["errors"]), seconds=float(times.sum()), lists=answers,
        fallbacks=rng.binomial(answers, shares["unknown"]), posts=posts, events=posts + rng.poisson(posts),
        within=within, listed={"v": [hits, lists]},
    )  # fmt: skip


def added(a: Look, b: Look) -> Look:
    names = ("answers", "errors", "seconds", "lists", "fallbacks", "posts", "events")
    return dataclasses.replace(
        a, **{name: getattr(a, name) + getattr(b, name) for name in names},
        within={bound: count + b.within[bound] for bound, count in a.within.items()},
        listed={"v": [x + y for x, y in zip(a.listed["v"], b.listed["v"], strict=True)]},
    )  # fmt: skip


def answers_until_broken(rng: np.random.Generator, false_alarms: float = WATCH.false_alarms, **worse: float) -> float:
    """Answers of a release after which some guard breaks; infinite where none does in 60 looks, each at 20 answers more."""
    params = dataclasses.replace(WATCH, false_alarms=false_alarms)
    before, after = drawn(rng, BEFORE), drawn(rng, 0)
    for n in range(LOOKS):
        after = added(after, drawn(rng, A_LOOK, **worse))
        listed = Look(0.0, listed=after.listed | {"old": before.listed["v"]})
        if broken_guard(before, after, params=params) or lost_hits("v", listed, params=params):
            return (n + 1) * A_LOOK
    return float("inf")


def test_a_healthy_version_is_taken_back_as_seldom_as_stated():
    rng, releases = np.random.default_rng(0), 150
    assert WATCH.false_alarms == 0.01
    broken = sum(np.isfinite(answers_until_broken(rng)) for _ in range(releases))
    assert broken <= 5, "1 % of 150; more than 5 have a chance of .4 %"
    # The limits alone, without evidence, would take a healthy version back in about two releases of three.
    at_once = sum(np.isfinite(answers_until_broken(rng, false_alarms=1e20)) for _ in range(20))
    assert at_once >= 8


@pytest.mark.parametrize(
    ("worse", "most"),
    [
        ({"errors": 1.0}, 20),
        ({"errors": 0.3}, 40),
        ({"errors": 0.1}, 200),
        ({"errors": 0.05}, 700),
        ({"slow": 1.0}, 40),
        ({"slow": 0.7}, 120),
        ({"unknown": 0.5}, 40),
        ({"unknown": 0.25}, 200),
        ({"posted": 0.0}, 60),
        ({"posted": 0.25}, 400),
        ({"hit": 0.0}, 120),
        ({"hit": 0.1}, 400),
    ],
)
def test_the_worse_a_version_is_the_fewer_answers_it_takes(worse, most):
    rng = np.random.default_rng(1)
    taken = [answers_until_broken(rng, **worse) for _ in range(12)]
    assert np.median(taken) <= most and np.isfinite(taken).all(), taken
