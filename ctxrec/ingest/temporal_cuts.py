"""Between the passes: the cut times of a temporal split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data import splits
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.ray_map import map_in_order
from ctxrec.ingest.shard_files import HOUR_US, BlobIndex, read_times, repeated_times


def temporal_cuts(log: LogFacts, spec: DatasetSpec, buckets: int) -> splits.Cuts:
    """Cut times of the temporal split over the events that stay, which are the kept rows without later duplicates.

    Pass 1 counted the events of each hour, so only the times inside the hours of the cuts are read again.

    Args:
        log: what pass 1 found.
        spec: the data set.
        buckets: number of buckets in each shard file.

    Raises:
        UserError: no event is left before the first cut.
    """
    if not spec.split.valid and not spec.split.test:
        return splits.Cuts()
    repeated = _repeated_times(log, buckets)
    num_events = log.rows_kept - len(repeated)
    valid_rank, test_rank = splits.cut_ranks(num_events, spec.split)
    hours = np.array(sorted(log.hours), np.int64)
    counts = np.array([log.hours[h] for h in hours.tolist()], np.int64)
    counts -= np.bincount(np.searchsorted(hours, repeated // HOUR_US), minlength=len(hours))
    places = {rank: splits.hour_of_rank(rank, hours, counts) for rank in {valid_rank, test_rank} if rank < num_events}
    found = _times_in_hours(log, sorted({hour for hour, _ in places.values()}), repeated)
    times = {rank: splits.time_of_rank(inside, *found[hour]) for rank, (hour, inside) in places.items()}
    cuts = splits.Cuts(valid_from=times.get(valid_rank, splits.NEVER), test_from=times.get(test_rank, splits.NEVER))
    if len(hours) and cuts.valid_from <= _first_time(hours[0], found):
        raise UserError(
            f"the temporal split leaves no event to train on: all {num_events} events up to the first cut have the "
            'same time. Set strategy = "last" in [split], or valid = 0 and test = 0'
        )
    return cuts


def _first_time(hour: int, found: dict[int, tuple[np.ndarray, np.ndarray]]) -> int:
    """The earliest time of the log in microseconds; exact if a cut lies in its first hour, else the start of that hour."""
    return int(found[int(hour)][0][0]) if int(hour) in found else int(hour) * HOUR_US


def _repeated_times(log: LogFacts, buckets: int) -> np.ndarray:
    """Times of the log's later duplicates, int64."""
    inputs = [pa.table({"bucket": [bucket]}) for bucket in range(buckets)]
    found = [np.zeros(0, np.int64)]
    for batch in map_in_order(inputs, repeated_task, shared=ray.put(BlobIndex.of(log.shards, buckets=buckets))):
        found.append(batch.column("time").to_numpy())
    return np.concatenate(found)


def repeated_task(batch: pa.Table, shared: Any) -> Iterator[pa.Table]:
    """Ray Data task that finds the duplicates of a bucket."""
    blobs = ray.get(shared)
    for bucket in batch.column("bucket").to_pylist():
        yield pa.table({"time": repeated_times(blobs.places(bucket))})


def _times_in_hours(log: LogFacts, hours: list[int], repeated: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Distinct times of the log in each hour, and the number of events at each time without the `repeated` ones."""
    inputs = [
        pa.table({"path": [shard.path], "offsets": [shard.offsets]})
        for shard in log.shards
        if any(shard.first_hour <= hour <= shard.last_hour for hour in hours)
    ]
    held: dict[int, list[pa.Table]] = {hour: [] for hour in hours}
    for batch in map_in_order(inputs, times_task, hours=hours) if inputs and hours else ():
        for hour in hours:
            held[hour].append(batch.filter(pc.equal(pc.divide(batch.column("time"), HOUR_US), hour)))
    made = {}
    for hour, parts in held.items():
        table = pa.concat_tables(parts).group_by("time").aggregate([("events", "sum")]).sort_by("time")
        times = table.column("time").to_numpy()
        less = np.searchsorted(times, repeated[repeated // HOUR_US == hour])
        made[hour] = times, table.column("events_sum").to_numpy() - np.bincount(less, minlength=len(times))
    return made


def times_task(batch: pa.Table, hours: list[int]) -> Iterator[pa.Table]:
    """Ray Data task that reads the times inside the hours of the cuts."""
    for shard in batch.to_pylist():
        times = read_times(shard["path"], shard["offsets"])
        times, counts = np.unique(times[np.isin(times // HOUR_US, hours)], return_counts=True)
        yield pa.table({"time": pa.array(times, pa.int64()), "events": pa.array(counts, pa.int64())})
