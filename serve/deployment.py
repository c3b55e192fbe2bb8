"""The Ray Serve deployment: HTTP routes, model and index together in each replica.

No `from __future__ import annotations` here: Serve pickles the class by value, with the names that its code
uses but without those that only text annotations use, and FastAPI needs these.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import ray
import ray.serve
from fastapi import Query
from starlette.exceptions import HTTPException

from ctxrec.errors import UserError
from serve.api import (
    AsciiJson,
    ErrorResponse,
    ItemsResponse,
    NumItems,
    RecommendRequest,
    make_app,
    user_error_response,
)
from serve.batching import MicroBatcher
from serve.engine import Answer, load_engine, use_threads

app = make_app()


@ray.serve.deployment
@ray.serve.ingress(app)
class Service:
    """One replica: loads the bundle, warms up, and only then takes requests.

    Args:
        run: run or bundle, path or URI.
        max_batch_size: requests that go through the model together, at most.
        max_waiting: requests that may wait in this replica; more are refused with 503.
    """

    def __init__(self, run: str, *, max_batch_size: int, max_waiting: int):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        # All computing happens in one thread of its own: the event loop stays free for health checks, and
        # batches do not compete for cores. Thread limits hold for the thread that sets them, hence the initializer.
        self._thread = ThreadPoolExecutor(1, "compute", initializer=use_threads, initargs=(max(1, int(cpus)),))
        self._engine = self._thread.submit(load_engine, run, max_batch_size).result()
        self._max_waiting = max_waiting
        self._waiting = 0
        self._batcher = MicroBatcher(self._engine.recommend, self._thread, max_size=max_batch_size)

    @app.post("/v1/recommend", response_model=ItemsResponse, summary="The best items for a user at this moment")
    async def recommend(self, body: RecommendRequest):
        if self._waiting >= self._max_waiting:
            raise HTTPException(503, "too many requests are waiting; try again later", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            answer = await self._batcher.submit(body)
        finally:
            self._waiting -= 1
        return user_error_response(answer) if isinstance(answer, UserError) else self._response(answer)

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=ItemsResponse,
        responses={404: {"model": ErrorResponse}},
        summary="The items most like one",
    )
    async def similar(self, item_id: str, k: Annotated[NumItems, Query()] = 10):
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.similar, item_id, k)
        if answer is None:
            raise HTTPException(404, f"item_id: the catalogue has no item {item_id[:100]!r}")
        return self._response(answer)

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Is the model loaded and warmed up?")
    async def readyz(self) -> dict[str, str]:
        # Ray Serve routes to a replica only after __init__, which loads the model and warms it up.
        return {"status": "ready", "model_version": self._engine.model_version}

    def _response(self, answer: Answer) -> AsciiJson:
        items = [{"item_id": i, "score": s} for i, s in zip(answer.item_ids, answer.scores, strict=True)]
        return AsciiJson({"items": items, "model_version": self._engine.model_version, "fallback": answer.fallback})
