"""One read of each bucket says what a training asks of the log before its first step."""

from __future__ import annotations

import numpy as np
import pytest
from bucket_files import write_shop

from ctxrec.core import schema
from ctxrec.data.batching import make_windows
from ctxrec.data.log_statistics import BucketEvents, gather_statistics, scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import validation_requests

HISTORY = 6


@pytest.fixture(scope="module")
def shop(make_world, tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("scan") / "data", make_world)


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, list[str] | None]]:
    """Bucket and columns of each read."""
    found, read = [], PreparedData.read_bucket

    def counted(self, bucket, columns=None):
        found.append((bucket, columns))
        return read(self, bucket, columns)

    monkeypatch.setattr(PreparedData, "read_bucket", counted)
    return found


def test_each_bucket_is_read_once(shop, reads):
    data, _ = shop
    scan_log(data, history=HISTORY, num_validation_requests=5, keep_events=True)
    assert reads == [(0, None), (1, None), (2, None)]
    reads.clear()
    scan_log(data, history=HISTORY)
    assert [bucket for bucket, _ in reads] == [0, 1, 2]
    assert all(columns == [schema.EVENT_ITEMS, schema.EVENT_TIMES, schema.EVENT_SPLIT] for _, columns in reads)


@pytest.mark.parametrize("last_split", [schema.TRAIN, schema.VALID])
def test_events_windows_and_trained_items_of_each_part(shop, last_split):
    """Counted from the arrays that were written, row by row."""
    data, worlds = shop
    part = scan_log(data, history=HISTORY).up_to(last_split)
    trained = np.zeros(data.num_items, bool)
    for bucket, world in enumerate(worlds):
        events, split = world.histories.events, world.histories.split
        rows = [split[events.row(n)] <= last_split for n in range(len(world.histories))]
        lengths = np.array([int(row.sum()) for row in rows])
        starts = events.offsets[:-1]
        assert part.events_K[bucket] == lengths.sum()
        assert part.windows_K[bucket] == len(make_windows(starts, starts + lengths, HISTORY))
        trained[events.items[split <= last_split]] = True
    np.testing.assert_array_equal(part.trained_I, trained)
    assert part.events_K[2] == part.windows_K[2] == 0


@pytest.mark.parametrize("before", [schema.VALID, schema.TEST])
def test_statistics_of_kept_events_are_those_of_a_read_of_their_own(shop, before):
    data, _ = shop
    kept = scan_log(data, history=HISTORY, keep_events=True).training_events(before)
    again = [BucketEvents.of(data.read_bucket(bucket)).before(before) for bucket in range(len(data.bucket_paths))]
    found, expected = (gather_statistics(parts, data.num_items, steps=3) for parts in (kept, again))
    assert len(expected.items) > 0
    for name in ("item_counts", "times", "items"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("transitions", "users_items"):
        assert (getattr(found, name) != getattr(expected, name)).nnz == 0, name
    assert not list(scan_log(data, history=HISTORY).training_events(before)), "nothing is kept unless asked for"


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_validation_requests_are_those_of_a_read_of_their_own(shop, limit):
    data, _ = shop
    found = scan_log(data, history=HISTORY, num_validation_requests=limit).validation
    expected = validation_requests(data, limit)
    assert len(found) == len(expected) <= limit
    np.testing.assert_array_equal(found.users.ids, expected.users.ids)
    np.testing.assert_array_equal(found.history.items, expected.history.items)
    np.testing.assert_array_equal(found.target_items, expected.target_items)
    assert scan_log(data, history=HISTORY).validation is None
