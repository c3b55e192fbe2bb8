"""Watching a service: a real HTTP server with real Prometheus metrics, whose figures change with the version."""

from __future__ import annotations

import dataclasses
import time

import pytest
from watched_services import FAST, Service, metrics, running

from ctxrec.core.errors import UserError
from ctxrec.lifecycle.service_look import Look, look, parse
from ctxrec.lifecycle.watch import read_look, save_look, watch


def test_a_look_counts_recommendations_alone(tmp_path):
    listed = [
        f'ctxrec_list_events_total{{version="{version}",listed="{listed}"}} {count}'
        for version, listed, count in (("v", "yes", 8), ("v", "no", 2), ("w", "no", 3))
    ]
    counts = {"ok": 100, "errors": 5, "seconds": 2.5, "fallbacks": 7, "posts": 40, "events": 50, "refused": 1}
    text = metrics("v", counts, {0.01: 60.0}, listed) + 'ctxrec_arm_answers_total{version="w"} 4\n'
    found = parse(text, at=1.0)
    assert found == Look(
        1.0, answers=105, errors=5, seconds=2.5, lists=105, fallbacks=7, posts=40, events=50, refused=1,
        replicas={"v": 2.0}, listed={"v": [8, 10], "w": [0, 3]}, arms={"w": 4}, within={"0.01": 60, "+Inf": 105},
    )  # fmt: skip
    save_look(str(tmp_path / "look.json"), found)
    assert read_look(str(tmp_path / "look.json")) == found and read_look(str(tmp_path / "none.json")) is None
    listed_later = {"v": [9.0, 12.0], "x": [1.0, 1.0]}
    later = dataclasses.replace(
        found, at=2.0, answers=205, errors=6, listed=listed_later, arms={"w": 6}, within={"0.01": 61, "+Inf": 110}
    )
    since = later.since(found)
    assert (since.answers, since.errors, since.within) == (100, 1, {"0.01": 1, "+Inf": 5})
    assert (since.listed, since.arms) == ({"v": [1, 2], "x": [1, 1]}, {"w": 2})
    restarted = Look(3.0, answers=10, events=5, replicas={"v": 2.0})
    assert restarted.since(later).answers == 10, "counters that began anew count as they are"
    with pytest.raises(UserError, match="name no model"):
        parse("", at=1.0)


@pytest.mark.parametrize(
    ("figures", "guard"),
    [
        ({}, ""),
        ({"hits": 2}, "first events after a list"),
        ({"errors": 4}, "calls fail, 0.0% before"),
        ({"seconds": 4.0}, "a call takes"),
        ({"fallbacks": 30}, "not known"),
        ({"events": 1}, "events a list"),
    ],
)
def test_a_version_in_service_is_watched(figures, guard):
    published: list[str] = []
    service = Service(lambda: "new" if published else "old", {"new": figures})
    with running(service) as url:
        begin, *_, before = (look(url) for _ in range(20))
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
