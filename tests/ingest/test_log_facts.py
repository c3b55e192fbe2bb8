"""Facts of parts of the log add up to the facts of the whole log."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.ingest.log_facts import DistinctIds, LogFacts, NumberSums, ValueCounts
from ctxrec.ingest.ray_map import as_block, values_in
from ctxrec.ingest.shard_files import BlobIndex, ShardFile


def counts(**found: int) -> ValueCounts:
    return ValueCounts(pa.array(list(found), pa.large_string()), np.array(list(found.values()), np.int64))


def first() -> LogFacts:
    return LogFacts(
        rows_read=5,
        rows_kept=4,
        future=1,
        rejects=Counter({"missing user id": 1}),
        shards=[ShardFile("a", (0, 3, 7), 10, 11)],
        hours=Counter({10: 3, 11: 1}),
        numbers={"price": NumberSums(2, 3.0, 5.0, 1)},
        new_items=DistinctIds(pa.array(["x", "y"])),
        actions=counts(buy=1, view=3),
        categories={"device": counts(tv=4)},
    )


def second() -> LogFacts:
    return LogFacts(
        rows_read=3,
        rows_kept=2,
        rejects=Counter({"missing user id": 1, "malformed row": 1}),
        shards=[ShardFile("b", (0, 0, 2), 11, 12)],
        hours=Counter({11: 1, 12: 1}),
        numbers={"price": NumberSums(1, 1.0, 1.0, 0), "age": NumberSums(1, 2.0, 4.0, 0)},
        new_items=DistinctIds(pa.array(["z", "x"])),
        actions=counts(view=2),
        categories={"device": counts(phone=1, tv=1)},
    )


def test_parts_add_up():
    facts = LogFacts()
    facts.merge(first())
    facts.merge(second())
    assert (facts.rows_read, facts.rows_kept, facts.future, facts.mistake) == (8, 6, 1, "")
    assert facts.rejects == {"missing user id": 2, "malformed row": 1}
    assert [shard.path for shard in facts.shards] == ["a", "b"]
    assert facts.hours == {10: 3, 11: 2, 12: 1}
    assert facts.numbers == {"price": NumberSums(3, 4.0, 6.0, 1), "age": NumberSums(1, 2.0, 4.0, 0)}
    assert facts.new_items.array.to_pylist() == ["x", "y", "z"], "in order of first appearance"
    found = dict(zip(facts.actions.values.to_pylist(), facts.actions.counts.tolist(), strict=True))
    assert found == {"buy": 1, "view": 5}
    device = facts.categories["device"]
    assert dict(zip(device.values.to_pylist(), device.counts.tolist(), strict=True)) == {"tv": 5, "phone": 1}


def test_the_first_mistake_stays():
    facts = LogFacts(mistake="one")
    facts.merge(LogFacts(mistake="two"))
    facts.merge(LogFacts())
    assert facts.mistake == "one"


def test_facts_travel_as_blocks():
    (facts,) = values_in(as_block(first()))
    assert pickle.dumps(facts) == pickle.dumps(first())


def test_numbers_are_summed_on_the_log_scale():
    sums = NumberSums.of(np.array([np.e - 1, np.nan, 1 - np.e], np.float32), bad=1)
    assert (sums.count, sums.bad) == (2, 1)
    assert sums.total == pytest.approx(0, abs=1e-6) and sums.squares == pytest.approx(2)


def test_a_bucket_is_found_in_every_shard():
    index = BlobIndex.of([*first().shards, *second().shards], buckets=2)
    assert index.places(0) == [("a", 0, 3), ("b", 0, 0)] and index.places(1) == [("a", 3, 4), ("b", 0, 2)]
    assert BlobIndex.of([], buckets=2).places(1) == []


def test_distinct_ids_keep_the_order_of_their_first_appearance():
    """However the ids come in parts, the result is that of one call for all."""
    draw = np.random.default_rng(0)
    ids = [str(i) for i in draw.integers(0, 300, 2000)]
    for parts in (1, 7, 500):
        found = DistinctIds()
        for part in np.array_split(np.array(ids), parts):
            found.add(pa.array(part.tolist(), pa.string()))
        assert found.array.to_pylist() == list(dict.fromkeys(ids)) and len(found) == len(set(ids))


def test_the_work_for_distinct_ids_does_not_grow_with_the_square_of_the_parts():
    """Every id is looked at a few times, counted in ids and not in seconds."""
    looked = 0

    class Counting(DistinctIds):
        def _settle(self) -> None:
            nonlocal looked
            looked += len(self._ids) + self._num_waiting if self._waiting else 0
            super()._settle()

    found, parts, size = Counting(), 512, 10
    for n in range(parts):
        found.add(pa.array([str(i) for i in range(n * size, (n + 1) * size)], pa.string()))
    assert len(found) == parts * size
    assert looked <= 4 * parts * size
