"""The HTTP API's answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class AcceptedResponse(BaseModel):
    """How many events, items or users of the call are on disk now, those too that were there before it."""

    accepted: int


class FieldWarning(BaseModel):
    """A value of an accepted body that has no effect, leaves no item or changes what a figure means, in the shape of an
    error: where it is, and why."""

    loc: list[str | int]
    msg: str
    type: Literal[
        "unknown_action",
        "unknown_item",
        "words_not_read",
        "context_not_read",
        "attributes_not_read",
        "value_not_read",
        "no_second_stage",
        "no_probability",
        "not_calibrated",
        "unknown_value",
        "says_nothing",
        "empty_range",
        "short_list",
    ]


class EventsResponse(AcceptedResponse):
    """How many events are on disk now, and which of their values change no recommendation."""

    warnings: list[FieldWarning] | None = Field(
        default=None,
        description="One entry for each unknown action and each unknown item, at its first event; the first 20. Present "
        "only where there is one.",
    )


class StoredResponse(AcceptedResponse):
    """How many users are on disk now, and which of their attributes change no recommendation."""

    warnings: list[FieldWarning] | None = Field(
        default=None,
        description="That the model reads no attributes, or each value that it does not know; the first 20. Present only "
        "where there is one.",
    )


class UserResponse(BaseModel):
    """What is known of a user: the row that was posted or, where none was, what the model read in the user file."""

    user_id: str
    attributes: dict[str, Any]
    posted: bool


class Reasons(BaseModel):
    """What an item's score is made of.

    `history` and `context`: what the score lacks without each of the latest items of the history and without each
    context feature (for hour, weekday and month, against their mean), the largest effect first. `user`: likewise, without
    each known attribute of the user.
    `sources`: parts of the model; these sum to the score, as it is before diversity and rules.
    """

    history: dict[str, float]
    context: dict[str, float]
    user: dict[str, float]
    sources: dict[str, float]


class ScoredItem(BaseModel):
    """An item and its score; higher is better, and scores of one answer compare with each other only.

    The same request may get a score that differs by up to 1e-5 (relative) when it is answered in another batch or on
    another CPU, because the order of the additions in a matrix product differs.
    """

    item_id: str
    score: float
    why: Reasons | None = Field(default=None, description="Only with `explain`.")
    probability: float | None = Field(
        default=None, description="Only with `probability`: from 0 to 1, by the item's own score; see `probability_of`."
    )


class ArmOfTest(BaseModel):
    """The A/B test that runs, and the arm whose model made the answer."""

    name: str
    arm: str


class ItemsResponse(BaseModel):
    """Items, best first.

    `fallback` is true when the user had no history. `experiment` is present while an A/B test runs. `degraded` is present
    when a part of the service did not answer, and names what the answer had to do without. `warnings` is present where
    something that was asked for has no effect. `probability_of` is present with probabilities: "success" (the user meets
    the item now, and the log's values or actions would count that as a success) or "next" (the item is the user's next event).
    """

    items: list[ScoredItem]
    model_version: str
    fallback: bool
    degraded: str | None = None
    experiment: ArmOfTest | None = None
    warnings: list[FieldWarning] | None = None
    probability_of: Literal["success", "next"] | None = None


class BatchResponse(BaseModel):
    """One answer for each request, in their order."""

    responses: list[ItemsResponse]


class ErrorResponse(BaseModel):
    """The body of every error. `detail` is a sentence, or a list of fields with the mistake of each."""

    detail: str | list[dict[str, Any]]
