"""What is trending in a context, through the real HTTP app of a replica in process, and after its restart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import values
from starlette.testclient import TestClient

from serve import browse, edge, http, trending
from serve.arguments import AppArgs
from serve.deployment import Service
from serve.http import install_shortcuts, make_app
from serve.keys import Keys
from serve.replica import Replica
from serve.service_metrics import Metrics

MOBILE, TV, STRANGE = "i7", "i8", "i9"


@pytest.fixture
def start(tiny_run, tmp_path, monkeypatch) -> Iterator[Any]:
    """Starts a replica on the one store and gives a client of its app."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))  # what a process of its own would keep
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    metrics, replicas = Metrics(str(tmp_path / "metrics")), []
    args = AppArgs(run=tiny_run, store=str(tmp_path / "live"), load_encoder=False).resolved()

    def client() -> TestClient:
        replicas.append(Replica(args, metrics, num_threads=1))
        keys = Keys({})
        for module, name in ((edge, "_current"), (browse, "_state")):
            monkeypatch.setattr(module, name, None)
        monkeypatch.setattr(http, "_shortcuts", {})
        edge.install(args, keys, metrics)
        browse.install(replicas[-1], keys, page=False)
        service: Any = object.__new__(Service.func_or_class)
        service._keys, service._replica = keys, replicas[-1]
        install_shortcuts({"/v1/events": service.events})
        app = make_app()
        app.include_router(trending.router)
        return TestClient(app, base_url="http://127.0.0.1")

    yield client
    for replica in replicas:
        replica.close()
    metrics.close()


def posted(item: str, count: int, **context: Any) -> list[dict[str, Any]]:
    return [{"user_id": f"{item} {context} {n}", "item_id": item, "context": context} for n in range(count)]


def best(client: TestClient, context: dict[str, Any] | None = None, at_least: float = 0, **more: Any) -> dict[str, Any]:
    """The answer, once the best item has a count: a replica reads posted events within half a second."""
    params = {"k": 2, **({} if context is None else {"context": json.dumps(context)}), **more}
    for _ in range(200):
        answer = client.get("/v1/trending", params=params)
        assert answer.status_code == 200, answer.text
        if answer.json()["items"] and answer.json()["items"][0]["score"] >= at_least:
            break
        time.sleep(0.05)
    return answer.json()


def counts(answer: dict[str, Any]) -> dict[str, float]:
    return {item["item_id"]: item["score"] for item in answer["items"]}


def test_trending_by_context_counts_what_was_posted_in_it_also_after_a_restart(start):
    client = start()
    planted = posted(TV, 300, device="tv") + posted(MOBILE, 400, device="mobile") + posted(MOBILE, 90, device="tv")
    assert client.post("/v1/events", json={"events": planted}).json()["accepted"] == 790
    again = [{**event, "context": {"device": "mobile"}} for event in planted[:300]]  # the same users, the same day
    assert client.post("/v1/events", json={"events": again}).json()["accepted"] == 300
    for replica in (client, start()):  # the second one reads the store of the first one
        total, on_tv = counts(best(replica, at_least=490)), counts(best(replica, {"device": "tv"}, 300))
        assert list(total) == [MOBILE, TV] and 490 <= total[MOBILE] < 510
        assert list(on_tv) == [TV, MOBILE] and 300 <= on_tv[TV] < 310 and 90 <= on_tv[MOBILE] < 100
        assert next(iter(counts(best(replica, {"device": "mobile"}, 400)))) == MOBILE
        assert counts(best(replica, {"device": None}, 490)) == pytest.approx(total, rel=1e-4)
        assert "warnings" not in best(replica, {"device": "tv"})


def test_a_value_that_the_model_does_not_know_is_told_and_counts_as_such_values_do(start):
    client = start()
    client.post("/v1/events", json={"events": posted(STRANGE, 70, device="glasses") + posted(MOBILE, 90, device="tv")})
    answer = best(client, {"device": "ring"}, 70)
    assert next(iter(counts(answer))) == STRANGE and counts(answer).get(MOBILE, 0) < 5
    (warning,) = answer["warnings"]
    assert warning["loc"] == ["query", "context", "device"] and warning["type"] == "unknown_value"
    filtered = best(client, filter='{"category": ["no such group"]}', at_least=-1)
    assert filtered["items"] == [] and filtered["warnings"][0]["loc"] == ["query", "filter", "category", "any"]


MISTAKES = [
    ("context", '{"no_such": "tv"}', ["no_such"], "expected one of device"),
    ("context", '{"basket_value": 3}', ["basket_value"], "is no categorical feature of a context"),
    ("context", '{"timestamp": 3}', ["timestamp"], "expected one of device"),
    ("context", '{"device": ["tv"]}', ["device"], "expected a text"),
    ("context", "tv", [], "JSON"),
    ("filter", '{"no_such": ["x"]}', ["no_such"], "no_such"),
]


def test_a_mistake_is_named_where_it_is(start):
    client = start()
    for parameter, text, field, told in MISTAKES:
        answer = client.get("/v1/trending", params={parameter: text})
        assert answer.status_code == 422, answer.text
        (mistake,) = answer.json()["detail"]
        assert mistake["loc"] == ["query", parameter, *field] and told in mistake["msg"], mistake
    (mistake,) = client.get("/v1/trending?device=tv").json()["detail"]
    assert mistake["loc"] == ["query", "device"] and mistake["msg"].endswith("expected k, filter, context")
