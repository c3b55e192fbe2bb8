"""When users of a simulated log visit: sizes and starts of visits, and who makes them.

Users come in rounds. In each round every user who has joined makes one visit of one to eight events. Half of the users
are there from the start, and the others join over time.

Legend: V visits, N users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TEST_SHARE = 0.1  # of the events that the temporal split tests on; as many come before them for validation

HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 7, 6, 6, 7, 8, 7, 6, 6, 7, 8, 9, 10, 10, 9, 7, 4], float)  # busyness
START_S, SPAN_S = 1_704_067_200, 90 * 86_400  # ninety days from 1 January 2024
VISIT_MAX, VISIT_MEAN, VISIT_STEP_S = 8, 2.5, 20


@dataclass(frozen=True)
class Visits:
    """Visits in the order of their starts; small arrays, also for logs of 100 million events."""

    sizes: np.ndarray  # uint8 [V]

    @staticmethod
    def draw(num_events: int, rng: np.random.Generator) -> Visits:
        """Visits that have so many events together."""
        sizes = np.minimum(rng.geometric(1 / VISIT_MEAN, num_events), VISIT_MAX).astype(np.uint8)
        ends = np.cumsum(sizes, dtype=np.int64)
        num = int(np.searchsorted(ends, num_events)) + 1
        sizes = sizes[:num].copy()
        sizes[-1] -= int(ends[num - 1] - num_events)
        return Visits(sizes)

    def start_after(self, share: float) -> int:
        """The epoch second when the first `share` of the events is over, at the first moment of which a temporal cut
        there says "later"."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        num, num_events = len(ends), int(ends[-1])
        later = int(num_events * round(1 - share, 6))
        first = int(np.searchsorted(ends, num_events - later, side="right"))
        # Every event before the cut belongs to a visit before `first`, and all of those are over by then.
        start = visit_starts(np.array([min(first, num - 1)]), num)[0]
        return int(start) + VISIT_MAX * VISIT_STEP_S


def visit_starts(visits: np.ndarray, num_visits: int) -> np.ndarray:
    """When visits start: int64 [V], epoch seconds that never decrease.

    Days are equally busy, and the hours of a day are as busy as the simulation says.
    """
    days = visits / num_visits * (SPAN_S // 86_400)
    edges = np.concatenate([[0.0], np.cumsum(HOURS / HOURS.sum())])
    seconds = np.interp(days % 1.0, edges, np.arange(25) * 3600.0)
    return START_S + (np.floor(days) * 86_400 + seconds).astype(np.int64)


def draw_joining(num_users: int, rng: np.random.Generator) -> np.ndarray:
    """The share of all visits after which each user joins: float64 [N]."""
    joined = np.maximum(rng.uniform(-1, 1, num_users), 0)
    joined[0] = 0  # somebody must be there
    return joined


def visitors(joined_N: np.ndarray, num_visits: int, step: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Users of all visits, `step` visits at a time: int64 [step] each, the last one shorter.

    Args:
        joined_N: the share of all visits after which each user joins.
        num_visits: number of visits.
        step: visits at a time.
        rng: draws the order of a round.
    """
    by_joining = np.argsort(joined_N, kind="stable")
    joined = joined_N[by_joining]
    drawn, waiting = 0, [np.zeros(0, np.int64)]
    for start in range(0, num_visits, step):
        stop = min(start + step, num_visits)
        while drawn < stop:
            present = int(np.searchsorted(joined, drawn / num_visits, side="right"))
            waiting.append(rng.permutation(by_joining[:present]))
            drawn += present
        users = np.concatenate(waiting)
        yield users[: stop - start]
        waiting = [users[stop - start :]]
