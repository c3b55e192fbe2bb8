"""Windows by hand and at random; training and serving ask the same question; nothing leaks from the future."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.batching import Windows, make_windows
from ctxrec.data.events import Users
from ctxrec.data.features import gap_buckets
from ctxrec.data.feedback import EventKinds
from ctxrec.data.requests import Requests


def spans(windows: Windows) -> list[tuple[int, int, int, int]]:
    return list(zip(*(a.tolist() for a in (windows.row, windows.start, windows.first, windows.stop)), strict=True))


def test_windows_by_hand():
    # history 4: up to five events are one window; then windows of two targets, each after at least two events
    offsets, stops = np.array([0, 5, 5, 20]), np.array([5, 5, 14, 26])
    assert spans(make_windows(offsets, stops, 4)) == [
        (0, 0, 0, 5),
        (2, 5, 5, 10),
        (2, 7, 10, 12),
        (2, 9, 12, 14),
        (3, 20, 20, 25),
        (3, 21, 25, 26),
    ]


def test_no_events_make_no_window():
    assert len(make_windows(np.zeros(0, np.int64), np.zeros(0, np.int64), 4)) == 0
    assert len(make_windows(np.array([3]), np.array([3]), 4)) == 0


@pytest.mark.parametrize("history", [1, 2, 3, 7, 50])
def test_every_event_is_a_target_once_and_windows_fit(history):
    rng = np.random.default_rng(history)
    lengths = rng.integers(0, 4 * history + 5, 300)
    extra = rng.integers(0, 3, 300)  # events of later splits, behind the training events of a row
    offsets = np.concatenate([[0], np.cumsum(lengths + extra)])
    stops = offsets[:-1] + lengths
    windows = make_windows(offsets[:-1], stops, history)
    counts = np.zeros(offsets[-1], np.int64)
    for row, start, first, stop in spans(windows):
        assert offsets[row] <= start <= first < stop <= stops[row]
        assert stop - start <= history + 1
        if start > offsets[row]:
            assert first - start >= min(history, (history + 1) // 2), "a target has half of a full history before it"
        counts[first:stop] += 1
    expected = np.zeros(offsets[-1], np.int64)
    for start, stop in zip(offsets[:-1], stops, strict=True):
        expected[start:stop] = 1
    assert (counts == expected).all()


def test_an_event_without_action_is_a_target_only_where_no_action_has_a_weight(make_world):
    world = make_world()
    names = world.features.actions
    without = EventKinds.of(EventsSpec(path="log.parquet", action="action"), names, {})
    assert without.weights_A.tolist() == [1.0] * (len(names) + 1)
    weighted = EventKinds.of(EventsSpec(path="log.parquet", action="action", actions={names[0]: 0.5}), names, {})
    assert weighted.weights_A.tolist() == [0.0, 0.5] + [0.0] * (len(names) - 1)


def row_windows(world, row: int, history: int) -> tuple[Windows, int]:
    offsets = world.histories.events.offsets
    windows = make_windows(offsets[:-1], offsets[1:], history)
    return windows.take(np.flatnonzero(windows.row == row)), int(offsets[row])


def request_of(world, row: int, n: int) -> Requests:
    """What event n of a row was an answer to: the events before it, its time, its context."""
    events, start = world.histories.events, int(world.histories.events.offsets[row])
    at = np.array([start + n])
    return Requests(
        users=world.histories.users.take(np.array([row])),
        history=events.cut(np.array([start]), at),
        times=events.times[at],
        context=events.context.take(at),
    )


def test_a_training_batch_by_hand(make_world):
    world = make_world(lengths=(3, 8))
    events = world.histories.events
    batcher = world.batcher(world.config("model.history=4"))
    windows = make_windows(events.offsets[:-1], events.offsets[1:], 4)
    assert spans(windows) == [(0, 0, 0, 3), (1, 3, 3, 8), (1, 5, 8, 10), (1, 6, 10, 11)]
    batch = batcher.training(world.histories, windows)
    weight = {0: 0.0, 1: 0.5, 2: 1.0}
    for n, (row, start, first, stop) in enumerate(spans(windows)):
        read = stop - start - 1
        assert batch.lengths_B[n] == read
        assert batch.items_BL[n, :read].tolist() == events.items[start : stop - 1].tolist()
        assert batch.actions_BL[n, :read].tolist() == events.actions[start : stop - 1].tolist()
        assert batch.targets_BS[n, : read + 1].tolist() == events.items[start:stop].tolist()
        wanted = [weight[int(events.actions[p])] if p >= first else 0.0 for p in range(start, stop)]
        assert batch.weights_BS[n].tolist() == wanted + [0.0] * (4 - read)
        assert batch.cat_BS["device"][n, : read + 1].tolist() == events.context.cat["device"][start:stop].tolist()
        assert batch.user_cat_B["gender"][n] == world.histories.users.cat["gender"][row]
        before = [np.nan if p == events.offsets[row] else events.times[p - 1] / 1e6 for p in range(start, stop)]
        gaps = events.times[start:stop] / 1e6 - before
        assert batch.query_gaps_BS[n, : read + 1].tolist() == gap_buckets(gaps).tolist()
        for padded in (batch.items_BL[n, read:], batch.targets_BS[n, read + 1 :], batch.query_gaps_BS[n, read + 1 :]):
            assert not padded.any()


def queries(world, towers, items, batch, *, last: bool) -> np.ndarray:
    with torch.inference_mode():
        return towers(items, None, batch, last=last)[1].numpy()


@pytest.mark.parametrize("backbone", ["transformer", "gru", "lstm", "hstu"])
@pytest.mark.parametrize("rich", [True, False])
def test_training_and_serving_ask_the_same_query(make_world, backbone, rich):
    """Each slot of each window, with histories below, at and above `model.history`, against its request."""
    world = make_world(rich=rich, lengths=(9, 1, 5, 14, 7, 2, 8))
    config = world.config(f"model.backbone={backbone}")
    history, (towers, items), batcher = config.model.history, world.towers(config), world.batcher(config)
    assert max(world.histories.events.lengths) > 2 * history
    compared = []
    for row, length in enumerate(world.histories.events.lengths):
        windows, base = row_windows(world, row, history)
        batch = batcher.training(world.histories, windows)
        trained = queries(world, towers, items, batch, last=False)
        for w, (_, start, first, stop) in enumerate(spans(windows)):
            for position in range(first, stop):
                # A request reads the last `history` events; a slot inside a later window reads those of its window.
                full = start == base or position == stop - 1
                if not full:
                    continue
                request = batcher.requests(request_of(world, row, position - base))
                served = queries(world, towers, items, request, last=True)[0]
                np.testing.assert_allclose(trained[w, position - start], served, atol=1e-5)
                compared.append(position - base)
        assert length - 1 in compared
    assert {0, history - 1, history, history + 1} <= set(compared), "lengths around `model.history` were met"


def test_the_recommender_asks_it_too(make_world):
    """The whole serving path: raw request with the user's id, a moment and a context in words."""
    from ctxrec.retrieval.raw_request import RawRequest

    world = make_world(lengths=(9, 6, 7, 3))
    config = world.config()
    recommender = world.recommender(config)
    towers, items = world.towers(config)
    events, categories = world.histories.events, [None, "unheard of", "tv", "phone"]
    for row, length in enumerate(events.lengths):
        windows, base = row_windows(world, row, config.model.history)
        last = windows.take(np.array([len(windows) - 1]))
        trained = queries(world, towers, items, world.batcher(config).training(world.histories, last), last=True)[0]
        at = base + int(length) - 1
        context = {
            "device": categories[events.context.cat["device"][at]],
            "basket": float(events.context.num["basket"][at]),
            "query": events.context.text["query"][at],
        }
        raw = RawRequest(user_id=f"u{row}", timestamp=events.times[at] / 1e6, context=context)
        requests, fallback = recommender.make_requests([raw])
        assert requests.history.items.tolist() == events.items[base:at].tolist() and not fallback[0]
        np.testing.assert_allclose(recommender.queries(requests)[0], trained, atol=1e-5)


def test_a_later_event_changes_no_earlier_query(make_world):
    world = make_world(lengths=(7,))
    config = world.config()
    (towers, items), batcher = world.towers(config), world.batcher(config)
    windows, _ = row_windows(world, 0, config.model.history)
    before = queries(world, towers, items, batcher.training(world.histories, windows), last=False)[0]
    for changed in range(7):
        events = world.histories.events
        other = {"items": events.items.copy(), "times": events.times.copy(), "actions": events.actions.copy()}
        other["items"][changed] = (other["items"][changed] + 7) % 20
        other["actions"][changed] = (other["actions"][changed] + 1) % 3
        other["times"][changed:] += 86_400_000_000
        device = events.context.cat["device"].copy()
        device[changed] = (device[changed] + 1) % 4
        context = dataclasses.replace(events.context, cat={**events.context.cat, "device": device})
        moved = dataclasses.replace(world.histories, events=dataclasses.replace(events, context=context, **other))
        after = queries(world, towers, items, batcher.training(moved, windows), last=False)[0]
        np.testing.assert_array_equal(after[:changed], before[:changed])
        # Slot `changed` asks in the moved event's time and context; later ones have read the event.
        assert all(np.abs(after[s] - before[s]).max() > 1e-6 for s in range(changed, 7))
        only_item = dataclasses.replace(world.histories, events=dataclasses.replace(events, items=other["items"]))
        after = queries(world, towers, items, batcher.training(only_item, windows), last=False)[0]
        np.testing.assert_array_equal(after[: changed + 1], before[: changed + 1])


def test_requests_without_history_or_user(make_world):
    world = make_world(lengths=(0, 4))
    config = world.config()
    (towers, items), batcher = world.towers(config), world.batcher(config)
    both = Requests(
        users=Users(ids=np.array([None, "u1"], object), cat={"gender": np.zeros(2, np.int32)},
                    num={"age": np.full(2, np.nan, np.float32)}),
        history=world.histories.events,
        times=world.histories.events.times[[3, 3]],
        context=world.histories.events.context.take(np.array([0, 3])),
    )  # fmt: skip
    batch = batcher.requests(both)
    assert batch.lengths_B.tolist() == [0, 4] and batch.items_BL.shape == (2, 4)
    assert batch.query_gaps_BS[0].tolist() == [0] * 5
    together = queries(world, towers, items, batch, last=True)
    for n in range(2):
        alone = queries(world, towers, items, batcher.requests(both.take(np.array([n]))), last=True)
        np.testing.assert_allclose(together[n], alone[0], atol=1e-5)
