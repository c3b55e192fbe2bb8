"""Watch a service after a new version was published, and say whether a guard breaks."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.lifecycle.guards import WATCH, WatchParams, broken_guard, figures, hits_of, lost_hits
from ctxrec.lifecycle.service_look import Look, look

logger = logging.getLogger(__name__)


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
