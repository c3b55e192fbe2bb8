"""The store of posted events, items and users, which all replicas share; it is written before a call is acknowledged.

`open_store` opens the embedded store (SQLite, one machine) or Redis (several machines). Both also keep a log of events
that have not been written to event files yet (`ctxrec.live.event_files`), and the rows of items and users that were posted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

KEPT_EVENTS = 1000  # of a user, the latest ones, that a request reads
RECENT_EVENTS = 200_000  # of all users, the latest ones that came, that a new reader of the stream gets
Table = Literal["items", "users"]  # of which rows are posted
TABLES: tuple[Table, ...] = ("items", "users")


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event as it was posted; times are microseconds since 1970, UTC."""

    user_id: str
    item_id: str
    time_us: int
    action: str | None = None
    value: float | None = None
    context: dict[str, Any] = field(default_factory=dict)

    def payload(self) -> str:
        """The event without its user, as JSON."""
        row = [self.item_id, self.time_us, self.action, self.value, self.context]
        return json.dumps(row, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def of_payload(user_id: str, text: str) -> LoggedEvent:
        return LoggedEvent(user_id, *json.loads(text))


@dataclass(frozen=True, slots=True)
class Unwritten:
    """Events to be written to a file of this name; after a crash the same events are returned again."""

    name: str
    last: Any  # the store's own mark of the last event
    events: list[LoggedEvent]


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row of a table that was posted or, where `row` is None, taken away: an item that left the catalogue, or a user of
    whom nothing is known any more."""

    number: int  # of the change, rising in its table
    id: str
    row: dict[str, Any] | None


class StoreError(Exception):
    """The store does not answer, or not in time; nothing was acknowledged.

    Attributes:
        kind: "busy" where the same call may succeed later; otherwise the operator must act first, because the store is
            "damaged", "full" (of disk or memory), "read-only" or "denied" (to this user or password).
    """

    KINDS = ("busy", "damaged", "full", "read-only", "denied")

    def __init__(self, message: str, kind: str = "busy"):
        super().__init__(message)
        self.kind = kind


OnFailure = Callable[[StoreError], None]


class HistoryStore(Protocol):
    """A store of events by user, and of rows of items and users. Several threads and several processes may use it at once."""

    id: str  # of the store, made with it

    def append(self, events: Sequence[LoggedEvent]) -> None:
        """Add events in one atomic and idempotent call; they are on disk when this returns.

        Duplicates (same user, item, time and action) are ignored.

        Raises:
            StoreError: they may not be there.
        """

    def latest(self, users: Sequence[str], until_us: Sequence[int]) -> list[list[LoggedEvent]]:
        """The latest KEPT_EVENTS events of each user at or before a time, oldest first. Events of one time stay in
        the order in which they came.

        Raises:
            StoreError: the store does not answer.
        """

    def events_since(self, mark: Any, limit: int) -> tuple[list[LoggedEvent], Any]:
        """Events of all users in the order in which they came, and the mark of the last one.

        Args:
            mark: what an earlier call returned; None: begin with the latest `RECENT_EVENTS` events.
            limit: of events that are returned. Fewer mean that there are no more yet.

        Raises:
            StoreError: the store does not answer.
        """

    def take_unwritten(self, limit: int) -> Unwritten | None:
        """Up to `limit` events that no file has yet, oldest first; None when there are none, or when another
        process is writing them. `written` or `release` must follow.

        Raises:
            StoreError: the store does not answer; nothing was taken, and the next call tries again.
        """

    def written(self, taken: Unwritten) -> None:
        """The file of `taken` is complete.

        Raises:
            StoreError: the store did not record it; the same file will be written again.
        """

    def num_unwritten(self) -> int:
        """How many events no file has yet.

        Raises:
            StoreError: the store does not answer.
        """

    def other_services(self, me: str) -> list[str]:
        """Names of other services that use this store now; from the first call on, `me` counts as one of them.

        Replicas of one service share one name. A service that died is forgotten.

        Raises:
            StoreError: the store does not answer.
        """

    def release(self) -> None:
        """Let others write what was taken and not written."""

    def change_rows(self, table: Table, rows: Mapping[str, dict[str, Any] | None]) -> int:
        """Store new rows of a table by id, where None takes the row away; returns the number of the last change. The rows
        are on disk when this returns.

        Raises:
            StoreError: they may not be there.
        """

    def row_changes(self, table: Table, since: int) -> list[RowChange]:
        """The latest change of each row that was changed after the change of this number, in their order.

        Raises:
            StoreError: the store does not answer.
        """

    def posted_rows(self, table: Table, ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The rows of a table that were posted under these ids, and None for those that were taken away.

        Raises:
            StoreError: the store does not answer.
        """

    def close(self) -> None: ...
