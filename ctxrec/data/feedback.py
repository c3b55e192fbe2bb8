"""What an event says: its action and its value as one code, and how much that counts.

Without `[events.feedback]` of the dataset spec the code of an event is that of its action, and an action of a weight below 0
is negative feedback. With it, the value of an event divides each action that may be a target into three kinds, and an event with a value has the code of its kind:

    value >= positive                 the action's own weight as a target, times `EventKinds.factors`
    negative < value < positive       weight 0: history, and no target
    value <= negative                 minus the action's weight: negative feedback

An event without a value keeps its action's code and weight. So does every event of an action that is no target (weight 0,
or not listed in `[events.actions]`) or is negative feedback already: its value changes nothing.

Legend: E events, A codes without that of no action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core.dataset_spec import EventsSpec, FeedbackSpec

GRADES = ("positive", "neutral", "negative")


def graded_actions(events: EventsSpec, actions: Sequence[str]) -> dict[str, list[str]]:
    """The kinds of event that values make of each action, in the order of `GRADES`; the key "" is no action.

    >>> from ctxrec.core.dataset_spec import FeedbackSpec
    >>> stars = FeedbackSpec(kind="rating", positive=4, negative=2)
    >>> graded_actions(EventsSpec(path="log.csv", value="stars", feedback=stars), [])
    {'': ['rating positive', 'rating neutral', 'rating negative']}
    """
    feedback = events.feedback
    if feedback is None:
        return {}
    made = {}
    for action in ("", *actions):
        if _own_weight(events, action) > 0:
            before = f"{action}, " if action else ""
            made[action] = [f"{before}{feedback.kind} {grade}" for grade in GRADES]
    return made


def _own_weight(events: EventsSpec, action: str) -> float:
    """Weight of an action as a target. Where actions have weights, an event without one is no target."""
    return events.actions.get(action, 0.0) if events.actions else 1.0


@dataclass(frozen=True)
class EventKinds:
    """Codes of events and what they count.

    Attributes:
        actions: codes of the actions alone, from 1 on; 0 is an event without action and value.
        weights_A: weight of each code as a target, the first one that of code 0: float32 [A + 1]. Below 0: negative feedback.
        grades_A: int8 [A + 1], -1 where the value or the action says that the event is negative feedback, 0 where the value
            lies between, and 1 for a success and where neither says anything.
        coded: int16 [A + 1, 4], the code of each action (row) without a value and with one of each grade.
        feedback: what values mean; None: nothing.
    """

    actions: dict[str, int]
    weights_A: np.ndarray
    grades_A: np.ndarray
    coded: np.ndarray
    feedback: FeedbackSpec | None

    @staticmethod
    def of(events: EventsSpec, names: Sequence[str], graded: dict[str, list[str]]) -> EventKinds:
        """The kinds of a log.

        Args:
            events: its spec.
            names: `FeatureMeta.actions`, the actions of the log and the kinds that values make of them.
            graded: `FeatureMeta.graded`, which of them values make.
        """
        place = {name: code for code, name in enumerate(names, 1)}
        made = {kind for kinds in graded.values() for kind in kinds}
        weights = np.array([_own_weight(events, name) for name in ("", *names)], np.float32)
        grades = np.ones(len(names) + 1, np.int8)
        coded = np.repeat(np.arange(len(names) + 1, dtype=np.int16)[:, None], 1 + len(GRADES), 1)
        for action, kinds in graded.items():
            codes = [place[kind] for kind in kinds]
            own = _own_weight(events, action)
            weights[codes], grades[codes] = (own, 0, -own), (1, 0, -1)
            coded[place.get(action, 0), 1:] = codes
        grades[weights < 0] = -1
        actions = {name: code for name, code in place.items() if name not in made}
        return EventKinds(actions, weights, grades, coded, events.feedback)

    @property
    def are_graded(self) -> bool:
        """Whether values count."""
        return self.feedback is not None

    @property
    def are_judged(self) -> bool:
        """Whether values or actions of a weight below 0 say what is liked."""
        return self.are_graded or bool((self.grades_A < 0).any())

    def is_success(self, codes: np.ndarray) -> np.ndarray:
        """Which events are successes, targets of a weight above 0: bool, of the shape of the codes."""
        return self.weights_A[codes] > 0

    def is_no_success(self, codes: np.ndarray) -> np.ndarray:
        """Which events say that the item was no success, by value or action: bool, of the shape of the codes."""
        return self.grades_A[codes] <= 0

    def codes(self, actions: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Codes of events, int16 [E]; `actions` are codes of actions alone, `values` float32 with NaN = none."""
        return self.coded[actions, self._grades(values)] if self.are_graded else actions.astype(np.int16)

    def code(self, action: str | None, value: float | None) -> int:
        """The code of one event; an action that the log does not have counts as none."""
        found = self.actions.get(action or "", 0)
        if self.feedback is None or value is None:
            return found
        return int(self.codes(np.array([found]), np.array([value]))[0])

    def is_negative(self, action: str | None, value: float | None) -> bool:
        """Whether an event is negative feedback."""
        return bool(self.weights_A[self.code(action, value)] < 0)

    def _grades(self, values: np.ndarray) -> np.ndarray:
        """0 without a value, then 1 + the place in `GRADES`: int64 [E]. All numbers are compared as float32."""
        feedback = self.feedback
        assert feedback is not None
        values = values.astype(np.float32)
        grade = np.where(values >= np.float32(feedback.positive), 1, 2)
        if feedback.negative is not None:
            grade[values <= np.float32(feedback.negative)] = 3
        grade[np.isnan(values)] = 0
        return grade

    @property
    def weighs_values(self) -> bool:
        """Whether successes weigh by their values."""
        return self.feedback is not None and self.feedback.weight == "log"

    def weights(self, codes: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        """Weights of events as targets: float32 [E]; `values` are float32 with NaN = none, and count where `weighs_values`."""
        weights = self.weights_A[codes]
        return weights if values is None else weights * self.factors(codes, values)

    def factors(self, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """By how much a value multiplies its event's weight: float32 [E].

        With `weight = "log"`, a success counts log(1 + value) / log(1 + positive), which is 1 at the threshold and grows
        slowly, so that one large basket does not outweigh many small ones. All other events count 1.
        """
        made = np.ones(len(codes), np.float32)
        if self.feedback is not None and self.weighs_values:
            success = (self.grades_A[codes] > 0) & (values >= np.float32(self.feedback.positive))
            made[success] = np.log1p(values[success]) / np.log1p(self.feedback.positive)
        return made
