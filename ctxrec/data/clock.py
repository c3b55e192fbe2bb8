"""Hour, weekday and month of times: the one place where they are derived, for logs and for requests.

Legend: N times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.time_zones import UTC
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.time_columns import MIN_EPOCH
from ctxrec.data.zone_offsets import DAY, US, offsets

POSITIONS_BELOW_US = DAY * US  # a log whose times all lie in the first day of 1970 holds positions, and no clock


@dataclass(frozen=True)
class Clock:
    """How hour, weekday and month derive from times, in preparation, training and requests alike.

    Attributes:
        zone: IANA name of the zone of the log.
        runs: whether the times are those of a clock. Where they are positions, hour, weekday and month are those of the
            beginning of 1970 for every time, so that they tell nothing.
    """

    zone: str = UTC
    runs: bool = True

    @staticmethod
    def of(spec: DatasetSpec, features: FeatureMeta) -> Clock:
        """The clock of a prepared log or of a bundle."""
        return Clock(spec.events.timezone, features.clock)

    def read(self, times_us: np.ndarray, zones: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        """Hour (0-23), weekday (0 = Monday) and month (1-12) of microsecond times; int8 each, of the shape of `times_us`.

        Args:
            times_us: int64, microseconds since 1970, UTC.
            zones: for each of N times a zone of its own, or None for that of the log; None: all have that of the log.

        >>> {k: int(v[0]) for k, v in Clock().read(np.array([0])).items()}  # Thursday, 1 January 1970
        {'hour': 0, 'weekday': 3, 'month': 1}
        """
        times_us = np.asarray(times_us, np.int64)
        if not self.runs:
            return _fields(np.zeros_like(times_us))
        seconds = times_us // US
        if zones is None or not any(zones):
            return _fields(seconds + offsets(seconds, self.zone))
        names = np.array([zone or self.zone for zone in zones], object)
        local = seconds.copy()
        for name in sorted(set(names)):
            here = names == name
            local[here] += offsets(seconds[here], name)
        return _fields(local)

    def codes(self, times_us: np.ndarray, zones: Sequence[str | None] | None = None) -> dict[str, np.ndarray]:
        """`read` as the codes that `ctxrec.data.events.Context.cat` holds: int32, each of the shape of `times_us`."""
        return {
            name: values.astype(np.int32) + schema.FIRST_CODE for name, values in self.read(times_us, zones).items()
        }


def _fields(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Hour, weekday and month of seconds since 1970 on the clock of a zone."""
    days = seconds // DAY
    months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return {
        "hour": (seconds // 3600 % 24).astype(np.int8),
        "weekday": ((days + 3) % 7).astype(np.int8),
        "month": (months % 12 + 1).astype(np.int8),
    }


def doubts_of_times(first_s: float, last_s: float, *, clock: bool) -> list[str]:
    """What a person should know of a log whose times are no dates: lines, none where they are dates.

    Args:
        first_s, last_s: the first and the last time, seconds since 1970.
        clock: whether hour, weekday and month derive from the times.
    """
    span = f"{first_s:,.6g} to {last_s:,.6g}"
    if not clock:
        return [
            f"times look like positions ({span}), not a clock: hour, weekday and month say nothing, and are left out"
        ]
    if last_s < MIN_EPOCH:
        return [
            f"times are small ({span}) and are read as seconds since 1970: if they are positions, hour, weekday and month "
            "say nothing; if they are seconds since another moment, these are shifted"
        ]
    return []
