"""A client of the online service, for programs: `Client`, and `AsyncClient` whose methods are awaited.

    with Client("http://localhost:8000", key="...") as client:
        client.add_events([{"user_id": "196", "item_id": "242"}])
        for item in client.recommend("196", k=5, query="a comedy").items:
            print(item.item_id, item.score)

A call that finds no connection, or a service that is busy, is repeated with growing waits (and those that the
service asks for). That is safe: every call has the same effect once or many times.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx

logger = logging.getLogger(__name__)

_BUSY = (429, 502, 503, 504)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


class ApiError(Exception):
    """The service refused a call, and no retry is left or allowed. `detail` is what its answer says."""

    def __init__(self, status: int, detail: Any):
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


class NoService(httpx.TransportError):
    """No service answers at the address, and no retry is left. The message says what was tried, and how to start one."""


@dataclass(frozen=True)
class ScoredItem:
    """An item and its score; scores of one answer compare with each other only. Its probability, where it was asked for."""

    item_id: str
    score: float
    probability: float | None = None


@dataclass(frozen=True)
class Recommendations:
    """Items, best first. `fallback` is true when the service knew nothing of the user. `degraded` names the part of
    the service that did not answer, if any. `experiment` holds the names of the running A/B test and of the arm
    that answered. `warnings` are sentences that say what of the request had no effect."""

    items: tuple[ScoredItem, ...]
    model_version: str
    fallback: bool
    degraded: str | None = None
    experiment: tuple[str, str] | None = None
    warnings: tuple[str, ...] = ()

    @staticmethod
    def of(answer: Mapping[str, Any]) -> Recommendations:
        items = tuple(ScoredItem(item["item_id"], item["score"], item.get("probability")) for item in answer["items"])
        test = answer.get("experiment")
        return Recommendations(
            items,
            answer["model_version"],
            answer["fallback"],
            answer.get("degraded"),
            (test["name"], test["arm"]) if test else None,
            tuple(_told(warning) for warning in answer.get("warnings") or ()),
        )


@dataclass(frozen=True)
class _Call:
    method: str
    path: str
    read: Callable[[Any], Any]
    body: Any = None
    missing: Callable[[int], Any] | None = None  # what a 404 means, by the number of tries


def request(
    user_id: str | None = None,
    *,
    k: int = 10,
    context: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any] | str] | None = None,
    exclude: Sequence[str] = (),
    dislike: Sequence[str] = (),
    allow: Sequence[str] | None = None,
    filter: Mapping[str, Any] | None = None,
    diversity: float | None = None,
    user: Mapping[str, Any] | None = None,
    query: str | None = None,
    rerank: bool | None = None,
    probability: bool = False,
) -> dict[str, Any]:
    """The body of one request; `recommend_many` takes a list of these. The fields are described in
    serve/HTTP_API.md."""
    body: dict[str, Any] = {"k": k}
    given: dict[str, Any] = {
        "user_id": user_id,
        "context": context,
        "history": history,
        "allow": allow,
        "filter": filter,
    }
    given |= {
        "user": user,
        "diversity": diversity,
        "query": query,
        "rerank": rerank,
        "probability": probability or None,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    lists = {"exclude": list(exclude), "dislike": list(dislike)}
    return body | {name: items for name, items in lists.items() if items}


def _accepted(answer: Any) -> int:
    for warning in answer.get("warnings", ()):
        logger.warning("%s", _told(warning))
    return int(answer["accepted"])


def _in_path(id_: str) -> str:
    """An id as one piece of a path; one of dots alone would be a step in a folder."""
    return quote(id_, safe="") if id_.strip(".") else id_.replace(".", "%2E")


def _told(warning: Mapping[str, Any]) -> str:
    """A warning of an answer as a sentence: the field, and why it has no effect."""
    return f"{'.'.join(map(str, warning['loc'][1:]))}: {warning['msg']}"


class _Methods:
    """The calls of the API. `_send` is what differs: `Client` returns the result of a call, `AsyncClient` an
    awaitable of it."""

    def _send(self, call: _Call) -> Any:
        raise NotImplementedError

    def recommend(self, user_id: str | None = None, **fields: Any) -> Any:
        """`Recommendations` for a user, or for a `history`. `fields` are the arguments of `request`."""
        return self._send(_Call("POST", "/v1/recommend", Recommendations.of, request(user_id, **fields)))

    def recommend_many(self, requests: Sequence[Mapping[str, Any]]) -> Any:
        """A list of `Recommendations`, one for each request (`request`), by one version of the model."""

        def read(answer: Any) -> list[Recommendations]:
            return [Recommendations.of(response) for response in answer["responses"]]

        return self._send(_Call("POST", "/v1/recommend", read, {"requests": list(requests)}))

    def similar(self, item_id: str, k: int = 10) -> Any:
        """`Recommendations` of the items most like one."""
        return self._send(_Call("GET", f"/v1/items/{_in_path(item_id)}/similar?k={k}", Recommendations.of))

    def trending(
        self, k: int = 10, *, filter: Mapping[str, Any] | None = None, context: Mapping[str, Any] | None = None
    ) -> Any:
        """`Recommendations` of the items with the most users now, of those that pass the filter (rules by item column);
        with a context (values of categorical features) only users in that context count."""
        given = {name: json.dumps(part) for name, part in (("filter", filter), ("context", context)) if part}
        return self._send(_Call("GET", f"/v1/trending?{urlencode({'k': k, **given})}", Recommendations.of))

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> Any:
        """Store events on the service's disk; returns how many were stored. An event without a timestamp happens
        now.

        The log warns of actions and items that the service does not know, as these change no recommendation.
        """
        now = time.time()  # set here, so that a repeated call says the same
        events = [
            {**event, "timestamp": now if event.get("timestamp") is None else event["timestamp"]} for event in events
        ]
        return self._send(_Call("POST", "/v1/events", _accepted, {"events": events}))

    def put_items(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """Put items into the catalogue, where they can be found at once; returns how many there were."""
        return self._send(_Call("POST", "/v1/items", lambda answer: answer["accepted"], {"items": list(items)}))

    def remove_item(self, item_id: str) -> Any:
        """Take an item out of the catalogue; returns whether it was there."""
        # Gone at a later try: an earlier one may have done it, and its answer was lost.
        path = f"/v1/items/{_in_path(item_id)}"
        return self._send(_Call("DELETE", path, lambda answer: True, missing=lambda tries: tries > 1))

    def put_users(self, users: Sequence[Mapping[str, Any]]) -> Any:
        """Store attributes of users, by the columns of the user file; returns how many users there were. A row replaces what
        was known of the user.

        The log warns of values that the service does not know.
        """
        return self._send(_Call("POST", "/v1/users", _accepted, {"users": list(users)}))

    def remove_user(self, user_id: str) -> Any:
        """Let no attribute of a user be known any more; returns whether any was. The events of the user stay."""
        path = f"/v1/users/{_in_path(user_id)}"
        return self._send(_Call("DELETE", path, lambda answer: True, missing=lambda tries: tries > 1))

    def user(self, user_id: str) -> Any:
        """The attributes of a user that the service knows; None where it knows nothing of the user."""
        path = f"/v1/users/{_in_path(user_id)}"
        return self._send(_Call("GET", path, lambda answer: answer["attributes"], missing=lambda tries: None))

    def model_version(self) -> Any:
        """The version of the model that is served."""
        return self._send(_Call("GET", "/readyz", lambda answer: answer["model_version"]))


class Client(_Methods):
    """Calls the service and waits for its answer. Safe to share between threads.

    Args:
        url: where the service is, as `http://localhost:8000`.
        key: API key.
        timeout_s: of one try.
        retries: tries after the first one.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 10.0, retries: int = 4):
        self._http = httpx.Client(**_options(url, key, timeout_s))
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _send(self, call: _Call) -> Any:
        for tries in range(1, self._retries + 2):
            try:
                response = self._http.request(call.method, call.path, json=call.body)
            except httpx.TransportError as error:
                if tries > self._retries:
                    raise _no_service(self._http.base_url, tries, error) from error
                wait_s = _wait_s(tries)
            else:
                if response.status_code not in _BUSY or tries > self._retries:
                    return _read(call, response, tries)
                wait_s = _wait_s(tries, response)
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


class AsyncClient(_Methods):
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 10.0, retries: int = 4):
        self._http = httpx.AsyncClient(**_options(url, key, timeout_s))
        self._retries = retries

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, call: _Call) -> Any:
        for tries in range(1, self._retries + 2):
            try:
                response = await self._http.request(call.method, call.path, json=call.body)
            except httpx.TransportError as error:
                if tries > self._retries:
                    raise _no_service(self._http.base_url, tries, error) from error
                wait_s = _wait_s(tries)
            else:
                if response.status_code not in _BUSY or tries > self._retries:
                    return _read(call, response, tries)
                wait_s = _wait_s(tries, response)
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def _no_service(url: httpx.URL, tries: int, error: httpx.TransportError) -> NoService:
    """The last failure of a call in one line."""
    times = "once" if tries == 1 else f"{tries} times"
    if isinstance(error, httpx.ConnectError):
        found = f"no service answers at {url} (tried {times}: {error})"
        return NoService(f"{found}; start one with `serve run serve.app:build_app run=RUN`, or correct the address")
    told = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
    return NoService(
        f"the service at {url} gave no answer (tried {times}: {told}); look at its log, or raise timeout_s"
    )


def _options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    return {"base_url": url.rstrip("/"), "timeout": timeout_s, "headers": headers}


def _wait_s(tries: int, response: httpx.Response | None = None) -> float:
    """Seconds to wait before the next try. They double at each try, and a random part keeps clients from coming
    back together. Where the service asks for a longer wait, the client waits as long as that, within limits."""
    wait_s = min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
    asked = "" if response is None else response.headers.get("retry-after", "")
    return max(wait_s, min(float(asked), _LONGEST_WAIT_S)) if asked.isdigit() else wait_s


def _read(call: _Call, response: httpx.Response, tries: int) -> Any:
    if response.status_code == 404 and call.missing is not None:
        return call.missing(tries)
    try:
        answer = response.json()
    except ValueError:
        answer = {"detail": response.text[:200]}
    if not response.is_success:
        raise ApiError(response.status_code, answer.get("detail") if isinstance(answer, dict) else answer)
    return call.read(answer)
