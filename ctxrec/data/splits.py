"""Which events are for training, validation and test (numpy; see `SplitSpec`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core.dataset_spec import SplitSpec
from ctxrec.core.schema import TEST, TRAIN, VALID

NEVER = np.iinfo(np.int64).max  # a cut that no event reaches


@dataclass(frozen=True)
class Cuts:
    """Global cut times in microseconds: valid events lie in [valid_from, test_from), test events from test_from on."""

    valid_from: int = NEVER
    test_from: int = NEVER


def cut_ranks(num_events: int, split: SplitSpec) -> tuple[int, int]:
    """Ranks (0 = earliest) of the first valid and the first test event; num_events where there is none.

    >>> cut_ranks(10, SplitSpec(valid=0.1, test=0.2))
    (7, 8)
    """
    # In floating point 0.29 * 100 is slightly below the intended whole number.
    test = int(num_events * split.test + 1e-9)
    valid = int(num_events * split.valid + 1e-9)
    return num_events - test - valid, num_events - test


def hour_of_rank(rank: int, hours: np.ndarray, counts: np.ndarray) -> tuple[int, int]:
    """The hour that holds the event of a rank, and that event's rank inside the hour.

    Args:
        rank: from 0 to below counts.sum().
        hours: sorted hours since 1970.
        counts: events in each.
    """
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, rank, side="right"))
    return int(hours[place]), int(rank - (ends[place] - counts[place]))


def time_of_rank(rank: int, times: np.ndarray, counts: np.ndarray) -> int:
    """The time of the event of a rank among sorted distinct `times` with `counts` events each.

    Times are microseconds.
    """
    return int(times[np.searchsorted(np.cumsum(counts), rank, side="right")])


def temporal_split(times: np.ndarray, cuts: Cuts) -> np.ndarray:
    """The split of events by time; all events at exactly a cut go to the later part. int8 [E] Times are microseconds."""
    return np.where(times >= cuts.test_from, TEST, np.where(times >= cuts.valid_from, VALID, TRAIN)).astype(np.int8)


def last_split(offsets: np.ndarray, split: SplitSpec, *, min_events: int) -> np.ndarray:
    """Leave the last event of each user out for test, and the one before it for validation. int8 [E]

    Args:
        offsets: int64 [N + 1], the events of each user, oldest first.
        split: a part whose share is 0 gets no event; without test the last event is the validation event.
        min_events: users with fewer events train only.
    """
    parts = np.full(offsets[-1], TRAIN, np.int8)
    ends = offsets[1:][np.diff(offsets) >= min_events]
    if split.test > 0:
        parts[ends - 1] = TEST
        ends = ends - 1
    if split.valid > 0:
        parts[ends - 1] = VALID
    return parts


def held_out_items(item_ids: Sequence[str], share: float) -> np.ndarray:
    """Items of a cold hold-out: those whose id hashes into the share. The same ids every time. bool [I]

    >>> held_out_items(["a", "b", "c"], 1.0).tolist(), held_out_items(["a", "b", "c"], 0.0).tolist()
    ([True, True, True], [False, False, False])
    """
    places = (hashlib.blake2b(f"cold:{item}".encode(), digest_size=8).digest() for item in item_ids)
    place = np.fromiter((int.from_bytes(p, "little") for p in places), np.uint64, len(item_ids))
    return place.astype(np.float64) / 2.0**64 < share
