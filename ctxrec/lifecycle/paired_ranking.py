"""The newest requests, ranked by the candidate and by the served version: the evidence for the gates.

Each version ranks its own catalogue in its own codes. Targets that a version does not know are misses of that version, as
they would be in the service. A request counts only if it lies after all that the served version was trained on.

Where times are those of a clock, every event is a request at its own time. Both versions then know what came before it: the
history of the user, and the live counts, where they have weights for them. It is the protocol of `ctxrec evaluate --stream`
(`ctxrec.evaluation.stream`), with its code. Otherwise each user makes one request.

Legend: N requests, I items of the new catalogue, K length of a list.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import histories_from_table, ranges
from ctxrec.data.prepared import PreparedData
from ctxrec.data.replay import Stream, StreamParts, event_requests, in_order
from ctxrec.data.requests import Requests, concat_requests, split_requests
from ctxrec.evaluation.offline import eligible_items
from ctxrec.evaluation.rank_requests import drop_targets
from ctxrec.evaluation.stream import LiveModel, Ranker
from ctxrec.index.topk import top_k
from ctxrec.lifecycle.other_version import in_codes_of, item_map
from ctxrec.retrieval.recommender import Recommender

K = 10  # length of the compared lists
_SCORES_AT_ONCE = 1 << 24  # scores in memory at a time (64 MB)
_TIMED = 40  # requests that are timed one by one


@dataclass(frozen=True)
class Ranked:
    """N requests with the lists of both versions, in positions of the new catalogue.

    Attributes:
        requests: with their targets, in the order of time.
        candidate, served: int64 [N, K]; -1 fills up. Items that the new catalogue lacks have numbers from I on.
        candidate_known, served_known: the same with the items of `known_I` alone: what both can rank, without new items
            that take the places of others.
        known_I: bool [I], items that the served version was trained on.
        known_N: bool [N], requests of users whom the served version knows.
        left_out: requests that do not lie after the training events of the served version.
        seconds: the fewest seconds to score a single request of 40, by version ("candidate", "served").
    """

    requests: Requests
    candidate: np.ndarray
    served: np.ndarray
    candidate_known: np.ndarray
    served_known: np.ndarray
    known_I: np.ndarray
    known_N: np.ndarray
    left_out: int
    seconds: dict[str, float]


def rank_both(data: PreparedData, candidate: Recommender, served: Recommender, *, most: int) -> Ranked | None:
    """Rank the test requests of new data by both versions; None without any request.

    Args:
        data: what the candidate was trained on.
        candidate: the new model.
        served: the model in service.
        most: requests that are ranked, at most; they are taken at even distances.
    """
    item_ids, split = data.items.column(schema.ITEM_ID).to_pylist(), data.spec.split
    maps = {"candidate": item_map(item_ids, candidate), "served": item_map(item_ids, served)}
    counts_I, parts, left_out, events = np.zeros(len(item_ids), np.int64), [], 0, StreamParts()
    requests_of = event_requests if data.features.clock else split_requests
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features, data.kinds)
        trained = histories.events.items[histories.split != schema.TEST]
        counts_I += np.bincount(trained, minlength=len(item_ids))
        events.add(histories)
        found = requests_of(histories, schema.TEST, repeats=split.repeats)
        if data.kinds.are_judged:  # versions are judged by what users liked
            assert found.target_weights is not None
            found = found.with_targets(found.target_weights > 0)
        new = untrained(found, served, temporal=split.strategy == "temporal")
        left_out += int((~new).sum())
        parts.append(in_order(found.take(np.flatnonzero(new))).evenly(-(-most // len(data.bucket_paths))))
    eligible = eligible_items(data, counts_I)
    requests = in_order(drop_targets(concat_requests(parts), eligible))
    if not len(requests):
        return None
    # By id in both cases: positions are an agreement between the files of one bundle, which may be broken.
    versions = {"candidate": candidate, "served": served}
    asked = {name: in_codes_of(v, requests, data.features, maps[name]) for name, v in versions.items()}
    known_I = _trained(served, maps["served"])
    open_I = {"candidate": eligible, "served": np.ones(len(item_ids), bool)}
    lists, stream = {}, events.stream()
    for name, version in versions.items():
        shut = [_closed(version, maps[name], open_I[name]), _closed(version, maps[name], open_I[name] & known_I)]
        shut[1] |= ~np.isin(np.arange(len(version.item_ids)), maps[name])  # items that the new catalogue lacks
        ranker = LiveModel(version, _in_their_items(stream, maps[name]), 0) if data.features.clock else version
        made = _lists(version, ranker, asked[name], shut)
        lists[name] = [_in_new_positions(top, maps[name], len(version.item_ids)) for top in made]
    return Ranked(
        requests=requests,
        candidate=lists["candidate"][0],
        served=lists["served"][0],
        candidate_known=lists["candidate"][1],
        served_known=lists["served"][1],
        known_I=known_I,
        known_N=np.array([user in served.user_row for user in requests.users.ids], bool),
        left_out=left_out,
        seconds=_timed({name: (version, asked[name]) for name, version in versions.items()}),
    )


def untrained(requests: Requests, served: Recommender, *, temporal: bool) -> np.ndarray:
    """Which requests lie after all that the served version was trained on: bool [N].

    Under a temporal split that is one time for all. Otherwise it is the last training event of the user.
    """
    histories = served.histories
    trained = histories.split != schema.TEST
    if temporal:
        last = histories.events.times[trained].max(initial=-1)
        return np.asarray(requests.times > last)
    events = histories.events
    of_row = np.repeat(np.arange(len(histories)), events.lengths)
    last_N = np.full(len(histories) + 1, -1, np.int64)  # the last place is for users that the version does not know
    np.maximum.at(last_N, of_row[trained], events.times[trained])
    rows = np.array([served.user_row.get(user, -1) for user in requests.users.ids], np.int64)
    return np.asarray(requests.times > last_N[rows])


def _trained(served: Recommender, items_I: np.ndarray) -> np.ndarray:
    events, trained = served.histories.events, served.histories.split != schema.TEST
    counts = np.bincount(events.items[trained], minlength=len(served.item_ids))
    return np.asarray((items_I >= 0) & (np.append(counts, 0)[items_I] > 0))


def _closed(version: Recommender, items_I: np.ndarray, open_I: np.ndarray) -> np.ndarray:
    """Items of a version's catalogue that may not be listed, by those of the new catalogue that may: bool [its items]."""
    closed = np.zeros(len(version.item_ids), bool)
    closed[items_I[~open_I & (items_I >= 0)]] = True
    return closed


def _in_their_items(stream: Stream, items_I: np.ndarray) -> Stream:
    """The events of items that a version knows, in its positions."""
    theirs = items_I[stream.items]
    return dataclasses.replace(stream, items=theirs).where(theirs >= 0)


def _lists(version: Recommender, ranker: Ranker, requests: Requests, closed: list[np.ndarray]) -> list[np.ndarray]:
    """The best items of each request as the service would list them, once for each mask of closed items:
    int64 [N, K] positions in the version's catalogue."""
    shut, parts = [np.flatnonzero(mask) for mask in closed], []
    for part in _pieces(requests, len(version.item_ids)):
        seen = [np.zeros(0, np.int32)] * len(part) if version.repeats else part.seen()
        scores = ranker.scores(part)
        parts.append([top_k(scores, K, [np.concatenate([items, more]) for items in seen]) for more in shut])
    return [np.concatenate(made) for made in zip(*parts, strict=True)]


def _pieces(requests: Requests, num_items: int) -> Iterator[Requests]:
    size = max(_SCORES_AT_ONCE // max(num_items, 1), 1)
    for start in range(0, len(requests), size):
        yield requests.take(np.arange(start, min(start + size, len(requests))))


def _in_new_positions(lists: np.ndarray, items_I: np.ndarray, num_theirs: int) -> np.ndarray:
    """Positions of the served catalogue as positions of the new one; items that it lacks get numbers of their own."""
    place = len(items_I) + np.arange(num_theirs + 1)
    place[-1] = -1
    there = np.flatnonzero(items_I >= 0)
    place[items_I[there]] = there
    return place[lists]


def _timed(versions: dict[str, tuple[Recommender, Requests]]) -> dict[str, float]:
    """The fewest seconds to score a single request, which other processes disturb least. The versions take turns."""
    taken: dict[str, list[float]] = {name: [] for name in versions}
    num = min(_TIMED, min(len(requests) for _, requests in versions.values()))
    singles = {name: requests.evenly(num) for name, (_, requests) in versions.items()}
    for n in range(num):
        for name, (version, _) in versions.items():
            one = singles[name].take(np.array([n]))
            begin = time.perf_counter()
            version.scores(one)
            taken[name].append(time.perf_counter() - begin)
    return {name: min(seconds) for name, seconds in taken.items()}


def on_targets(ranked: Ranked, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The requests that have a target of the mask `keep`, with these targets alone.

    Returns:
        Rows of the requests, int64 [n]; the offsets of their targets, int64 [n + 1]; and the targets, int32.
    """
    offsets, items = ranked.requests.target_offsets, ranked.requests.target_items
    assert offsets is not None and items is not None
    kept = np.concatenate([[0], np.cumsum(keep)])[offsets]
    rows = np.flatnonzero(np.diff(kept))
    index, new_offsets = ranges(kept[rows], kept[rows + 1])
    return rows, new_offsets, items[keep][index]
