"""A request in a user's words, as the service, batch scoring and Python make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RawEvent:
    """One event of a history that a request brings along. `timestamp`: epoch seconds, UTC; `value`: in the unit of the log."""

    item_id: str
    action: str | None = None
    timestamp: float | None = None
    context: dict[str, Any] = field(default_factory=dict)
    value: float | None = None


@dataclass(frozen=True)
class RawRequest:
    """A request in a user's words: ids, names of actions, seconds.

    It stands between `serve.api.RecommendRequest`, the checked body of an HTTP call, and `ctxrec.data.requests.Requests`,
    the arrays that models score. The service, batch scoring and Python code make it; `ctxrec.retrieval.recommender.Recommender.make_requests` reads it.

    Attributes:
        user_id: None is somebody without a name.
        timestamp: when it is asked, epoch seconds, UTC; None is now.
        context: context features of the data set by name, and "timezone", the zone of hour, weekday and month.
        history: replaces the stored history.
        recent: events that a store holds besides the stored history, none after the request, oldest first.
        user: attributes of the user by name, in the place of the stored ones; those that are left out stay.
        dislike: ids of items the like of which is not wanted; the items themselves are left out of the list.
        query: free text that the list should fit besides the taste, such as "quiet sci-fi for tonight"; None or blank: none.
    """

    user_id: str | None = None
    timestamp: float | None = None
    context: dict[str, Any] = field(default_factory=dict)
    history: Sequence[RawEvent] | None = None
    recent: Sequence[RawEvent] = ()
    user: Mapping[str, Any] | None = None
    dislike: Sequence[str] = ()
    query: str | None = None
