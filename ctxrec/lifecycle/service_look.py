"""What the metrics of a running service say: one look, and what happened between two looks."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ctxrec.core.errors import UserError

ROUTE, EVENTS_ROUTE = "/v1/recommend", "/v1/events"
KEYS = "CTXREC_API_KEYS"  # environment variable with keys of the service, of which one may read its metrics
_TIMEOUT_S = 10.0
_TOTALS = ("answers", "errors", "seconds", "lists", "fallbacks", "posts", "events", "refused")


@dataclass(frozen=True)
class Look:
    """Counters of a service since its start, over all replicas of the machine that answered.

    Attributes:
        at: epoch seconds.
        answers: calls for recommendations that got an answer, whatever its status.
        errors: those of them with a status of 500 or above.
        seconds: time of all calls together.
        within: number of calls by the longest time that they may have taken, in seconds, as text ("0.01": 10 ms).
        lists: answers to users, of which a call may have several.
        fallbacks: answers to users of whom nothing was known.
        posts: calls that brought events and were accepted.
        events: events that were accepted.
        refused: published versions that a replica could not take over.
        replicas: number of replicas by the version that they serve.
        listed: first events of users after a list, by the version of the list: how many were of an item in the list, and
            how many there were.
        arms: answers of versions to users in an A/B test.
    """

    at: float
    answers: float = 0.0
    errors: float = 0.0
    seconds: float = 0.0
    lists: float = 0.0
    fallbacks: float = 0.0
    posts: float = 0.0
    events: float = 0.0
    refused: float = 0.0
    replicas: dict[str, float] = field(default_factory=dict)
    listed: dict[str, list[float]] = field(default_factory=dict)
    arms: dict[str, float] = field(default_factory=dict)
    within: dict[str, float] = field(default_factory=dict)

    def since(self, before: Look) -> Look:
        """What was counted since an earlier look. Where the service was restarted, its counters begin anew."""
        restarted = self.answers < before.answers or self.events < before.events
        if restarted:
            return self
        fewer = {name: getattr(self, name) - getattr(before, name) for name in _TOTALS}
        listed = {
            version: [now - was for now, was in zip(counts, before.listed.get(version, [0.0, 0.0]), strict=True)]
            for version, counts in self.listed.items()
        }
        arms = {version: count - before.arms.get(version, 0.0) for version, count in self.arms.items()}
        within = {bound: count - before.within.get(bound, 0.0) for bound, count in self.within.items()}
        return dataclasses.replace(self, listed=listed, arms=arms, within=within, **fewer)


def look(url: str) -> Look:
    """Read the metrics of a service.

    Args:
        url: of the service, such as "http://localhost:8000".

    Raises:
        UserError: the URL is no HTTP address, or the service wants a key, or what it answers are no metrics.
        ConnectionError: nobody answers, or the answer is an error of the service.
    """
    key = reading_key(os.environ.get(KEYS, ""))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(url.rstrip("/") + "/metrics", headers=headers, timeout=_TIMEOUT_S)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UserError(
            f"--watch is {url!r} ({error}); expected the address of a service, such as http://localhost:8000"
        ) from error
    except httpx.TransportError as error:
        raise ConnectionError(f"{url} does not answer: {error}") from error
    if response.status_code in (401, 403):
        raise UserError(f"{url}/metrics answers {response.status_code}; set {KEYS}=read@KEY to a key of the service")
    if response.status_code != 200:
        raise ConnectionError(f"{url}/metrics answers {response.status_code}")
    return parse(response.text, at=time.time())


def reading_key(keys: str) -> str:
    """The first of the service's keys that may read; "" without one. Hashes of keys are of no use here.

    >>> reading_key("write@a, sha256:00, read@b"), reading_key("")
    ('b', '')
    """
    for entry in re.split(r"[\s,]+", keys.strip()):
        scope, at, key = entry.partition("@")
        key = key if at else entry
        if key and not key.startswith("sha256:") and (not at or scope in ("read", "admin")):
            return key
    return ""


def parse(text: str, *, at: float) -> Look:
    """A look from the text of `/metrics`; `at` is in epoch seconds.

    Raises:
        UserError: the text has no metrics of ctxrec.
    """
    found: dict[str, float] = dict.fromkeys(_TOTALS, 0.0)
    replicas: dict[str, float] = {}
    arms: dict[str, float] = {}
    listed: dict[str, list[float]] = {}
    within: dict[str, float] = {}
    try:
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    except ValueError as error:
        raise UserError(
            f"the answer of /metrics is none of Prometheus' ({error}); expected a service of ctxrec"
        ) from error
    for sample in samples:
        labels, value = sample.labels, float(sample.value)
        if sample.name == "ctxrec_requests_total" and labels["route"] == ROUTE:
            found["answers"] += value
            found["errors"] += value * (labels["status"] >= "500")
        elif sample.name == "ctxrec_requests_total" and labels["route"] == EVENTS_ROUTE:
            found["posts"] += value * (labels["status"] < "300")
        elif sample.name == "ctxrec_request_seconds_sum" and labels["route"] == ROUTE:
            found["seconds"] += value
        elif sample.name == "ctxrec_request_seconds_bucket" and labels["route"] == ROUTE:
            within[labels["le"]] = within.get(labels["le"], 0.0) + value
        elif sample.name == "ctxrec_call_requests_sum":
            found["lists"] += value
        elif sample.name == "ctxrec_fallbacks_total":
            found["fallbacks"] += value
        elif sample.name == "ctxrec_events_total":
            found["events"] += value
        elif sample.name == "ctxrec_model_swaps_total" and labels["result"] == "refused":
            found["refused"] += value
        elif sample.name == "ctxrec_model_info" and value > 0:
            replicas[labels["version"]] = value
        elif sample.name == "ctxrec_arm_answers_total":
            arms[labels["version"]] = arms.get(labels["version"], 0.0) + value
        elif sample.name == "ctxrec_list_events_total":
            counts = listed.setdefault(labels["version"], [0.0, 0.0])
            counts[0] += value * (labels["listed"] == "yes")
            counts[1] += value
    if not replicas:
        raise UserError("the metrics name no model; expected a service of ctxrec that serves published models")
    assert all(math.isfinite(value) for value in found.values())
    return Look(at=at, **found, replicas=replicas, listed=listed, arms=arms, within=within)
