"""The arms of a running A/B test in a replica: who gets which version, and the log of exposures."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter

from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.experiments.ab_test import CONTROL, Arm, Experiment
from ctxrec.experiments.exposures import Exposure, write_exposures
from ctxrec.live.store import LoggedEvent
from serve.api import RecommendRequest
from serve.engine import Answer, Engine, Reply
from serve.item_sync import Every, ItemSync

logger = logging.getLogger(__name__)

_AT_MOST = 500_000  # exposures that wait for a file; more are counted and left out
_AT_ONCE = 100_000  # of a file

Version = tuple[Engine, ItemSync]
Call = tuple[
    Sequence[RecommendRequest], str | None
]  # the requests of one HTTP call, and the call's id where it has one


@dataclass(frozen=True)
class Arms:
    """A test and its loaded versions besides the current one; without a test everybody gets the latter."""

    test: Experiment | None = None
    versions: Mapping[str, Version] = field(default_factory=dict)

    def arm_of(self, user_id: str) -> str | None:
        """Name of a user's arm; None without a test."""
        if self.test is None:
            return None
        arm = self.test.arm_of(user_id)
        return CONTROL if arm is None else arm.name

    def count_events(self, events: Sequence[LoggedEvent], actions: Sequence[str], counter: Counter) -> None:
        """Count stored events by arm and action; actions that the model does not know are one."""
        if self.test is None:
            return
        for event in events:
            action = event.action if event.action in actions else "other"  # a label is for a few values
            counter.labels(self.test.name, self.arm_of(event.user_id), action).inc()

    def recommend(self, calls: Sequence[Call], current: Engine, seen: Callable[[list[Exposure]], None]) -> list[Reply]:
        """One reply for each call, each request answered by the version of its arm.

        Args:
            calls: what is asked; somebody without a name is in an arm for this call alone.
            current: engine of the control.
            seen: takes what was answered.
        """
        if self.test is None:
            return current.recommend([requests for requests, _ in calls])
        replies = [Reply([UserError("")] * len(requests)) for requests, _ in calls]
        for arm, places in self._places(calls).items():
            engine = current if arm is None else self.versions[arm.version][0]
            asked = [[calls[c][0][p] for p in which] for c, which in places.items()]
            for (c, which), reply in zip(places.items(), engine.recommend(asked), strict=True):
                for place, answer in zip(which, reply.answers, strict=True):
                    named = (self.test.name, CONTROL if arm is None else arm.name)
                    if isinstance(answer, Answer):
                        answer = dataclasses.replace(answer, experiment=named)
                    replies[c].answers[place] = answer
                for stage, seconds in reply.seconds.items():
                    replies[c].seconds[stage] = replies[c].seconds.get(stage, 0.0) + seconds
        seen(self._exposures(calls, replies))
        return replies

    def _places(self, calls: Sequence[Call]) -> dict[Arm | None, dict[int, list[int]]]:
        """Requests by arm: numbers of calls, and places in them."""
        assert self.test is not None
        found: dict[Arm | None, dict[int, list[int]]] = {}
        for c, (requests, request_id) in enumerate(calls):
            nameless = request_id or uuid.uuid4().hex
            for place, body in enumerate(requests):
                arm = self.test.arm_of(nameless if body.user_id is None else body.user_id)
                found.setdefault(arm, {}).setdefault(c, []).append(place)
        return found

    def _exposures(self, calls: Sequence[Call], replies: Sequence[Reply]) -> list[Exposure]:
        assert self.test is not None
        shares = {arm.name: arm.share for arm in self.test.arms} | {CONTROL: self.test.share_of(None)}
        now_us = round(time.time() * US)
        return [
            Exposure(
                time_us=now_us,
                experiment=self.test.name,
                arm=answer.experiment[1],
                share=shares[answer.experiment[1]],
                model_version=answer.model_version,
                user_id=body.user_id,
                request_id=request_id,
                item_ids=answer.item_ids,
            )
            for (requests, request_id), reply in zip(calls, replies, strict=True)
            for body, answer in zip(requests, reply.answers, strict=True)
            if isinstance(answer, Answer) and answer.experiment is not None
        ]


class ExposureLog:
    """Writes exposures to Parquet files every so many seconds, and once more when it is stopped.

    Unlike events they are not on disk when they are answered: a replica that is killed loses those since its last file.
    """

    def __init__(self, folder: str, *, every_s: float):
        self._folder = folder
        self._waiting: list[Exposure] = []
        self._lost = 0
        self._lock = threading.Lock()
        self._rounds = Every(every_s, self._write, "exposures")

    def add(self, exposures: Sequence[Exposure]) -> None:
        with self._lock:
            room = max(_AT_MOST - len(self._waiting), 0)
            self._waiting += exposures[:room]
            self._lost += max(len(exposures) - room, 0)

    def stop(self) -> None:
        self._rounds.stop()
        self._write()

    def _write(self) -> None:
        with self._lock:
            taken, self._waiting, lost, self._lost = self._waiting, [], self._lost, 0
        if lost:
            logger.error("%d exposures are lost: too many waited for %s", lost, self._folder)
        for start in range(0, len(taken), _AT_ONCE):
            try:
                write_exposures(self._folder, taken[start : start + _AT_ONCE])
            except Exception:  # whatever it is, the next round tries again
                logger.exception("exposures could not be written to %s; they will be tried again", self._folder)
                self.add(taken[start:])
                return
