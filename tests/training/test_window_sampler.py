"""The training stream: the same global batches on any number of workers, resumable, every event once."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from bucket_files import write_data, write_shop

from ctxrec.core import schema
from ctxrec.data.batching import Batch
from ctxrec.data.log_statistics import scan_log
from ctxrec.training import window_sampler
from ctxrec.training.window_sampler import TrainStream

HISTORY = 6


@pytest.fixture(scope="module")
def shop(make_world, tmp_path_factory):
    """Three buckets (`write_shop`), a batcher, and the items of the training events."""
    data, worlds = write_shop(tmp_path_factory.mktemp("stream") / "data", make_world)
    training = [w.histories.events.items[w.histories.split == schema.TRAIN] for w in worlds]
    return data, worlds[0].batcher(worlds[0].config()), np.concatenate(training).tolist()


def make(
    shop, *, rank: int = 0, world: int = 1, size: int = 8, micro: int = 0, seed: int = 0, **options
) -> TrainStream:
    data, batcher, _ = shop
    log = scan_log(data, history=batcher.history)
    return TrainStream(
        data, log, batcher, global_batch_size=size, micro_batch_size=micro, seed=seed, rank=rank, world=world, **options
    )


def targets(batch: Batch) -> list[int]:
    return batch.targets_BS[batch.weights_BS != 0].tolist()


def per_step(made: TrainStream, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [sorted(t for b in step.micro_batches for t in targets(b)) for step in made.epoch(epoch, start=start)]


@pytest.fixture(params=["one shard", "many shards"])
def shards(request, monkeypatch) -> str:
    if request.param == "many shards":
        monkeypatch.setattr(window_sampler, "SHARD_EVENTS", 20)
    return request.param


@pytest.mark.parametrize("size", [1, 8, 64])
def test_every_training_event_weighs_once_an_epoch(shop, shards, size):
    made = make(shop, size=size)
    assert made.num_events == len(shop[2])
    for epoch in range(3):
        seen, weight, steps = Counter(), 0.0, 0
        for step in made.epoch(epoch):
            assert (step.epoch, step.step_in_epoch) == (epoch, steps)
            steps += 1
            for batch in step.micro_batches:
                seen.update(targets(batch))
                weight += float(batch.weights_BS.sum())
        assert seen == Counter(shop[2]) and weight == len(shop[2])
        assert steps == made.steps_per_epoch


def test_shards_follow_their_limit(shop, monkeypatch):
    monkeypatch.setattr(window_sampler, "SHARD_EVENTS", 20)
    assert len(make(shop)._shards(0)) > 1
    monkeypatch.setattr(window_sampler, "SHARD_EVENTS", 10**6)
    assert make(shop)._shards(0) == [[0, 1, 2]]


@pytest.mark.parametrize("micro", [0, 1, 3])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_share_the_batches_of_one(shop, shards, world, micro):
    alone = [make(shop, micro=m) for m in (0, 2)]
    workers = [make(shop, rank=rank, world=world, micro=micro) for rank in range(world)]
    assert {w.steps_per_epoch for w in workers} == {alone[0].steps_per_epoch}
    for epoch in range(2):
        expected = per_step(alone[0], epoch)
        assert per_step(alone[1], epoch) == expected, "micro-batches divide a step, nothing else"
        for number, steps in enumerate(zip(*(w.epoch(epoch) for w in workers), strict=True)):
            assert sorted(t for s in steps for b in s.micro_batches for t in targets(b)) == expected[number]
            assert {len(s.micro_batches) for s in steps} == {workers[0].accumulation}
            for batches in zip(*(s.micro_batches for s in steps), strict=True):
                assert len({len(b.lengths_B) for b in batches}) == 1, "the same number of rows on every worker"
            for micro_batch, several in enumerate(zip(*(s.asked for s in steps), strict=True)):
                for rank, asked in enumerate(several):  # every worker knows the positions of all workers
                    batch, mine = steps[rank].micro_batches[micro_batch], asked.rows_P % world == rank
                    row, _ = where = torch.nonzero(batch.weights_BS, as_tuple=True)
                    assert (asked.rows_P[mine] // world).tolist() == row.tolist()
                    assert asked.targets_P[mine].tolist() == batch.targets_BS[where].tolist()
                    assert asked.weights_P[mine].tolist() == batch.weights_BS[where].tolist()
                    assert asked.targets_P.tolist() == several[0].targets_P.tolist()
            for several in zip(*(s.distinct_items for s in steps), strict=True):
                assert all(np.array_equal(several[0], other) for other in several[1:])


def test_distinct_items_cover_what_is_read_and_asked_for(shop):
    for world in (1, 2):
        for rank in range(world):
            for step in make(shop, rank=rank, world=world, micro=2).epoch(0):
                for batch, distinct in zip(step.micro_batches, step.distinct_items, strict=True):
                    counted = (batch.weights_BS != 0).any(1)
                    read = [batch.items_BL[n, : batch.lengths_B[n]].tolist() for n in np.flatnonzero(counted)]
                    assert {i for row in read for i in row} | set(targets(batch)) <= set(distinct.tolist())


def test_a_short_last_batch_is_filled_without_weight(shop):
    made = make(shop, size=8, micro=2)
    steps = list(made.epoch(0))
    windows = sum(made.bucket_windows)
    assert windows % 8, "the last batch is short"
    counted = [sum(int((b.weights_BS != 0).any(1).sum()) for b in step.micro_batches) for step in steps]
    assert counted == [8] * (windows // 8) + [windows % 8]
    assert all(len(step.micro_batches) == 4 and all(len(b.lengths_B) for b in step.micro_batches) for step in steps)


def test_start_resumes_exactly(shop, shards):
    whole = make(shop)
    for epoch in range(2):
        expected = per_step(whole, epoch)
        for start in range(len(expected) + 1):
            assert per_step(make(shop), epoch, start) == expected[start:]
    numbers = [step.step_in_epoch for step in make(shop).epoch(1, start=2)]
    assert numbers == list(range(2, whole.steps_per_epoch))


def test_the_users_of_a_step_are_those_whose_items_it_has(shop, shards):
    """Items tell events apart, and the buckets' tables tell whose they are."""
    made, data, owner = make(shop, size=3), shop[0], {}
    for bucket in range(len(data.bucket_paths)):
        table = data.read_bucket(bucket)
        for user, items in zip(table[schema.USER_ID].to_pylist(), table[schema.EVENT_ITEMS].to_pylist(), strict=True):
            owner |= dict.fromkeys(items, user)
    for step in made.epoch(1):
        expected = {owner[t] for batch in step.micro_batches for t in targets(batch)}
        assert expected and set(made.users(1, step.step_in_epoch)) == expected
    with pytest.raises(IndexError):
        made.users(1, made.steps_per_epoch)


def test_order_depends_on_seed_and_epoch_alone(shop, shards):
    first = per_step(make(shop))
    assert per_step(make(shop)) == first
    assert per_step(make(shop), epoch=1) != first
    assert per_step(make(shop, seed=1)) != first


def test_refit_on_validation_events(shop):
    data = shop[0]
    splits = [s for b in range(3) for row in data.read_bucket(b).column(schema.EVENT_SPLIT).to_pylist() for s in row]
    made = make(shop, last_split=schema.VALID)
    assert made.num_events == sum(s <= schema.VALID for s in splits) > len(shop[2])
    assert sum(map(len, per_step(made))) == made.num_events


def test_skew_costs_no_more_memory_than_its_events(make_world, tmp_path):
    """One user with a million events of 200 actions, half of them of one item; and some with few."""
    world = make_world(rich=False, lengths=(1_000_000, *([3] * 50)), num_items=200)
    features = dataclasses.replace(world.features, actions=[f"a{n}" for n in range(199)])  # and the unknown one
    events, rng = world.histories.events, np.random.default_rng(0)
    events.items[::2] = 0
    events.actions[:] = rng.integers(0, 200, len(events.actions))
    split = np.full(len(events.items), schema.TRAIN, np.int8)
    histories = dataclasses.replace(world.histories, split=split)
    world = dataclasses.replace(world, features=features, histories=histories)
    data = write_data(tmp_path / "data", [world], [split])
    made = make((data, world.batcher(world.config()), None), size=64)
    assert made.num_events == len(split) and sum(made.bucket_windows) < len(split)
    tracemalloc.start()
    steps = made.epoch(0)
    shapes = {next(steps).micro_batches[0].items_BL.shape}
    assert tracemalloc.get_traced_memory()[1] < 200 * len(split), "bytes an event, while the shard is read"
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for step in itertools.islice(steps, 200):
        shapes.add(step.micro_batches[0].items_BL.shape)
        assert len(step.distinct_items[0]) <= 200
    assert tracemalloc.get_traced_memory()[1] - before < 2_000_000, "a step holds its own windows alone"
    tracemalloc.stop()
    assert shapes == {(64, world.config().model.history)}
