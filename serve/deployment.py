"""The Ray Serve deployment: HTTP routes, model and index together in each replica.

No `from __future__ import annotations` here: Serve pickles the class by value, with the names that its code
uses but without those that only text annotations use, and FastAPI needs these. Functions of this module would
not be found there either: helpers live in the modules it imports.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated

import ray
import ray.serve
from fastapi import Query, Request
from starlette.exceptions import HTTPException

from ctxrec.errors import UserError
from ctxrec.events import US
from ctxrec.history_store import LoggedEvent, StoreError, open_store
from serve.api import (
    BatchResponse,
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    ItemsResponse,
    NumItems,
    RecommendBatch,
    RecommendRequest,
)
from serve.batching import MicroBatcher
from serve.engine import answer_json, load_engine, use_threads
from serve.http import AsciiJson, is_batch, make_app, parse, user_error
from serve.journal import FileWriter, Journal, Refused
from serve.options import AppArgs

EVENTS_AT_ONCE = 4096  # that go to the store in one write

app = make_app()


@ray.serve.deployment
@ray.serve.ingress(app)
class Service:
    """One replica: loads the bundle, warms up, and only then takes requests.

    Args:
        args: of the service, with resolved places.
    """

    def __init__(self, args: AppArgs):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        # All computing happens in one thread of its own: the event loop stays free for health checks, and
        # batches do not compete for cores. Thread limits hold for the thread that sets them, hence the initializer.
        self._thread = ThreadPoolExecutor(1, "compute", initializer=use_threads, initargs=(max(1, int(cpus)),))
        self._store = open_store(args.store, durable=args.store_durable)
        self._engine = self._thread.submit(load_engine, args.run, args.max_batch_size, self._store).result()
        self._max_waiting = args.max_waiting
        self._waiting = 0
        self._batcher = MicroBatcher(self._recommend_all, self._thread, max_size=args.max_batch_size, size=len)
        recommender = self._engine.retriever.recommender
        self._journal = Journal(self._store, lambda contexts: self._engine.check_contexts(contexts))
        self._writing = ThreadPoolExecutor(1, "store")
        self._events = MicroBatcher(self._journal.append, self._writing, max_size=EVENTS_AT_ONCE, size=len)
        self._files = FileWriter(
            self._store, args.event_files, recommender.spec.events, every_s=args.event_files_every_s
        )

    def __del__(self):
        """Serve calls this when it stops a replica, after the last request."""
        if hasattr(self, "_files"):
            self._files.stop()
            self._store.close()

    def _recommend_all(self, calls):
        return self._engine.recommend(calls)

    @app.post(
        "/v1/recommend",
        response_model=ItemsResponse | BatchResponse,
        openapi_extra=app.body_of(RecommendRequest, RecommendBatch),
        summary="The best items for a user at this moment; or for many, as a list of requests",
    )
    async def recommend(self, request: Request):
        many = await is_batch(request)
        body = await parse(request, RecommendBatch if many else RecommendRequest)
        with self._admitted():
            reply = await self._batcher.submit(body.requests if many else [body])
        for place, answer in enumerate(reply.answers):
            if isinstance(answer, UserError):
                return user_error(answer, *(("requests", place) if many else ()))
        answers = [answer_json(answer) for answer in reply.answers]
        return AsciiJson({"responses": answers} if many else answers[0])

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
        return AsciiJson(answer_json(answer))

    @app.post(
        "/v1/events",
        response_model=EventsResponse,
        openapi_extra=app.body_of(EventsRequest),
        summary="What users did; on disk before the answer, and known to their next recommendation",
    )
    async def events(self, request: Request):
        body = await parse(request, EventsRequest)
        now = time.time()
        events = [
            LoggedEvent(
                user_id=event.user_id,
                item_id=event.item_id,
                time_us=round((now if event.timestamp is None else event.timestamp) * US),
                action=event.action or None,
                value=event.value,
                context={key: value for key, value in event.context.items() if value is not None},
            )
            for event in body.events
        ]
        with self._admitted():
            result = await self._events.submit(events)
        if isinstance(result, Refused):
            return user_error(result, "events", result.place, "context")
        if isinstance(result, StoreError):
            detail = "the history store does not answer; the events may not be stored; try again"
            raise HTTPException(503, detail, headers={"Retry-After": "1"})
        return AsciiJson({"accepted": result})

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Is the model loaded and warmed up?")
    async def readyz(self) -> dict[str, str]:
        # Ray Serve routes to a replica only after __init__, which loads the model and warms it up.
        return {"status": "ready", "model_version": self._engine.model_version}

    @contextmanager
    def _admitted(self):
        """A place among the waiting requests, while there are any."""
        if self._waiting >= self._max_waiting:
            raise HTTPException(503, "too many requests are waiting; try again later", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
