"""What actions and values say together: codes, weights, thresholds, and the mistakes of `[events.feedback]`."""

from __future__ import annotations

import numpy as np
import pytest

from ctxrec.core.dataset_spec import DatasetSpec, EventsSpec, FeedbackSpec
from ctxrec.core.errors import UserError
from ctxrec.data.feedback import EventKinds, graded_actions

STARS = FeedbackSpec(kind="rating", positive=4, negative=2)


def kinds_of(actions=(), *, feedback=STARS, weights=None) -> tuple[EventKinds, list[str]]:
    action = "what" if actions else None
    events = EventsSpec(path="log.csv", value="stars", action=action, actions=weights or {}, feedback=feedback)
    graded = graded_actions(events, actions)
    names = [*actions, *(kind for made in graded.values() for kind in made)]
    return EventKinds.of(events, names, graded), ["", *names]


def weights_of(kinds: EventKinds, action: str | None, values) -> list[float]:
    return [float(kinds.weights_A[kinds.code(action, value)]) for value in values]


def test_values_divide_events_of_a_log_without_actions():
    kinds, names = kinds_of()
    values = np.array([1, 2, 2.5, 4, 5, np.nan], np.float32)
    codes = kinds.codes(np.zeros(6, np.int16), values)
    wanted = ["negative", "negative", "neutral", "positive", "positive"]
    assert [names[code] for code in codes] == [f"rating {grade}" for grade in wanted] + [""]
    assert kinds.weights_A[codes].tolist() == [-1, -1, 0, 1, 1, 1], "an event without a value counts as before"
    assert kinds.grades_A[codes].tolist() == [-1, -1, 0, 1, 1, 1]
    assert [kinds.code(None, None if np.isnan(v) else float(v)) for v in values] == codes.tolist()


def test_an_action_keeps_its_weight_where_its_value_is_a_success():
    kinds, names = kinds_of(("hide", "rate", "view"), weights={"rate": 0.5, "hide": -1.0})
    assert weights_of(kinds, "rate", [5, 3, 1, None]) == [0.5, 0, -0.5, 0.5]
    assert names[kinds.code("rate", 1)] == "rate, rating negative"
    assert weights_of(kinds, "view", [5, 3, 1, None]) == [0] * 4, (
        "an action without a weight is no target, whatever its value"
    )
    assert weights_of(kinds, "hide", [5, 3, 1, None]) == [-1] * 4, "negative feedback stays negative"
    assert weights_of(kinds, None, [5, 1]) == [0, 0], "where actions have weights, an event without one is no target"
    assert weights_of(kinds, "unheard of", [1]) == [0]
    assert names[kinds.code("rating negative", 5)] == "", "the name of a kind is no action"


def test_without_feedback_values_change_nothing():
    kinds, _ = kinds_of(("buy", "view"), feedback=None, weights={"buy": 2.0})
    assert not kinds.are_graded and kinds.weights_A.tolist() == [0, 2, 0]
    assert kinds.codes(np.array([0, 1, 2]), np.array([1, np.nan, 5], np.float32)).tolist() == [0, 1, 2]
    assert kinds.code("buy", 1.0) == 1 and set(kinds.grades_A.tolist()) == {1}


def test_an_action_of_a_negative_weight_is_a_dislike_without_values_too():
    kinds, _ = kinds_of(("buy", "return", "view"), feedback=None, weights={"buy": 1.0, "return": -0.5})
    assert kinds.are_judged and not kinds.are_graded
    assert kinds.grades_A.tolist() == [1, 1, -1, 1] and kinds.weights_A.tolist() == [0, 1, -0.5, 0]


def test_a_threshold_holds_for_the_float32_of_the_log():
    kinds, _ = kinds_of(feedback=FeedbackSpec(kind="rating", positive=3.3, negative=1.1))
    stored = np.array([3.3, 1.1], np.float32)  # 3.3 as float32 is less than 3.3
    assert float(stored[0]) < 3.3
    assert kinds.weights_A[kinds.codes(np.zeros(2, np.int16), stored)].tolist() == [1, -1]
    assert weights_of(kinds, None, [3.3, 1.1]) == [1, -1]


def test_a_success_may_weigh_by_its_value():
    kinds, _ = kinds_of(feedback=FeedbackSpec(kind="quantity", positive=1, negative=-1, weight="log"))
    values = np.array([1, 3, 0, -2, np.nan], np.float32)
    weights = kinds.weights(kinds.codes(np.zeros(5, np.int16), values), values)
    np.testing.assert_allclose(weights, [1, 2, 0, -1, 1], rtol=1e-6)  # log(1 + 3) / log(1 + 1) = 2


def test_without_a_lower_threshold_nothing_is_negative():
    kinds, _ = kinds_of(feedback=FeedbackSpec(kind="dwell", positive=30))
    assert weights_of(kinds, None, [31, 30, 29, -100]) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        ({"kind": "stars", "positive": 4}, "kind is 'stars'; expected one of rating, quantity, dwell, money"),
        ({"kind": "rating"}, "missing events.feedback.positive"),
        ({"kind": "rating", "positive": "4"}, "positive is '4'; expected a number"),
        ({"kind": "rating", "positive": 2, "negative": 4}, "negative is 4 and positive is 2; expected negative below"),
        ({"kind": "rating", "positive": float("nan")}, "positive is nan; expected a finite number"),
        ({"kind": "money", "positive": 0, "weight": "log"}, "expected positive above 0"),
        ({"kind": "rating", "positive": 4, "weight": "square"}, "weight is 'square'; expected one of none, log"),
        ({"kind": "rating", "positive": 4, "neutral": 3}, "unknown key 'events.feedback.neutral'; valid keys are kind"),
    ],
)
def test_a_mistake_names_the_key(feedback, said):
    raw = {"name": "t", "events": {"path": "log.csv", "value": "stars", "feedback": feedback}}
    with pytest.raises(UserError) as error:
        DatasetSpec.from_dict(raw)
    assert said in str(error.value)


def test_values_need_a_column():
    raw = {"name": "t", "events": {"path": "log.csv", "feedback": {"kind": "rating", "positive": 4}}}
    with pytest.raises(UserError, match=r"names no column of values; expected value = \"COLUMN\" in \[events\]"):
        DatasetSpec.from_dict(raw)


def test_a_spec_without_the_section_is_written_as_before():
    """So that the fingerprint of prepared data stays."""
    spec = DatasetSpec.from_dict({"name": "t", "events": {"path": "log.csv"}})
    assert "feedback" not in spec.to_dict()["events"]
    with_it = DatasetSpec.from_dict({"name": "t", "events": {"path": "log.csv", "value": "v", "feedback": {"kind": "rating", "positive": 4}}})  # fmt: skip
    assert DatasetSpec.from_dict(with_it.to_dict()) == with_it
