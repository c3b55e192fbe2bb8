"""Times that are no epoch numbers: dates, timestamps, and whole numbers such as 20240131, as microseconds since 1970.

Legend: N rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

US = 1_000_000  # microseconds a second
MAX_TIME_US = 7_258_118_400 * 1_000_000  # 2200-01-01; times from here on, and times before 1970, are rejected


def stamp_times(array: pa.Array) -> np.ndarray:
    """Dates and timestamps as int64 microseconds [N], 0 where null; those that would overflow become MAX_TIME_US or -1."""
    zone = getattr(array.type, "tz", None)
    seconds = array.cast(pa.timestamp("s", tz=zone), safe=False).cast(pa.int64())
    times = array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    late, early = pc.greater_equal(seconds, MAX_TIME_US // US), pc.less(seconds, -1)
    return pc.case_when(pc.make_struct(late, early), MAX_TIME_US, -1, times).fill_null(0).to_numpy(zero_copy_only=False)


def calendar_times(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers such as 20240131 as microseconds of the day's begin: int64 [N]; and which are such, bool [N]."""
    with np.errstate(invalid="ignore"):
        maybe = (numbers >= 19_700_101) & (numbers < 22_000_101) & (numbers == np.floor(numbers))
    digits = pd.Series(np.where(maybe, numbers, 0).astype(np.int64).astype(str), dtype=object)
    stamps = pd.to_datetime(digits.where(pd.Series(maybe)), format="%Y%m%d", utc=True, errors="coerce")
    micros = stamps.astype("datetime64[us, UTC]").astype("int64").to_numpy()
    known = stamps.notna().to_numpy()
    return np.where(known, micros, 0), known
