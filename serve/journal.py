"""Posted events in a replica: they are stored in groups, and each is on disk before its sender gets an answer.

A background thread writes posted events, items and users to Parquet files.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.live.event_files import write_event_files
from ctxrec.live.row_files import RowFiles
from ctxrec.live.store import TABLES, HistoryStore, LoggedEvent, StoreError
from ctxrec.retrieval.no_effect import NO_FEEDBACK, notes_of_nothing, says_nothing
from serve.api import EventsRequest
from serve.item_sync import Every
from serve.service_metrics import Metrics

logger = logging.getLogger(__name__)

MAX_WARNINGS = 20  # of one call
_KEPT_ROUNDS = 10  # for which a file stays whose rows another one has
CheckContexts = Callable[[Sequence[dict]], None]


class Refused(UserError):
    """A posted event that the model cannot read; `place` is its number in the call."""

    def __init__(self, message: str, place: int, field: tuple[str | int, ...] = ()):
        super().__init__(message)
        self.place, self.field = place, field


def logged_events(body: EventsRequest) -> list[LoggedEvent]:
    """The posted events; those without a time happen now."""
    now = time.time()
    return [
        LoggedEvent(
            user_id=event.user_id,
            item_id=event.item_id,
            time_us=round((now if event.timestamp is None else event.timestamp) * US),
            action=None if says_nothing(event.action) else event.action,
            value=event.value,
            context={key: value for key, value in event.context.items() if value is not None},
        )
        for event in body.events
    ]


def saying_nothing(body: EventsRequest) -> list[dict[str, Any]]:
    """Actions and values of contexts that say nothing, each once, at its first event: `FieldWarning` of the API."""
    found: dict[str, dict[str, Any]] = {}
    for place, event in enumerate(body.events):
        action = {} if event.action is None else {"action": event.action}
        for note in (*notes_of_nothing(action), *notes_of_nothing(event.context, "context")):
            warning = {"loc": ["body", "events", place, *note.place], "msg": note.text, "type": note.kind}
            found.setdefault(note.text, warning)
    return list(found.values())


def without_effect(
    events: Sequence[LoggedEvent],
    *,
    actions: Collection[str],
    known_items: Container[str],
    values_count: bool = True,
    unknown_context: Callable[[Mapping[str, Any]], Iterable[str]] = lambda context: (),
) -> list[dict[str, Any]]:
    """What of stored events changes no recommendation: `FieldWarning` of the API, at most `MAX_WARNINGS`.

    Args:
        events: of one call, in its order.
        actions: those that the model knows.
        known_items: ids that the catalogue knows, removed ones too.
        values_count: whether the model reads values.
        unknown_context: names of the features of a context whose values the model does not know.
    """
    valid = f"expected one of {', '.join(sorted(actions))}" if actions else "its log has no actions"
    reasons = {
        "action": f"is no action that the model knows; {valid}. The event counts as one without an action until a model "
        "is trained that knows it",
        "value": f"of an event has no effect on recommendations, because {NO_FEEDBACK}; the events are stored with it",
        "item_id": "is not in the catalogue. The event is stored, and no recommendation reads it until the item is posted "
        "or a model is trained that knows it",
    }
    reasons["context"] = "is no value that the model knows; it counts as any other such value"
    first: dict[tuple[str, str, str], int] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for place, event in enumerate(events):
        unknown = [("item_id", "", event.item_id)] if event.item_id not in known_items else []
        unknown += [("action", "", event.action)] if event.action is not None and event.action not in actions else []
        unknown += [("value", "", "value")] if event.value is not None and not values_count else []
        unknown += [("context", name, str(event.context[name])) for name in unknown_context(event.context)]
        for found in unknown:
            first.setdefault(found, place)
            counts[found] += 1
    return [
        {
            "loc": ["body", "events", place, field, *([name] if name else [])],
            "msg": f"{value[:100]!r} ({count} event{'s' * (count > 1)}) {reasons[field]}",
            "type": _TYPES[field],
        }
        for (field, name, value), place in itertools.islice(first.items(), MAX_WARNINGS)
        for count in (counts[field, name, value],)
    ]


_TYPES = {"context": "unknown_value", "action": "unknown_action", "item_id": "unknown_item", "value": "value_not_read"}


class Journal:
    """Takes posted events.

    Args:
        store: where they go.
        check: raises a `UserError` for contexts that the model does not know.
    """

    def __init__(self, store: HistoryStore, check: CheckContexts):
        self._store = store
        self._check = check

    def append(self, posts: Sequence[Sequence[LoggedEvent]]) -> list[int | Exception]:
        """Store the events of several posts in one write; returns how many of each are on disk, or why they are not.

        A post with an invalid event is refused as a whole. Whatever goes wrong with a post does not affect the others.
        """
        results: list[int | Exception] = [self._judge(post) for post in posts]
        good = [n for n, result in enumerate(results) if isinstance(result, int)]
        try:
            if good:
                self._store.append([event for n in good for event in posts[n]])
        except StoreError as error:  # `StoreFailures` has logged it
            return [error if isinstance(result, int) else result for result in results]
        except Exception as error:
            if len(posts) == 1:
                logger.exception("posted events were not stored")
                return [error]
            for n in good:
                (results[n],) = self.append([posts[n]])
        return results

    def _judge(self, post: Sequence[LoggedEvent]) -> int | Exception:
        try:
            return self._check_post(post)
        except Exception as error:
            logger.exception("a post of events failed")
            return error

    def _check_post(self, post: Sequence[LoggedEvent]) -> int | Refused:
        try:
            self._check([event.context for event in post])
            return len(post)
        except UserError:
            for place, event in enumerate(post):
                try:
                    self._check([event.context])
                except UserError as error:
                    return Refused(str(error), place, error.field)
            raise


class FileWriter:
    """Writes posted events, items and users to Parquet files every so many seconds, and once more when it is stopped.

    Args:
        store: what was posted.
        events, items, users: folders, paths or URIs.
        spec: names of the columns of log, item file and user file.
        service: name of this service; its replicas share it.
        metrics: take what was not written, and what failed.
    """

    def __init__(
        self,
        store: HistoryStore,
        events: str,
        items: str,
        users: str,
        spec: DatasetSpec,
        *,
        every_s: float,
        service: str,
        metrics: Metrics,
    ):
        self._store, self._events, self._spec = store, events, spec
        folders, keep_s = {"items": items, "users": users}, _KEPT_ROUNDS * every_s
        self._rows = [RowFiles(store, t, folders[t], getattr(spec, t), keep_s=keep_s) for t in TABLES]
        self._service, self._metrics = service, metrics
        self._others: list[str] = []
        self._count()
        self._rounds = Every(every_s, self._write, "files of posted rows")

    def stop(self) -> None:
        self._rounds.stop()
        self._write()

    def _write(self) -> None:
        try:
            num = write_event_files(self._store, self._events, self._spec.events)
            if num:
                logger.info("%d events written to %s", num, self._events)
            for files in self._rows:
                files.write()
        except StoreError:  # `StoreFailures` has logged it
            self._metrics.export_failures.inc()
        except Exception:  # whatever it is, they are in the store, and the next round tries again
            self._metrics.export_failures.inc()
            logger.exception("files of posted rows could not be written; they will be tried again")
        self._count()

    def _count(self) -> None:
        """Tell how much is in the store alone, and whether another service shares the store."""
        try:
            self._metrics.events_not_exported.set(self._store.num_unwritten())
            others = self._store.other_services(self._service)
        except StoreError:
            return
        self._metrics.other_services.set(len(others))
        if others and others != self._others:
            logger.error(
                "another service uses the same store (%s): each posted event goes to the files of only one of them. "
                "Give each service its own store=",
                "; ".join(others),
            )
        self._others = others
