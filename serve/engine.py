"""From checked HTTP bodies to answers, many at once; knows neither Ray nor HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import torch

from ctxrec.errors import UserError
from ctxrec.recommender import RawEvent, RawRequest
from ctxrec.retrieval import Retriever, load_retriever
from serve.api import RecommendRequest


@dataclass(frozen=True)
class Answer:
    """Items of one request, best first."""

    item_ids: list[str]
    scores: list[float]
    fallback: bool = False


class Engine:
    """Answers batches of requests with one pass through the model and the index."""

    def __init__(self, retriever: Retriever):
        self._retriever = retriever

    @property
    def model_version(self) -> str:
        return self._retriever.recommender.model_version

    def recommend(self, bodies: Sequence[RecommendRequest]) -> list[Answer | UserError]:
        """One answer for each body; a body the model refuses gets its own error and harms no other."""
        try:
            return list(self._recommend(bodies))
        except UserError as error:
            if len(bodies) == 1:
                return [error]
        return [self.recommend([body])[0] for body in bodies]

    def _recommend(self, bodies: Sequence[RecommendRequest]) -> list[Answer]:
        retriever = self._retriever
        requests, fallback = retriever.recommender.make_requests([_raw_request(body) for body in bodies])
        found = retriever.top_k(
            requests,
            max(body.k for body in bodies),
            exclude=[retriever.positions(body.exclude) for body in bodies],
            allowed=[retriever.compile_filter(body.filter) for body in bodies],
        )
        return [
            Answer(retriever.item_ids(positions[: body.k]), scores[: body.k].tolist(), bool(is_fallback))
            for body, (positions, scores), is_fallback in zip(bodies, found, fallback, strict=True)
        ]

    def similar(self, item_id: str, k: int) -> Answer | None:
        """The items most like one; None when the catalogue does not have it."""
        position = self._retriever.recommender.item_position.get(item_id)
        if position is None:
            return None
        positions, scores = self._retriever.similar(position, k)
        return Answer(self._retriever.item_ids(positions), scores.tolist())

    def warm_up(self, batch_size: int) -> None:
        """Run the whole path once alone and once with a full batch, so that no user waits for first-time work."""
        some_item = self._retriever.recommender.item_ids[0]
        body = RecommendRequest.model_validate({"history": [{"item_id": some_item}]})
        for size in (1, batch_size):
            for answer in self.recommend([body] * size):
                if isinstance(answer, UserError):
                    raise answer


def _raw_request(body: RecommendRequest) -> RawRequest:
    history = None
    if body.history is not None:
        history = [
            RawEvent(item_id=event.item_id, action=event.action, timestamp=event.timestamp, context=event.context)
            for event in body.history
        ]
    return RawRequest(
        user_id=body.user_id, timestamp=body.context.timestamp, context=body.context.features(), history=history
    )


def load_engine(run: str, batch_size: int) -> Engine:
    """The engine of a run or bundle, warmed up for batches of `batch_size`."""
    engine = Engine(load_retriever(run))
    engine.warm_up(batch_size)
    return engine


def use_threads(num_threads: int) -> None:
    """Limit torch and FAISS to `num_threads` in the thread that calls this (both keep the limit per thread)."""
    torch.set_num_threads(num_threads)
    faiss.omp_set_num_threads(num_threads)
