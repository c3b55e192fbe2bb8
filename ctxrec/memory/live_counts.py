"""Counts of events that decay with time, for all items at several half-lives: what is popular at this moment.

The count of item i at half-life h and time t is the sum of 2^(-(t - t_e) / h) over its events e. It is kept by forward
decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward decay: a practical time decay model for streaming systems", ICDE
2009): an event adds 2^((t_e - L) / h) for a landmark L, so nothing changes as time passes, and a reader multiplies all
sums by one number, 2^(-(t - L) / h). An event that comes late counts as it would have counted in time. The landmark
moves before a sum could overflow.

A user counts once a day for an item (`once_a_day`), so that nobody makes an item popular alone.

Legend: H half-lives, I items, A items with recent events, E events.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ctxrec.data.events import US

_MOST_DOUBLINGS = 400.0  # of the shortest half-life between the landmark and an event; float64 holds 1023
DAY_US = 86_400 * US
_SPARE = 1024  # items by which the sums grow at least
_CHANGES = 4096  # additions whose items are remembered


@dataclass(frozen=True)
class LiveCountParams:
    """Tuned numbers of the live counts. The lab book is `tests/bench/RESULTS.md`.

    Attributes:
        half_lives_s: seconds in which a count halves. An hour, six hours, a day and a week, as the task was set; the
            weights that are fitted choose among them.
        least: an item whose largest count is below counts as one without recent events. No measurement supports it.
    """

    half_lives_s: tuple[float, ...] = (3_600.0, 21_600.0, 86_400.0, 604_800.0)
    least: float = 0.02


LIVE_COUNTS = LiveCountParams()


def once_a_day(users: np.ndarray, items: np.ndarray, times_us: np.ndarray) -> np.ndarray:
    """The first event of each user with each item on each day (UTC): bool [E].

    Args:
        users, items: int [E] numbers of the users and positions of the items.
        times_us: int64 [E] microseconds.
    """
    days = times_us // DAY_US
    order = np.lexsort((times_us, days, items, users))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.any([np.diff(key[order]) != 0 for key in (users, items, days)], axis=0)
    found = np.zeros(len(order), bool)
    found[order[is_first]] = True
    return found


class LiveCounts:
    """Decayed counts of all items; an event takes constant time.

    Args:
        num_items: size of the catalogue; it grows with the items of later events.
        params: tuned numbers.

    Attributes:
        newest_us: time of the latest event, microseconds; None before the first one.
        version: a number that differs after every change.
    """

    def __init__(self, num_items: int, params: LiveCountParams = LIVE_COUNTS) -> None:
        self.params = params
        self.newest_us: int | None = None
        self.version = 0
        self._halves_us = np.array(params.half_lives_s) * US  # [H]
        self._sums_HI = np.zeros((len(self._halves_us), num_items))
        self._landmark_us = 0
        self._changes: deque[np.ndarray] = deque(maxlen=_CHANGES)  # items of the latest additions, oldest first

    @property
    def num_items(self) -> int:
        """Items that have room."""
        return self._sums_HI.shape[1]

    def add(self, items: np.ndarray, times_us: np.ndarray) -> None:
        """Count events, in any order of time.

        Args:
            items: int [E] positions.
            times_us: int64 [E] microseconds.
        """
        if not len(items):
            return
        self._make_room(int(items.max()) + 1)
        newest = int(times_us.max())
        if self.newest_us is None:
            self._landmark_us = newest
        self.newest_us = newest if self.newest_us is None else max(newest, self.newest_us)
        if self.newest_us - self._landmark_us > _MOST_DOUBLINGS * self._halves_us[0]:
            self._move_landmark(self.newest_us)
        weights_HE = np.exp2((times_us - self._landmark_us) / self._halves_us[:, None])
        if len(items) < 16:
            for e, item in enumerate(items.tolist()):
                self._sums_HI[:, item] += weights_HE[:, e]
        else:
            for h, weights in enumerate(weights_HE):
                self._sums_HI[h] += np.bincount(items, weights, minlength=self.num_items)
        self._changes.append(items)
        self.version += 1

    def counts(self, at_us: int) -> np.ndarray:
        """Counts of all items at a time, which is no earlier than the latest event: float64 [H, I]."""
        return self._sums_HI * self._factor_H(at_us)[:, None]

    def recent(self, at_us: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Items with recent events, int64 [A] in rising order, and their counts, float64 [H, A].

        Args:
            at_us: no earlier than the latest event.
            among: positions in rising order, the only items that are looked at; None: all.
        """
        factor_H = self._factor_H(at_us)
        # The longest half-life has the largest count, because each event decays the slowest in it.
        sums_I = self._sums_HI[-1] if among is None else self._sums_HI[-1, among]
        items = np.flatnonzero(sums_I * factor_H[-1] >= self.params.least)
        items = items if among is None else among[items]
        return items, self._sums_HI[:, items] * factor_H[:, None]

    def changed_since(self, version: int) -> np.ndarray | None:
        """Items with events that came after `version`, int64 [items], with repetitions; None where they are not remembered."""
        num = self.version - version
        if num > len(self._changes):
            return None
        latest = [self._changes[-n] for n in range(1, num + 1)]
        return np.concatenate([np.zeros(0, np.int64), *latest])

    def _factor_H(self, at_us: int) -> np.ndarray:
        at_us = at_us if self.newest_us is None else max(at_us, self.newest_us)
        return np.exp2(-(at_us - self._landmark_us) / self._halves_us)

    def _move_landmark(self, to_us: int) -> None:
        self._sums_HI *= np.exp2(-(to_us - self._landmark_us) / self._halves_us)[:, None]
        self._landmark_us = to_us

    def _make_room(self, num: int) -> None:
        if num > self.num_items:
            more = max(num - self.num_items, _SPARE)
            self._sums_HI = np.pad(self._sums_HI, ((0, 0), (0, more)))
