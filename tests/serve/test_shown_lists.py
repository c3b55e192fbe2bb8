"""The first event after a list counts for the version that made the list."""

from __future__ import annotations

from ctxrec.core.dataset_spec import EventsSpec, FeedbackSpec
from ctxrec.data.feedback import EventKinds, graded_actions
from ctxrec.live.store import LoggedEvent
from serve import shown_lists
from serve.api import RecommendRequest
from serve.engine import Answer, Reply
from serve.shown_lists import ShownLists

STARS = FeedbackSpec(kind="rating", positive=4, negative=2)
SPEC = EventsSpec(path="log.csv", action="what", value="stars", actions={"see": 1.0, "dislike": -1.0}, feedback=STARS)
GRADED = graded_actions(SPEC, ["dislike", "see"])
KINDS = EventKinds.of(SPEC, ["dislike", "see", *GRADED["see"]], GRADED)


class Counted:
    """Takes what is counted, by a clock that the test moves."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []
        self.now = 0.0
        self.shown = ShownLists(lambda version, listed: self.found.append((version, listed)), now=lambda: self.now)

    def list_of(self, user: str | None, items: list[str], version: str = "v") -> None:
        body = RecommendRequest.model_validate({"history": []} if user is None else {"user_id": user})
        self.shown.add([([body], None)], [Reply([Answer(items, [1.0] * len(items), version)])])

    def event(self, user: str, item: str, action: str | None = None, value: float | None = None) -> None:
        self.shown.credit([LoggedEvent(user, item, 0, action, value)], KINDS)


def test_one_event_counts_for_the_latest_list():
    counted = Counted()
    counted.list_of("u", ["a", "b"], "old")
    counted.list_of("u", ["b", "c"], "new")
    counted.list_of("w", ["a"])
    counted.event("u", "c", "dislike")
    counted.event("u", "c", "see", 1.0)  # a rating that is negative feedback
    for user, item in (("u", "c"), ("u", "c"), ("w", "x"), ("nobody", "a")):
        counted.event(user, item)
    assert counted.found == [("new", True), ("v", False)]


def test_what_is_remembered_is_bounded_in_number_and_time(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(shown_lists, "_MOST_USERS", 2)
    for n in range(4):
        counted.list_of(f"u{n}", ["a"] * 60 + ["late"])
    counted.list_of(None, ["a"])
    for n in range(4):
        counted.event(f"u{n}", "late" if n == 3 else "a")
    assert counted.found == [("v", True), ("v", False)], "the latest two users, and the first items of a list"
    counted.list_of("u", ["a"])
    counted.now = shown_lists._KEPT_S + 1
    counted.event("u", "a")
    assert len(counted.found) == 2
