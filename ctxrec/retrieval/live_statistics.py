"""What happens now, for a loaded model: events that come are counted, and every request and `trending` read the counts."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import US
from ctxrec.memory.live_contexts import LiveContexts
from ctxrec.memory.live_counts import DAY_US, LIVE_COUNTS, LiveCounts, once_a_day
from ctxrec.memory.live_sources import LiveSources
from ctxrec.retrieval.recommender import Recommender

_DAY_S = 86_400.0
_KEPT_HALVINGS = 8  # of the longest half-life: older events of the bundle no longer count
_MOST_UNKNOWN = 20_000  # events of items that the catalogue lacks, which wait for these
_MOST_COUNTED = 500_000  # latest posted events that are remembered as counted, about 50 MB


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that happened: `time_us` in microseconds since 1970, `codes` of its context by `LiveStatistics.codes`."""

    user_id: str
    item_id: str
    time_us: int
    action: str | None = None
    value: float | None = None
    codes: tuple[int, ...] = ()  # empty: nothing is known of the context


class LiveStatistics:
    """Counts the events of a bundle's log and those that come later, and gives the model its live sources.

    For one thread, as the model itself is. An item that the catalogue does not have counts as soon as it is there.

    Args:
        model: gets live scores if it was trained with weights for them.
    """

    def __init__(self, model: Recommender) -> None:
        self._model, weights = model, model.live_weights
        half_lives = LIVE_COUNTS.half_lives_s if weights is None else weights.half_lives_s
        self.counts = LiveCounts(len(model.catalogue), dataclasses.replace(LIVE_COUNTS, half_lives_s=half_lives))
        self._contexts = LiveContexts(len(model.features.context_categories))
        # The half-life next to a day, by which `trending` counts.
        self._day = int(np.argmin(np.abs(np.log(np.array(half_lives) / _DAY_S))))
        self._unknown: deque[Seen] = deque(maxlen=_MOST_UNKNOWN)
        self._counted: dict[int, None] = {}  # hashes of user, item and day, in the order in which they came
        self._version = model.catalogue.version
        self._kinds = model.kinds
        self._add_stored()
        if weights is not None:
            model.live = LiveSources(self.counts, weights)

    def codes(self, context: Mapping[str, Any]) -> tuple[int, ...]:
        """The codes of the context of an event; from any thread."""
        return self._model.contexts.codes_of_event(context)

    def add(self, events: Iterable[Seen], *, now_us: int) -> int:
        """Count events; returns how many counted.

        A user counts once a day (UTC) for an item, so that nobody makes it popular alone; the bundle's log counts as such
        events. Negative feedback does not count. An event later than now counts as one of now, so that a wrong clock cannot
        stop the clock of all.

        Args:
            events: in any order.
            now_us: the present time, microseconds.
        """
        waiting: Sequence[Seen] = list(events)
        if self._version != self._model.catalogue.version and self._unknown:
            waiting = [*self._unknown, *waiting]
            self._unknown.clear()
        self._version = self._model.catalogue.version
        items, times, codes = [], [], []
        unknown = (schema.MISSING,) * len(self._model.features.context_categories)
        for event in waiting:
            item = self._model.item_position.get(event.item_id)
            if item is None:
                self._unknown.append(event)
            elif not self._kinds.is_negative(event.action, event.value) and self._is_first(
                event, item, min(event.time_us, now_us)
            ):
                items.append(item)
                times.append(min(event.time_us, now_us))
                codes.append(event.codes or unknown)
        self._count(np.array(items, np.int64), np.array(times, np.int64), np.array(codes, np.int32))
        return len(items)

    def trending(
        self, k: int, allowed: np.ndarray | None = None, context: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the most users now: positions, int64, and counts, float32, best first.

        A user counts once a day for an item, and half where the latest event is a day later. There are fewer items where
        fewer have events. In a context the user counts whose first event of the day with the item was in it, out of the
        latest `ctxrec.memory.live_contexts.MOST_EVENTS` that count.

        Args:
            k: at least 1.
            allowed: bool [I], the items that may be named; None: all.
            context: values of categorical features of the log; users count whose context has all of them.

        Raises:
            UserError: a key of the context is no categorical feature, or a value is no single one.
        """
        wanted = self._model.contexts.codes_asked(context or {})
        newest, num = self.counts.newest_us, len(self._model.catalogue)
        counts = np.zeros(num)
        if newest is not None and wanted:
            half_life_us = self.counts.params.half_lives_s[self._day] * US
            counts = self._contexts.counts(wanted, newest, half_life_us, num)
        elif newest is not None:
            found = self.counts.counts(newest)[self._day, :num]
            counts[: len(found)] = found
        counts[~self._model.catalogue.alive] = 0
        if allowed is not None:
            counts[~allowed] = 0
        told = counts.astype(np.float32)  # what is long ago is 0 there
        best = np.argsort(-counts, kind="stable")[:k]
        best = best[told[best] > 0]
        return best.astype(np.int64), told[best]

    def _add_stored(self) -> None:
        """Count the last events of the bundle's log."""
        events = self._model.histories.events
        if not len(events.times):
            return
        longest_us = round(self.counts.params.half_lives_s[-1] * US)
        kept = np.flatnonzero(events.times > int(events.times.max()) - _KEPT_HALVINGS * longest_us)
        kept = kept[self._kinds.weights_A[events.actions[kept]] >= 0]
        rows = np.searchsorted(events.offsets, kept, side="right") - 1
        kept = kept[once_a_day(rows, events.items[kept], events.times[kept])]
        kept = kept[np.argsort(events.times[kept], kind="stable")]  # the latest ones stay
        cat = [events.context.cat[name][kept] for name in self._model.features.context_categories]
        codes = np.stack(cat, axis=1) if cat else np.zeros((len(kept), 0), np.int32)
        self._count(events.items[kept], events.times[kept], codes)

    def _count(self, items: np.ndarray, times_us: np.ndarray, codes: np.ndarray) -> None:
        """Count events that may count: positions and times, [E], and codes of their contexts, [E, features]."""
        if len(items):
            self.counts.add(items, times_us)
            self._contexts.add(items, times_us, codes)

    def _is_first(self, event: Seen, item: int, time_us: int) -> bool:
        """Whether the user has not counted for the item on that day yet; remembers it."""
        day = time_us // DAY_US
        key = hash((event.user_id, event.item_id, day))
        if key in self._counted or self._is_stored(event.user_id, item, day):
            return False
        self._counted[key] = None
        if len(self._counted) > _MOST_COUNTED:
            del self._counted[next(iter(self._counted))]
        return True

    def _is_stored(self, user_id: str, item: int, day: int) -> bool:
        """Whether the bundle's log has the item of the user on a day, whatever the action was."""
        row = self._model.user_row.get(user_id)
        if row is None:
            return False
        events = self._model.histories.events
        span = events.row(row)
        first, stop = np.searchsorted(events.times[span], (day * DAY_US, (day + 1) * DAY_US))
        return item in events.items[span.start + int(first) : span.start + int(stop)]
