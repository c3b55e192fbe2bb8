"""Prequential evaluation: every test event is a request at its own time, and what came before it is known.

The model is the one that is served: its towers, its memory and the weights of its sources stand still, the history of the
user and the live sources move on (`ctxrec.memory.live_sources`, the same code as in the service). Baselines move too. The
protocol is that of Dawid ("Prequential analysis", 1984): predict, then learn, one event after another.

Legend: N requests, I items.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, Protocol

import numpy as np

from ctxrec.core import schema
from ctxrec.core.config import Config
from ctxrec.core.errors import UserError
from ctxrec.data.events import US, Histories, histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.replay import Stream, StreamParts, event_requests, in_order
from ctxrec.data.requests import Requests, concat_requests
from ctxrec.evaluation.baselines.moving import WINDOWS, MovingFollowers, MovingPopularity
from ctxrec.evaluation.baselines.selection import SPLITS
from ctxrec.evaluation.rank_requests import drop_targets
from ctxrec.evaluation.ranking_plan import SEED
from ctxrec.evaluation.stream_curves import curves
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.evaluation.systems import MODEL
from ctxrec.index.topk import top_k
from ctxrec.memory.live_counts import LIVE_COUNTS, LiveCounts
from ctxrec.memory.live_replay import Replayed, ReplayedSources
from ctxrec.memory.live_sources import LiveSources
from ctxrec.memory.scoring import score_all
from ctxrec.retrieval.recommender import Recommender

logger = logging.getLogger(__name__)

NO_LIVE, FOLLOWERS = "no_live", "followers_live"
_AT_ONCE = 64  # requests that are ranked together; each still knows what came before its own time
_SCORES_AT_ONCE = 1 << 24
_MOST_REQUESTS = 50_000  # of the split, at even distances; the events of all others pass by all the same


class Ranker(Protocol):
    """What ranks requests that are asked in the order of time."""

    def scores(self, requests: Requests) -> np.ndarray:
        """float [N, I], higher is better."""
        ...


class LiveModel:
    """The model with its live sources, which know of each request's past alone."""

    def __init__(self, model: Recommender, stream: Stream, delay_us: int) -> None:
        self._model, weights = model, model.live_weights
        self._live = None
        if weights is not None:
            params = dataclasses.replace(LIVE_COUNTS, half_lives_s=weights.half_lives_s)
            replayed = Replayed(stream, LiveCounts(len(model.vectors), params), delay_us=delay_us)
            self._live = ReplayedSources(replayed, LiveSources(replayed.counts, weights))

    def scores(self, requests: Requests) -> np.ndarray:
        """Scores of all items: float32 [N, I]."""
        self._model.live = self._live
        try:
            return score_all(self._model, requests)
        finally:
            self._model.live = None


def rank_stream(
    prepared: PreparedData,
    split: str,
    model: Recommender | None,
    *,
    eligible: np.ndarray,
    delay_s: float = 0.0,
    others: dict[str, Ranker] | None = None,
    k: int = 10,
) -> tuple[RankedLists, Requests, Stream, dict[str, float]]:
    """Lists of every request of a split by the model with and without live sources and by moving baselines.

    Args:
        prepared: the data.
        split: "valid" or "test".
        model: knows the events before the split alone; None: baselines alone.
        eligible: bool [I], items that may be recommended.
        delay_s: how late an event becomes known, in seconds: to the user's history and to all that moves.
        others: more rankers by name, such as the best possible ones.
        k: length of the lists.

    Returns:
        The lists, the requests in the order of time, the stream of events, and seconds by system.

    Raises:
        UserError: no event of the split has an item that may be recommended.
    """
    delay_us, num_items = round(delay_s * US), prepared.num_items
    requests, stream = _requests_and_stream(prepared, SPLITS[split], delay_us)
    requests = drop_targets(requests, eligible)
    if not len(requests):
        raise UserError(f"the data at {prepared.path} has no {split} event whose item may be recommended; expected one")
    systems: dict[str, Ranker] = {}
    if model is not None:
        systems |= {MODEL: LiveModel(model, stream, delay_us), NO_LIVE: model}
    systems |= {name: MovingPopularity(stream, num_items, window, delay_us) for name, window in WINDOWS.items()}
    systems |= {FOLLOWERS: MovingFollowers(stream, num_items, delay_us)} | (others or {})
    closed, seconds, tops = np.flatnonzero(~eligible), dict.fromkeys(systems, 0.0), {}
    step = max(1, min(_AT_ONCE, _SCORES_AT_ONCE // num_items))
    for name, system in systems.items():
        begin, lists = time.perf_counter(), []
        for start in range(0, len(requests), step):
            part = requests.take(np.arange(start, min(start + step, len(requests))))
            seen = [np.zeros(0, np.int64)] * len(part) if prepared.spec.split.repeats else part.seen()
            lists.append(top_k(system.scores(part), k, [np.concatenate([items, closed]) for items in seen]))
        tops[name], seconds[name] = np.concatenate(lists), time.perf_counter() - begin
        logger.info("%s: %s requests in %.1f s", name, f"{len(requests):,}", seconds[name])
    assert requests.target_offsets is not None and requests.target_items is not None
    ranked = RankedLists(
        user_ids=requests.users.ids,
        target_offsets=requests.target_offsets,
        target_items=requests.target_items,
        history_lengths=requests.history.lengths,
        tops=tops,
        target_actions=requests.target_actions,
        target_weights=requests.target_weights,
        actions=tuple(prepared.features.actions),
    )
    return ranked, requests, stream, seconds


def stream_metrics(
    prepared: PreparedData,
    split: str,
    model: Recommender | None,
    config: Config,
    *,
    eligible: np.ndarray,
    item_counts: np.ndarray,
    delay_s: float = 0.0,
    others: dict[str, Ranker] | None = None,
) -> dict[str, Any]:
    """What `metrics.json` of a stream holds: the keys of an evaluation, `delay_s`, `live` and `curves`.

    Args:
        prepared, split, model, eligible, delay_s, others: as in `rank_stream`.
        config: cut-offs and resamples of the section `evaluate`.
        item_counts: int64 [I], events of each item before the split.
    """
    begin, options = time.perf_counter(), config.evaluate
    lists, requests, stream, seconds = rank_stream(
        prepared, split, model, eligible=eligible, delay_s=delay_s, others=others, k=max(options.ks)
    )
    summary = summarise(
        lists, item_counts=item_counts, eligible=eligible, ks=options.ks, resamples=options.bootstrap, seed=SEED
    )
    weights = None if model is None else model.live_weights
    spread = (int(requests.times[-1]) - int(requests.times[0])) / US
    notes = [f"every {split} event is a request at its own time; events are known {delay_s:g} s later"]
    if len(lists) > 0.9 * _MOST_REQUESTS:
        notes.append(f"of very many requests about {_MOST_REQUESTS:,} are asked, at even distances")
    if weights is not None and split == "valid":
        notes.append(
            "validation split: the weights of the sources were fitted to these events; use the test split to judge"
        )
    if model is not None and weights is None:
        notes.append(
            "the model has no live sources, because they gained nothing on the replay of the validation events"
        )
    return {
        "split": split,
        "protocol": "stream",
        "delay_s": delay_s,
        "requests": len(lists),
        **summary,
        "live": {}
        if weights is None
        else dict(zip(weights.names, weights.typical[-len(weights.names) :].tolist(), strict=True)),
        "curves": curves(lists, requests, stream, item_counts),
        "notes": notes,
        "seconds": seconds | {"total": time.perf_counter() - begin, "of the log": spread},
    }


def _requests_and_stream(prepared: PreparedData, split: int, delay_us: int) -> tuple[Requests, Stream]:
    """Requests of a split in the order of time, at most `_MOST_REQUESTS`, and all events up to its end."""
    parts, events = [], StreamParts()
    share = -(-_MOST_REQUESTS // len(prepared.bucket_paths))
    for bucket in range(len(prepared.bucket_paths)):
        kinds = prepared.judging_kinds
        histories: Histories = histories_from_table(prepared.read_bucket(bucket), prepared.features, kinds)
        found = event_requests(histories, split, repeats=prepared.spec.split.repeats, delay_us=delay_us)
        parts.append(in_order(found).evenly(share))
        events.add(histories, until=split)
    return in_order(concat_requests(parts)), events.stream()


def item_counts_before(prepared: PreparedData, split: str) -> np.ndarray:
    """Events of each item before a split: int64 [I]."""
    counts = np.zeros(prepared.num_items, np.int64)
    for bucket in range(len(prepared.bucket_paths)):
        table = prepared.read_bucket(bucket, [schema.EVENT_ITEMS, schema.EVENT_SPLIT])
        items, splits = (
            table.column(name).combine_chunks().flatten().to_numpy()
            for name in (schema.EVENT_ITEMS, schema.EVENT_SPLIT)
        )
        counts += np.bincount(items[splits < SPLITS[split]], minlength=len(counts))
    return counts
