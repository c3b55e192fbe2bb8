"""Posted events on their way to the live statistics of every replica."""

from __future__ import annotations

import os
import time

from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
from ctxrec.retrieval.live_statistics import LiveStatistics
from ctxrec.retrieval.load import load_recommender
from serve import live_feed
from serve.live_feed import LiveFeed

NOW_US = round(time.time() * 1e6)


def events(item: str, count: int) -> list[LoggedEvent]:
    """So many events of an item, each of a user of its own within the last second."""
    return [LoggedEvent(f"somebody {item} {n}", item, NOW_US - n) for n in range(count)]


def feed_of(run: str, folder: str) -> LiveFeed:
    """A replica's own feed, with a store of its own process's making."""
    return LiveFeed(LiveStatistics(load_recommender(f"{run}/bundle")), open_store(folder))


def trending(feed: LiveFeed) -> list[tuple[int, float]]:
    feed.pull()
    feed.take()
    positions, counts = feed.statistics.trending(3)
    return [(int(p), round(float(c), 3)) for p, c in zip(positions, counts, strict=True)]


def test_replicas_count_the_same_and_one_that_starts_later_does_too(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(live_feed, "_AT_ONCE", 7)  # several reads
    folder = str(tmp_path / "store")
    first, second = feed_of(tiny_run, folder), feed_of(tiny_run, folder)
    store = open_store(folder)
    store.append(events("i3", 30))
    assert trending(first)[0][1] == 30
    store.append(events("i5", 40) + events("i3", 30))  # the last ones are no new events
    assert trending(first) == trending(second) == trending(feed_of(tiny_run, folder))
    assert [count for _, count in trending(first)[:2]] == [40, 30]


def test_a_store_that_does_not_answer_loses_nothing(tiny_run, tmp_path):
    folder = tmp_path / "store"
    feed, store = feed_of(tiny_run, str(folder)), open_store(str(folder))
    store.append(events("i3", 30))
    os.rename(folder / "live.sqlite", folder / "moved")
    assert all(count < 30 for _, count in trending(feed)), "what the bundle has is still told"
    os.rename(folder / "moved", folder / "live.sqlite")
    assert trending(feed_of(tiny_run, str(folder)))[0][1] == 30
