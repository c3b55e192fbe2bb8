"""The Ray Serve deployment: HTTP routes, model and index together in each replica.

No `from __future__ import annotations` here: Serve pickles the class by value, with the names that its code
uses but without those that only text annotations use, and FastAPI needs these. Functions of this module would
not be found there either: helpers live in the modules it imports.
"""

import asyncio
import os
import time
from typing import Annotated, Any, cast

import ray
import ray.serve
from fastapi import Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.data.posted_rows import BadRow
from ctxrec.live.store import StoreError
from ctxrec.retrieval.bundle_texts import NoEncoder
from serve import browse, edge, trending
from serve.access_log import request_id
from serve.api import EventsRequest, Id, NewItems, NewUsers, NumItems, RecommendBatch, RecommendRequest
from serve.api_answers import (
    AcceptedResponse,
    BatchResponse,
    ErrorResponse,
    EventsResponse,
    ItemsResponse,
    StoredResponse,
)
from serve.arguments import AppArgs
from serve.direct import DirectServer
from serve.engine import answer_json
from serve.http import (
    Utf8Json,
    install_shortcuts,
    make_app,
    parse,
    parse_one_or_many,
    user_error,
    while_connected,
)
from serve.journal import MAX_WARNINGS, Refused, logged_events, saying_nothing
from serve.keys import READ, WRITE, Keys
from serve.replica import Replica
from serve.service_metrics import CONTENT_TYPE, Metrics
from serve.store_failures import store_unavailable

app = make_app()
app.include_router(browse.router)
app.include_router(trending.router)


@ray.serve.deployment
@ray.serve.ingress(app)
class Service:
    """The HTTP side of a replica: loads the bundle, warms up, and only then takes requests.

    Args:
        args: of the service, with resolved places.
        keys: scopes by the hash of an API key; without any, no key is asked for.
        metrics: name of the folder that the replicas of a machine share.
    """

    def __init__(self, args: AppArgs, keys: dict, metrics: str):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._keys = Keys(keys)
        self._metrics = Metrics(os.path.join(storage.temporary_folder(), metrics))
        self._edge = edge.install(args, self._keys, self._metrics)
        service = f"{args.run} in the cluster at {ray.get_runtime_context().gcs_address}"
        self._replica = Replica(args, self._metrics, num_threads=max(1, int(cpus)), service=service)
        browse.install(self._replica, self._keys, page=args.page)
        install_shortcuts({"/v1/recommend": self.recommend, "/v1/events": self.events})
        # Serve makes the class an ASGI application, which its own types do not say.
        app = cast(Any, self)
        self._direct = DirectServer(app, args.direct_host, args.direct_port, self._keys) if args.direct_port else None

    async def __del__(self) -> None:
        """Serve calls this when it stops a replica, after the last request."""
        direct: DirectServer | None = getattr(self, "_direct", None)
        if direct is not None:
            await direct.stop()
        if hasattr(self, "_replica"):
            self._replica.close()
            self._metrics.close()
            self._edge.close()

    @app.post(
        "/v1/recommend",
        response_model=ItemsResponse | BatchResponse,
        openapi_extra=app.body_of(RecommendRequest, RecommendBatch),
        summary="The best items for a user; or for many users, as a list of requests",
    )
    async def recommend(self, request: Request) -> Response:
        self._keys.check(request.headers, READ)
        self._replica.check_room()
        start = time.perf_counter()
        body = await parse_one_or_many(request, RecommendRequest, RecommendBatch, key="requests")
        many = isinstance(body, RecommendBatch)
        bodies = body.requests if isinstance(body, RecommendBatch) else [body]
        if many:
            edge.charge(request.scope, len(bodies))
        parsed = time.perf_counter()
        try:
            asked = self._replica.recommend(bodies, request_id(request.scope))
            reply = await while_connected(request.receive, asked)
        except UserError as error:
            return user_error(error, *(("requests",) if many else ()))
        answered = time.perf_counter()
        answers = []
        for place, answer in enumerate(reply.answers):
            if isinstance(answer, UserError):
                return user_error(answer, *(("requests", place) if many else ()))
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer_json(answer, *(("requests", place) if many else ())))
        response = Utf8Json({"responses": answers} if many else answers[0])
        wait = max(answered - parsed - sum(reply.seconds.values()), 0)
        own = {"parse": parsed - start, "wait": wait, "serialise": time.perf_counter() - answered}
        self._replica.count(reply, own)
        return response

    @app.get(
        "/v1/items/{item_id:id}/similar",
        response_model=ItemsResponse,
        responses={404: {"model": ErrorResponse}},
        summary="The items most similar to one",
    )
    async def similar(self, request: Request, item_id: str, k: Annotated[NumItems, Query()] = 10) -> Response:
        self._keys.check(request.headers, READ)
        answer = await self._replica.similar(item_id, k)
        if answer is None:
            raise HTTPException(404, f"item_id: the catalogue has no item {item_id[:100]!r}")
        return Utf8Json(answer_json(answer))

    @app.post(
        "/v1/events",
        response_model=EventsResponse,
        openapi_extra=app.body_of(EventsRequest),
        summary="Store events; they are on disk before the answer, and the user's next recommendation reads them",
    )
    async def events(self, request: Request) -> Response:
        self._keys.check(request.headers, WRITE)
        self._replica.check_room()
        body = await parse(request, EventsRequest)
        events = logged_events(body)
        result = await self._replica.append(events)
        if isinstance(result, Refused):
            return user_error(result, "events", result.place, "context")
        if isinstance(result, Exception) and not isinstance(result, StoreError):
            raise result
        if isinstance(result, StoreError):
            raise store_unavailable(result, "the events")
        warnings = [*saying_nothing(body), *self._replica.without_effect(events)][:MAX_WARNINGS]
        return Utf8Json({"accepted": result, "warnings": warnings} if warnings else {"accepted": result})

    @app.post(
        "/v1/items",
        response_model=AcceptedResponse,
        openapi_extra=app.body_of(NewItems),
        summary="Add or change items; they are searchable when the call returns",
    )
    async def put_items(self, request: Request) -> Response:
        self._keys.check(request.headers, WRITE)
        body = await parse(request, NewItems)
        try:
            return Utf8Json({"accepted": await self._replica.put_items([item.row() for item in body.items])})
        except BadRow as error:
            return user_error(error, "items", error.place, error.column)
        except NoEncoder as error:
            raise HTTPException(503, f"the items may not be stored: {error}", headers={"Retry-After": "5"}) from None
        except StoreError as error:
            raise store_unavailable(error, "the items") from None

    @app.delete(
        "/v1/items/{item_id:id}",
        response_model=AcceptedResponse,
        responses={404: {"model": ErrorResponse}},
        summary="Remove an item from the catalogue; histories keep it",
    )
    async def remove_item(self, request: Request, item_id: str) -> Response:
        self._keys.check(request.headers, WRITE)
        try:
            if await self._replica.remove_item(item_id):
                return Utf8Json({"accepted": 1})
        except StoreError as error:
            raise store_unavailable(error, "the removal") from None
        raise HTTPException(404, f"item_id: the catalogue has no item {item_id[:100]!r}")

    @app.post(
        "/v1/users",
        response_model=StoredResponse,
        openapi_extra=app.body_of(NewUsers),
        summary="Store attributes of users; every later request of theirs reads them",
    )
    async def put_users(self, request: Request) -> Response:
        self._keys.check(request.headers, WRITE)
        body = await parse(request, NewUsers)
        try:
            rows = [user.row() for user in body.users]
            warnings = await self._replica.about_users(lambda users, retriever: users.put(rows, retriever))
        except BadRow as error:
            return user_error(error, "users", error.place, error.column)
        except StoreError as error:
            raise store_unavailable(error, "the users") from None
        accepted = {"accepted": len(body.users)}
        return Utf8Json({**accepted, "warnings": warnings} if warnings else accepted)

    @app.delete(
        "/v1/users/{user_id:id}",
        response_model=AcceptedResponse,
        responses={404: {"model": ErrorResponse}},
        summary="Know no attribute of a user any more; the events stay",
    )
    async def remove_user(self, request: Request, user_id: Id) -> Response:
        self._keys.check(request.headers, WRITE)
        try:
            if await self._replica.about_users(lambda users, retriever: users.remove(user_id, retriever)):
                return Utf8Json({"accepted": 1})
        except StoreError as error:
            raise store_unavailable(error, "the removal") from None
        raise HTTPException(404, f"user_id: nothing is known of a user {user_id[:100]!r}")

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Is the model loaded and warmed up?")
    async def readyz(self) -> dict[str, str]:
        # Ray Serve routes to a replica only after __init__, which loads the model and warms it up.
        return {"status": "ready", "model_version": self._replica.model_version}

    @app.get("/metrics", summary="Counts and times for Prometheus, of all replicas of this machine")
    async def metrics(self, request: Request) -> Response:
        self._keys.check(request.headers, READ)
        text = await asyncio.get_running_loop().run_in_executor(None, self._metrics.render)
        return Response(text, media_type=CONTENT_TYPE)
