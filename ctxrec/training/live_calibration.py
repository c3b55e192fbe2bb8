"""The weights of the live sources, fitted to the validation events as they came, one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import histories_from_table
from ctxrec.data.log_statistics import BucketEvents
from ctxrec.data.replay import Stream, event_requests, in_order
from ctxrec.data.requests import Requests, concat_requests
from ctxrec.memory.blend import Blend
from ctxrec.memory.live_fit import LIVE_FIT, fit_live
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.memory.request_words import ReadTexts
from ctxrec.training.phase_setup import Setup

logger = logging.getLogger(__name__)

_BUCKETS = 16  # of users that are asked, at most; the events of all users count


def fit_live_weights(
    setup: Setup,
    blend: Blend,
    item_vectors_IW: np.ndarray,
    tower_queries: Callable[[Requests], np.ndarray],
    read_texts: ReadTexts | None,
) -> LiveWeights | None:
    """Weights of a blend with live sources; None where these gain nothing, or where nothing is known.

    Args:
        setup: what all phases share; on rank 0, which has the events.
        blend: knows the training events alone.
        item_vectors_IW: the towers' vectors of the catalogue.
        tower_queries: the towers' queries of requests, float32 [N, W].
        read_texts: vectors of the texts of contexts.
    """
    data = setup.log.data
    if not data.features.clock:
        logger.info("no live sources: the times of the log are positions, and no clock")
        return None
    requests = _replay_requests(setup)
    if requests is None:
        return None
    return fit_live(
        blend,
        item_vectors_IW,
        tower_queries,
        requests,
        stream_of(setup.log.scan.events, before=schema.TEST),
        repeats=data.spec.split.repeats,
        seed=setup.config.train.seed,
        read_texts=read_texts,
    )


def stream_of(buckets: tuple[BucketEvents, ...], *, before: int) -> Stream:
    """All events of earlier splits than `before` in the order of their times, without those of negative feedback by their
    values; users are numbered bucket by bucket."""
    users, items, times, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
    for bucket in buckets:
        part = bucket.before(before)
        part = part if part.grades is None else part.where(part.grades >= 0)
        lengths = np.diff(part.offsets)
        users.append(np.repeat(first + np.arange(len(lengths)), lengths))
        items.append(part.items)
        times.append(part.times)
        first += len(lengths)
    return Stream.of(np.concatenate(users), np.concatenate(items), np.concatenate(times))


def _replay_requests(setup: Setup) -> Requests | None:
    """Requests of the validation events of some users, in the order of time; None where there are none."""
    data, num = setup.log.data, len(setup.log.data.bucket_paths)
    buckets = np.unique(np.linspace(0, num - 1, min(num, _BUCKETS)).astype(int)).tolist()
    share, parts = -(-LIVE_FIT.requests // len(buckets)), []
    for bucket in buckets:
        kinds = data.judging_kinds
        histories = histories_from_table(data.read_bucket(bucket), data.features, kinds)
        found = event_requests(histories, schema.VALID, repeats=data.spec.split.repeats)
        if found.target_weights is not None:
            found = found.with_targets(found.target_weights > 0)
        if len(found):
            parts.append(in_order(found).evenly(share))
    return in_order(concat_requests(parts)) if parts else None
