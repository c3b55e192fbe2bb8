"""Watching a service: a real HTTP server with real Prometheus metrics, whose figures change with the version."""

from __future__ import annotations

import dataclasses
import time

import pytest
from watched_services import FAST, METRICS, Service, running

from ctxrec.core.errors import UserError
from ctxrec.lifecycle.service_look import Look, look, parse
from ctxrec.lifecycle.watch import broken_guard, lost_hits, watch


def test_a_look_counts_recommendations_alone():
    listed = "\n".join(
        f'ctxrec_list_events_total{{version="{version}",listed="{listed}"}} {count}'
        for version, listed, count in (("v", "yes", 8), ("v", "no", 2), ("w", "no", 3))
    )
    counts = {"ok": 100, "errors": 5, "seconds": 2.5, "fallbacks": 7, "events": 50, "refused": 1}
    text = METRICS.format(version="v", listed=listed, **counts) + 'ctxrec_arm_answers_total{version="w"} 4\n'
    found = parse(text, at=1.0)
    assert found == Look(1.0, 105, 5, 2.5, 7, 50, 1, {"v": 2.0}, {"v": [8, 10], "w": [0, 3]}, {"w": 4})
    later = dataclasses.replace(found, at=2.0, answers=205, errors=6, listed={"v": [9, 12], "x": [1, 1]}, arms={"w": 6})
    assert (later.since(found).answers, later.since(found).errors) == (100, 1)
    assert (later.since(found).listed, later.since(found).arms) == ({"v": [1, 2], "x": [1, 1]}, {"w": 2})
    restarted = Look(3.0, 10, 1, 0.1, 0, 5, 0, {"v": 2.0})
    assert restarted.since(later).answers == 10, "counters that began anew count as they are"
    with pytest.raises(UserError, match="name no model"):
        parse("", at=1.0)


USUAL = Look(0, 1000, 2, 10, 50, 800)


@pytest.mark.parametrize(
    ("after", "guard"),
    [
        (Look(0, 1000, 2, 10, 50, 800), ""),
        (Look(0, 1000, 11, 10, 50, 800), ""),
        (Look(0, 1000, 13, 10, 50, 800), "of the calls fail"),
        (Look(0, 1000, 2, 21, 50, 800), "a call takes 21.0 ms"),
        (Look(0, 1000, 2, 10, 160, 800), "who are not known"),
        (Look(0, 1000, 2, 10, 50, 600), "0.600 events an answer"),
        (Look(0, 99, 99, 10, 50, 0), ""),  # too few answers
        (Look(0, 100, 0, 1, 5, 62), ""),  # a fall that chance explains
    ],
)
def test_guards(after, guard):
    found = broken_guard(USUAL, after)
    assert (guard in found) if guard else found == "", found


def test_without_a_time_before_only_errors_count():
    assert broken_guard(Look(0), Look(0, 1000, 2, 99, 900, 0)) == ""
    assert "fail" in broken_guard(Look(0), Look(0, 1000, 20, 99, 900, 0))


@pytest.mark.parametrize(
    ("ours", "others", "lost"),
    [
        ([40, 100], [80, 100], True),
        ([40, 99], [80, 100], False),  # too few
        ([70, 100], [80, 100], False),  # a fall of less than a fifth
        ([15, 200], [20, 200], False),  # a fall that chance explains
        ([100, 2000], [200, 2000], True),
        ([0, 0], [80, 100], False),
    ],
)
def test_hits_are_compared_with_those_of_all_other_versions(ours, others, lost):
    halves = {"old": [others[0] / 4, others[1] / 4], "older": [others[0] * 3 / 4, others[1] * 3 / 4]}
    found = lost_hits("new", Look(0, listed={"new": [float(n) for n in ours], **halves}))
    assert bool(found) == lost and (not lost or "in the list" in found)


@pytest.mark.parametrize(
    ("figures", "guard"),
    [
        ({}, ""),
        ({"hits": 2}, "first events after a list"),
        ({"errors": 4}, "of the calls fail"),
        ({"seconds": 4.0}, "a call takes"),
        ({"fallbacks": 30}, "not known"),
        ({"events": 1}, "events an answer"),
    ],
)
def test_a_version_in_service_is_watched(figures, guard):
    published: list[str] = []
    service = Service(lambda: "new" if published else "old", {"new": figures})
    with running(service) as url:
        begin, _, _, before = (look(url) for _ in range(4))
        published.append("new")
        at = time.time()
        last = service.looks + 12
        options = {
            "published": at,
            "begin": begin,
            "at_publication": before,
            "still_served": lambda: service.looks < last,
        }
        seen = watch(url, "new", until=at + 300, params=FAST, **options)
    assert (guard in seen.guard) if guard else seen.guard == "", seen
    assert seen.answers >= FAST.fewest or "hits" in figures, "hits need no answers, but lists that events followed"
    assert seen.hits["others"] == pytest.approx(2 / 3, abs=1e-3)


def test_a_version_that_nobody_takes_over_and_a_service_that_falls_silent():
    service = Service(lambda: "old", {})
    with running(service) as url:
        first, at = look(url), time.time()
        options = {"until": at + 20, "published": at, "begin": first, "at_publication": first, "params": FAST}
        assert "old is served 0.5 s after new" in watch(url, "new", **options).guard
        service.totals["refused"] += 1
        assert watch(url, "new", **options | {"published": time.time()}).guard == "a replica refuses new"
        service.silent = True
        assert "silent" in watch(url, "old", **options | {"until": time.time() + 20}).guard
    with pytest.raises(ConnectionError):
        look(url)
    with pytest.raises(UserError, match="expected the address of a service"):
        look("localhost:8000")
