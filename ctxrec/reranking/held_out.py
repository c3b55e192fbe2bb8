"""Training events that a retriever has not seen: the latest ones of each user are held out, and the rest is fitted anew.

A trained retriever knows its training events: the towers were trained on them, and the memory holds them. It finds their
targets too well, and a second stage that learns from its lists would trust its scores blindly. So the memory is fitted
once more on the events that are not held out, which takes seconds, and a model of memory, texts and popularity (as the
quick preset's) finds the candidates. It is weaker than a retriever with towers, and honest.

Legend: N requests, U users, E events, I items, C width of text vectors.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import Histories, histories_from_table
from ctxrec.data.log_statistics import BucketEvents
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests, concat_requests
from ctxrec.memory.blend import Blend
from ctxrec.memory.blend_fit import fit_blend
from ctxrec.memory.item_memory import fit_memory
from ctxrec.memory.request_words import ReadTexts
from ctxrec.memory.scoring import BlendScorer
from ctxrec.reranking.rerank_params import RERANK_TRAINING, RerankTrainingParams

logger = logging.getLogger(__name__)


def held_from(offsets: np.ndarray, split: np.ndarray, *, params: RerankTrainingParams = RERANK_TRAINING) -> np.ndarray:
    """Where the held-out events of each user begin and end, as positions among all events: int64 [U, 2].

    Args:
        offsets: int64 [U + 1], of the events of each user, whose splits follow time.
        split: int8 [E].
        params: tuned numbers.

    >>> held_from(np.array([0, 6, 7]), np.array([0, 0, 0, 0, 1, 2, 0])).tolist()
    [[3, 4], [7, 7]]
    """
    trained = np.concatenate([[0], np.cumsum(split == schema.TRAIN)])
    num = trained[offsets[1:]] - trained[offsets[:-1]]
    held = np.clip(np.round(num * params.held_share), 1, params.held_most).astype(np.int64)
    ends = offsets[:-1] + num
    return np.stack([ends - np.where(num >= 2, held, 0), ends], 1)


def held_out_requests(data: PreparedData, *, params: RerankTrainingParams = RERANK_TRAINING) -> Requests | None:
    """One request for each held-out event, whose only target it is; None where there is none.

    The history is all that the user did before. An event that is no target in training (by its action, or because the
    user had the item already) makes none.

    Args:
        data: the prepared log.
        params: tuned numbers; of more events than `num_requests` some are taken at even distances.
    """
    limit, parts = -(-params.num_requests // len(data.bucket_paths)), []
    for bucket in range(len(data.bucket_paths)):
        histories = histories_from_table(data.read_bucket(bucket), data.features, data.kinds)
        made = _requests(histories, data, limit, params)
        if len(made):
            parts.append(made)
    return concat_requests(parts).evenly(params.num_requests) if parts else None


def _requests(histories: Histories, data: PreparedData, limit: int, params: RerankTrainingParams) -> Requests:
    events = histories.events
    spans = held_from(events.offsets, histories.split, params=params)
    rows = np.repeat(np.arange(len(histories)), spans[:, 1] - spans[:, 0])
    places = np.concatenate([np.arange(*span) for span in spans]).astype(np.int64) if len(spans) else rows
    assert histories.weights is not None
    wanted = histories.weights[places] > 0
    rows, places = rows[wanted], places[wanted]
    if not data.spec.split.repeats:
        new = [events.items[p] not in events.items[events.offsets[r] : p] for r, p in zip(rows, places, strict=True)]
        rows, places = rows[np.array(new, bool)], places[np.array(new, bool)]
    if len(rows) > limit:
        some = np.linspace(0, len(rows) - 1, limit).astype(np.int64)
        rows, places = rows[some], places[some]
    return Requests(
        users=histories.users.take(rows),
        history=events.cut(events.offsets[rows], places),
        times=events.times[places],
        context=events.context.take(places),
        target_offsets=np.arange(len(rows) + 1, dtype=np.int64),
        target_items=events.items[places].astype(np.int32),
    )


def held_out_retriever(
    data: PreparedData,
    requests: Requests,
    text_IC: np.ndarray | None,
    read_texts: ReadTexts | None,
    *,
    seed: int,
    params: RerankTrainingParams = RERANK_TRAINING,
) -> BlendScorer:
    """A retriever of memory, texts and popularity that has seen no held-out event, no validation and no test event.

    Args:
        data: the prepared log.
        requests: `held_out_requests`; some of them fit the weights of its sources, two numbers each.
        text_IC: text vectors of the catalogue; None: there are none.
        read_texts: vectors of the words of requests; None: they have no effect.
        seed: of the draws of the fit.
        params: tuned numbers.
    """

    def seen(bucket: int) -> BucketEvents:
        events = BucketEvents.read(data, bucket)
        split = events.split.copy()
        for start, stop in held_from(events.offsets, events.split, params=params):
            split[start:stop] = schema.VALID
        return dataclasses.replace(events, split=split)

    repeats, buckets = data.spec.split.repeats, range(len(data.bucket_paths))
    parts = (seen(bucket).before(schema.VALID) for bucket in buckets)
    memory = fit_memory(parts, data.num_items, repeats=repeats, text_IC=text_IC, kinds=data.kinds)
    vectors, some = np.zeros((data.num_items, 0), np.float32), requests.evenly(params.fit_requests)
    blend = Blend.of(memory, text_IC, vectors, ())
    weights = fit_blend(
        blend, vectors, np.zeros((len(some), 0), np.float32), some, repeats=repeats, seed=seed, read_texts=read_texts
    )
    made = dataclasses.replace(blend, weights_2K=weights)
    return BlendScorer(lambda asked: np.zeros((len(asked), 0), np.float32), vectors, made, read_texts)
