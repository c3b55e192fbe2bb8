"""How far the clock of a time zone is ahead of UTC, and the instants of times that name no offset. Daylight saving counts.

Legend: N times.
"""

from __future__ import annotations

import datetime
import functools

import numpy as np

from ctxrec.core.time_zones import UTC, zone_of

US = 1_000_000  # microseconds a second
DAY = 86_400  # seconds
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Seconds between which every zone has an offset: the years 1 to 9999 without the days at both ends.
_FIRST, _LAST = -62_135_596_800 + 3 * DAY, 253_402_300_799 - 3 * DAY
_FEW = 1024  # times that are looked up one by one, in some 2 ms


def offsets(seconds: np.ndarray, zone: str) -> np.ndarray:
    """Seconds that the clock of a zone is ahead of UTC at seconds since 1970, UTC: int64 [N]."""
    if zone == UTC or not seconds.size:
        return np.zeros(seconds.shape, np.int64)
    if seconds.size <= _FEW:
        return np.array([_offset(zone, second) for second in seconds.ravel().tolist()], np.int64).reshape(seconds.shape)
    years = seconds.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64)
    first = int(years.min())
    there = np.unique(years - first) if np.ptp(years) > 1000 else np.flatnonzero(np.bincount(years.ravel() - first))
    parts = [_changes(zone, first + int(year)) for year in there]
    starts, ahead = (np.concatenate(column) for column in zip(*parts, strict=True))
    found: np.ndarray = ahead[np.searchsorted(starts, seconds, side="right") - 1]
    return found


def instants(local_us: np.ndarray, zone: str) -> np.ndarray:
    """Times on the clock of a zone as microseconds since 1970, UTC: int64 [N].

    A time that the clock shows twice, when it is put back, is the first of the two. A time that it skips, when it is put
    forward, is read as if it had not been put forward yet, as Python reads it.

    Args:
        local_us: int64 [N], microseconds from the beginning of 1970 as the clock shows it.
    """
    if zone == UTC:
        return local_us
    local = local_us // US
    before, after = offsets(local - DAY, zone), offsets(local + DAY, zone)
    ahead = before.copy()
    near = np.flatnonzero(before != after)  # the clock changes within a day of these
    early, late = local[near] - before[near], local[near] - after[near]
    is_late = (offsets(early, zone) != before[near]) & (offsets(late, zone) == after[near])
    ahead[near[is_late]] = after[near[is_late]]
    return local_us - ahead * US


@functools.lru_cache(maxsize=4096)  # zones times years; each takes some 300 bytes, and less than a millisecond to make
def _changes(zone: str, year: int) -> tuple[np.ndarray, np.ndarray]:
    """The seconds, UTC, from which a zone has another offset in a year since 1970, its begin first; and the offsets."""
    start, end = (int(np.datetime64(year + more, "Y").astype("datetime64[s]").astype(np.int64)) for more in (0, 1))
    starts, ahead = [start], [_offset(zone, start)]
    for day in range(start + DAY, end + DAY, DAY):
        there = _offset(zone, min(day, end - 1))
        if there != ahead[-1]:
            low, high = day - DAY, min(day, end - 1)  # the change lies in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == ahead[-1] else (low, middle)
            starts.append(high)
            ahead.append(there)
    return np.array(starts, np.int64), np.array(ahead, np.int64)


def _offset(zone: str, second: int) -> int:
    moment = _EPOCH + datetime.timedelta(seconds=min(max(second, _FIRST), _LAST))
    ahead = moment.astimezone(zone_of(zone)).utcoffset()
    assert ahead is not None
    return int(ahead.total_seconds())
