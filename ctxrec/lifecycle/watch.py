"""Watch a service after a new version was published, and say whether a guard breaks."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.lifecycle.service_look import Look, look

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchParams:
    """Guards of a version in service. They are limits that an operator accepts, and none is fitted to a service.

    Attributes:
        every_s: seconds between two looks.
        take_over_s: seconds within which all replicas must serve the new version, and within which a service that is
            silent must answer again.
        fewest: fewer answers than this are no evidence, before or after.
        errors: share of failed calls above that of the time before.
        slower: mean time of a call, as a multiple of the time before.
        fallbacks: share of answers to unknown users above that of the time before.
        events: share of the events an answer that may be lost. It is lost for sure if the fall is more than three
            standard deviations of counts that are independent (Poisson).
        listed: share of the hits that may be lost. A hit is a first event after a list of an item in the list; the share of
            hits of the version is compared with that of all others since the look before. It is lost for sure if the fall
            is more than three standard deviations of two independent shares.
    """

    every_s: float = 5.0
    take_over_s: float = 120.0
    fewest: int = 100
    errors: float = 0.01
    slower: float = 2.0
    fallbacks: float = 0.1
    events: float = 0.2
    listed: float = 0.2


WATCH = WatchParams()


@dataclass(frozen=True)
class Watched:
    """What was seen of a version in service.

    Attributes:
        guard: why it must be rolled back, in words; "" where no guard broke.
        seconds: since it was published.
        answers: calls that it answered.
        before, after: figures of the time before it was published, and since all replicas serve it.
        hits: share of the first events after a list that were of an item in the list, by whose list it was ("version" and
            "others"); without lists there is none.
    """

    guard: str
    seconds: float
    answers: float
    before: dict[str, float]
    after: dict[str, float]
    hits: dict[str, float] = dataclasses.field(default_factory=dict)


def figures(window: Look) -> dict[str, float]:
    """Shares and means of the calls between two looks; times in seconds. Empty without calls."""
    if window.answers <= 0:
        return {}
    return {
        "answers": window.answers,
        "errors": window.errors / window.answers,
        "seconds": window.seconds / window.answers,
        "fallbacks": window.fallbacks / window.answers,
        "events": window.events / window.answers,
    }


def broken_guard(before: Look, after: Look, *, params: WatchParams = WATCH) -> str:
    """The first guard that breaks, in words; "" where none does, or where there are too few answers to tell.

    Args:
        before: what was counted before the version was published.
        after: what was counted since all replicas serve it.
        params: the guards.
    """
    now, was = figures(after), figures(before)
    if after.answers < params.fewest:
        return ""
    usual = was.get("errors", 0.0) if before.answers >= params.fewest else 0.0
    if now["errors"] > usual + params.errors:
        return f"{now['errors']:.1%} of the calls fail, {usual:.1%} before"
    if before.answers < params.fewest:
        return ""
    if now["seconds"] > params.slower * was["seconds"]:
        return f"a call takes {1000 * now['seconds']:.1f} ms, {1000 * was['seconds']:.1f} ms before"
    if now["fallbacks"] > was["fallbacks"] + params.fallbacks:
        return f"{now['fallbacks']:.1%} of the answers are for users who are not known, {was['fallbacks']:.1%} before"
    expected = was["events"] * after.answers
    spread = (expected + expected * after.answers / before.answers) ** 0.5
    if after.events < (1 - params.events) * expected and expected - after.events > 3 * spread:
        return f"{now['events']:.3f} events an answer, {was['events']:.3f} before"
    return ""


def lost_hits(version: str, since: Look, *, params: WatchParams = WATCH) -> str:
    """Whether users take less of a version's lists than of others', in words; "" where not, or where too few tell.

    Args:
        version: that is watched.
        since: what was counted since the look before.
        params: the guards.
    """
    (hits, lists), (others, of_others) = hits_of(version, since)
    if min(lists, of_others) < params.fewest:
        return ""
    now, was, both = hits / lists, others / of_others, (hits + others) / (lists + of_others)
    spread = (both * (1 - both) * (1 / lists + 1 / of_others)) ** 0.5
    if now < (1 - params.listed) * was and was - now > 3 * spread:
        return f"{now:.1%} of the first events after a list are in the list, {was:.1%} with other versions"
    return ""


def hits_of(version: str, since: Look) -> tuple[list[float], list[float]]:
    """Hits and first events after lists of a version, and of all others."""
    others = [counts for name, counts in since.listed.items() if name != version]
    return since.listed.get(version, [0.0, 0.0]), [sum(counts[n] for counts in others) for n in range(2)]


def save_look(path: str, found: Look) -> None:
    """Keep a look for a command that goes on after a kill."""
    storage.write_json(path, dataclasses.asdict(found))


def read_look(path: str) -> Look | None:
    """The look that `save_look` kept; None without one."""
    return Look(**storage.read_json_object(path)) if storage.exists(path) else None


def watch(
    url: str,
    version: str,
    *,
    until: float,
    published: float,
    begin: Look | None,
    at_publication: Look,
    params: WatchParams = WATCH,
    still_served: Callable[[], bool] = lambda: True,
    canary: bool = False,
) -> Watched:
    """Look at a service until a time, or until a guard breaks.

    Args:
        url: of the service.
        version: that was published.
        until: epoch seconds of the end.
        published: epoch seconds at which it was published.
        begin: a look before; None: there is no time before to compare with.
        at_publication: a look just before it was published.
        params: the guards.
        still_served: whether the version is still the published one; if not, the watch ends.
        canary: whether it is the arm of a share of the users, whose calls count in the figures of all.
    """
    before = at_publication.since(begin) if begin is not None else dataclasses.replace(at_publication, answers=0.0)
    taken_over: Look | None = None
    now, last_answer, guard = at_publication, time.time(), ""
    while not guard and time.time() < until and still_served():
        time.sleep(params.every_s)
        try:
            now = look(url)
            last_answer = time.time()
        except ConnectionError as error:
            if time.time() - last_answer > params.take_over_s:
                guard = f"the service is silent: {error}"
            continue
        if taken_over is None:
            if now.since(at_publication).arms.get(version, 0) > 0 if canary else set(now.replicas) == {version}:
                logger.info("some users get %s" if canary else "all replicas serve %s", version)
                taken_over = now
            elif now.refused > at_publication.refused:
                guard = f"a replica refuses {version}"
            elif not canary and time.time() - published > params.take_over_s:
                guard = f"{', '.join(sorted(now.replicas))} is served {params.take_over_s:g} s after {version} was published"
            continue
        guard = broken_guard(before, now.since(taken_over), params=params)
        guard = guard or lost_hits(version, now.since(begin or at_publication), params=params)
    after = now.since(taken_over) if taken_over is not None else Look(now.at)
    found: dict[str, Any] = {"before": figures(before), "after": figures(after)}
    pairs = zip(("version", "others"), hits_of(version, now.since(begin or at_publication)), strict=True)
    found["hits"] = {name: round(hits / lists, 4) for name, (hits, lists) in pairs if lists}
    return Watched(guard=guard, seconds=round(time.time() - published, 1), answers=after.answers, **found)
