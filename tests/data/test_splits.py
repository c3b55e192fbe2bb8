import numpy as np
import pytest

from ctxrec.core.dataset_spec import SplitSpec
from ctxrec.core.schema import TEST, TRAIN, VALID
from ctxrec.data import splits


@pytest.mark.parametrize(
    ("events", "valid", "test", "ranks"),
    [(10, 0.1, 0.1, (8, 9)), (9, 0.1, 0.1, (9, 9)), (100, 0.29, 0.0, (71, 100)), (1, 0.1, 0.1, (1, 1))],
)
def test_ranks_of_the_cuts(events, valid, test, ranks):
    assert splits.cut_ranks(events, SplitSpec(valid=valid, test=test)) == ranks


def test_the_time_of_a_rank_is_found_through_its_hour():
    hours, counts = np.array([3, 7, 9]), np.array([2, 4, 1])
    assert splits.hour_of_rank(0, hours, counts) == (3, 0)
    assert splits.hour_of_rank(2, hours, counts) == (7, 0)
    assert splits.hour_of_rank(5, hours, counts) == (7, 3)
    assert splits.hour_of_rank(6, hours, counts) == (9, 0)
    times, at = np.array([100, 200]), np.array([3, 1])
    assert [splits.time_of_rank(r, times, at) for r in range(4)] == [100, 100, 100, 200]


def test_events_at_a_cut_go_to_the_later_part():
    parts = splits.temporal_split(np.array([1, 5, 6, 8, 9]), splits.Cuts(valid_from=5, test_from=8))
    assert parts.tolist() == [TRAIN, VALID, VALID, TEST, TEST]
    assert splits.temporal_split(np.array([1, 5]), splits.Cuts()).tolist() == [TRAIN, TRAIN]


def test_last_leaves_the_last_events_of_each_user_out():
    offsets = np.array([0, 3, 5, 5, 9])  # users with 3, 2, 0 and 4 events
    both = splits.last_split(offsets, SplitSpec(strategy="last"), min_events=3)
    assert both.tolist() == [TRAIN, VALID, TEST, TRAIN, TRAIN, TRAIN, TRAIN, VALID, TEST]
    test_only = splits.last_split(offsets, SplitSpec(strategy="last", valid=0), min_events=3)
    assert test_only.tolist() == [TRAIN, TRAIN, TEST, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TEST]
    valid_only = splits.last_split(offsets, SplitSpec(strategy="last", test=0), min_events=3)
    assert valid_only.tolist() == [TRAIN, TRAIN, VALID, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, VALID]
    nothing = splits.last_split(offsets, SplitSpec(strategy="last", test=0, valid=0), min_events=3)
    assert nothing.tolist() == [TRAIN] * 9


def test_the_cold_hold_out_is_a_stable_share_of_ids():
    ids = [f"item{n}" for n in range(5000)]
    held = splits.held_out_items(ids, 0.1)
    assert 0.08 < held.mean() < 0.12
    # A larger share keeps what a smaller one held out, and neither order nor other ids matter.
    assert (splits.held_out_items(ids, 0.3) >= held).all()
    assert (splits.held_out_items(ids[::-1], 0.1) == held[::-1]).all()
    assert (splits.held_out_items(ids[:10], 0.1) == held[:10]).all()
