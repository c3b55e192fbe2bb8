"""What those who run the service see of it: commands, metrics, keys, overload."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from ctxrec.bundle.registry import find_bundle, read_published
from ctxrec.client import ApiError, AsyncClient, Client
from ctxrec.core.errors import UserError
from ctxrec.lifecycle.service_look import look


def test_the_python_clients_do_all_of_it(client):
    with Client(str(client.base_url)) as sync:
        assert sync.add_events([{"user_id": "pythonist", "item_id": "i3"}]) == 1
        found = sync.recommend("pythonist", k=4, exclude=["i4"], filter={"category": {"any": ["group0"]}})
        assert len(found.items) == 4 and not found.fallback and found.model_version == sync.model_version()
        assert sync.put_items([{"item_id": "a/b c", "title": "hat"}]) == 1
        assert len(sync.similar("a/b c", k=3).items) == 3
        now = sync.trending(1)
        assert len(now.items) == 1 and now.items[0].score > 0
        assert not sync.trending(5, filter={"category": {"none": [f"group{n}" for n in range(9)]}}).items
        assert sync.remove_item("a/b c") and not sync.remove_item("a/b c")
        with pytest.raises(ApiError) as caught:
            sync.recommend("pythonist", context={"weather": "rain"})
        assert caught.value.status == 422

    async def together() -> list:
        async with AsyncClient(str(client.base_url)) as others:
            return await asyncio.gather(*(others.recommend_many([{"user_id": f"u{n}"}] * 2) for n in range(5)))

    with ThreadPoolExecutor(1) as thread:
        answers = thread.submit(asyncio.run, together()).result()
    assert [[len(answer.items) for answer in pair] for pair in answers] == [[10, 10]] * 5


def test_metrics_tell_counts_and_where_the_time_goes(client):
    def read() -> dict[str, float]:
        lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = read()
    for _ in range(3):
        client.ask(user_id="nobody at all")
    client.refuses({"user_id": "u1", "k": 0})
    after = read()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('ctxrec_requests_total{route="/v1/recommend",status="200"}') == 3
    assert grown('ctxrec_requests_total{route="/v1/recommend",status="422"}') == 1
    assert grown("ctxrec_fallbacks_total") == 3
    stages = ("parse", "wait", "history", "filter", "tower", "memory", "search", "serialise")
    assert [grown(f'ctxrec_stage_seconds_count{{stage="{stage}"}}') for stage in stages] == [3] * len(stages)
    spent = sum(grown(f'ctxrec_stage_seconds_sum{{stage="{stage}"}}') for stage in stages)
    assert 0 < spent < grown('ctxrec_request_seconds_sum{route="/v1/recommend"}')
    assert after["ctxrec_events_total"] >= 1 and after["ctxrec_waiting"] == 0
    assert [value for name, value in after.items() if name.startswith("ctxrec_model_info")] == [1]


def test_keys_are_asked_for_and_overload_is_a_503_with_retry_after(tiny_run, client, tmp_path, monkeypatch):
    """A second application, with room for one request, and bursts of expensive ones until one is refused."""
    import ray.serve

    from serve.app import AppArgs, build_app

    args = AppArgs(
        run=tiny_run, cpus_per_replica=0.1, max_waiting=1, store=str(tmp_path), load_encoder=False, page=False
    )
    monkeypatch.setenv("CTXREC_API_KEYS", "first read@second read@ключ")
    ray.serve.run(build_app(args), name="small", route_prefix="/small")
    body = {"k": 1000, "history": [{"item_id": f"i{n % 40}", "context": {"device": "tv"}} for n in range(1000)]}

    async def burst() -> list[httpx.Response]:
        headers = {"Authorization": "Bearer second"}
        async with httpx.AsyncClient(base_url=client.base_url, timeout=client.timeout, headers=headers) as parallel:
            return await asyncio.gather(*(parallel.post("/small/v1/recommend", json=body) for _ in range(24)))

    responses: list[httpx.Response] = []
    try:
        check_keys(client)
        with ThreadPoolExecutor(1) as thread:
            for _ in range(20):
                responses += thread.submit(asyncio.run, burst()).result()
                if any(r.status_code == 503 for r in responses):
                    break
    finally:
        ray.serve.delete("small")
    counts = {status: sum(r.status_code == status for r in responses) for status in (200, 503)}
    assert counts[200] >= 1 and counts[503] >= 1 and sum(counts.values()) == len(responses)
    assert all(r.headers["retry-after"] == "1" for r in responses if r.status_code == 503)


def check_keys(client) -> None:
    """The routes of the application at /small know who may do what."""
    open_to_all = ("healthz", "readyz", "openapi.json", "docs")
    assert [client.get(f"/small/{path}").status_code for path in open_to_all] == [200] * 4
    calls = [
        ("GET", "/metrics", None), ("GET", "/v1/items/i1/similar", None), ("GET", "/v1/trending", None),
        ("POST", "/v1/recommend", {"user_id": "u1"}), ("POST", "/v1/events", {"events": [{"user_id": "a", "item_id": "i1"}]}),
        ("POST", "/v1/items", {"items": [{"item_id": "x"}]}), ("DELETE", "/v1/items/x", None),
        ("GET", "/v1/catalogue", None), ("GET", "/v1/items?id=i1", None),
        ("POST", "/v1/users", {"users": [{"user_id": "x", "age": 3}]}), ("DELETE", "/v1/users/x", None),
        ("GET", "/v1/users", None), ("GET", "/v1/users/u1/history", None), ("GET", "/v1/users/u1", None),
    ]  # fmt: skip
    assert client.get("/small/").status_code == client.get("/small/page/main.js").status_code == 404, "page=false"
    for key, wanted in (
        (None, [401] * 14),
        ("third", [401] * 14),
        ("second", [200] * 4 + [403] * 3 + [200] * 2 + [403] * 5),
    ):
        headers = {} if key is None else {"X-API-Key": key}
        found = [client.request(m, f"/small{p}", json=body, headers=headers).status_code for m, p, body in calls]
        assert found == wanted, key
    assert (
        client.request("POST", "/small/v1/events", json=calls[4][2], headers={"X-API-Key": "first"}).status_code == 200
    )
    with Client(f"{str(client.base_url).rstrip('/')}/small", key="ключ") as russian:
        assert len(russian.recommend("u1", k=3).items) == 3
    foreign = {"Host": "shop.example", "X-API-Key": "second"}
    assert client.get("/small/v1/catalogue", headers=foreign).status_code == 200, "with keys any name is answered"


def test_arguments_are_checked_before_anything_starts(tiny_run, tmp_path):
    from serve.app import AppArgs, build_app

    with pytest.raises(UserError, match="found nothing at"):
        build_app(AppArgs(run=str(tmp_path / "missing")))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "live.sqlite").write_text("no database")
    with pytest.raises(UserError, match=r"live\.sqlite is no SQLite database.*restore it"):
        build_app(AppArgs(run=tiny_run, store=str(tmp_path / "store")))
    with pytest.raises(ValidationError, match="replica_count"):
        AppArgs(run=tiny_run, replica_count=2)
    assert AppArgs.model_validate({"run": tiny_run, "replicas": "2"}).replicas == 2  # `serve run` gives strings


def test_a_damaged_bundle_is_refused_with_a_clear_message(ray_cluster, tiny_run, tmp_path, client):
    import ray.serve

    from serve.app import AppArgs, build_app

    copy = tmp_path / "bundle"
    shutil.copytree(find_bundle(tiny_run), copy)
    index = Path(copy) / "index.faiss"
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"index\.faiss"):
        ray.serve.run(build_app(AppArgs(run=str(copy))), name="damaged", route_prefix="/damaged")
    assert client.get("/readyz").status_code == 200


def test_a_caller_that_asks_too_fast_is_told_when_to_come_back(client):
    """A list of requests counts as many; the address is what the trusted proxy, here the test, says."""
    flood = {"requests": [{"user_id": "nobody", "k": 1}] * 256}
    headers = {"X-Forwarded-For": "9.9.9.9, 203.0.113.7"}
    with ThreadPoolExecutor(40) as threads:  # at once; the bucket fills by 1000 a second, and these ask for 40,960
        asking = [threads.submit(client.post, "/v1/recommend", json=flood, headers=headers) for _ in range(160)]
        responses = [each.result() for each in asking]
    assert {response.status_code for response in responses} == {200, 429}
    response = next(response for response in responses if response.status_code == 429)
    assert "too many requests" in response.json()["detail"]
    assert int(response.headers["retry-after"]) >= 1
    other = {"X-Forwarded-For": "203.0.113.7, 203.0.113.8"}  # its own word on the left counts for nothing
    assert client.post("/v1/recommend", json={"user_id": "u1"}, headers=other).status_code == 200
    same = {"X-Forwarded-For": "203.0.113.7"}
    assert [client.get(f"/{path}", headers=same).status_code for path in ("healthz", "readyz", "metrics")] == [200] * 3


def test_the_access_log_has_a_line_for_each_request_and_nobody_in_it(client, access_log, wait_for):
    mark = f"check-{os.getpid()}"
    secret = {"Authorization": "Bearer top-secret", "X-Request-ID": mark}
    response = client.post("/v1/recommend", json={"user_id": "annabel lee"}, headers=secret)
    assert response.headers.get_list("x-request-id") == [mark]
    client.get("/v1/items/i5/similar?k=3", headers={"X-Request-ID": mark})
    client.get("/v1/items/annabel%20item/similar", headers={"X-Request-ID": mark})
    client.get("/annabel%20path", headers={"X-Request-ID": mark})
    assert len(client.get("/readyz").headers.get_list("x-request-id")) == 1

    def lines() -> list[dict]:
        found = [json.loads(line) for line in access_log.read_text().splitlines()]
        return [line for line in found if line["request_id"] == mark]

    wait_for(lambda: len(lines()) == 4)
    assert "annabel" not in access_log.read_text() and "secret" not in access_log.read_text()
    logs = ray_logs()  # of Serve's proxy and controller, replicas, workers
    assert any("/v1/items/{item_id:id}/similar" in text for text in logs.values()), "the proxy has lines of its own"
    assert not [name for name, text in logs.items() if "annabel" in text or "top-secret" in text]
    routes = ["/v1/recommend", *["/v1/items/{item_id:id}/similar"] * 2, "other"]
    assert [(line["route"], line["status"]) for line in lines()] == list(zip(routes, (200, 200, 404, 404), strict=True))
    first = lines()[0]
    assert first["method"] == "POST" and first["ms"] > 0 and first["bytes"] == len(response.content)
    assert first["time"].endswith("+00:00") and first["key"] is None


def ray_logs() -> dict[str, str]:
    """Texts of all log files of the Ray cluster, by name."""
    import ray

    folder = Path("/tmp/ray") / ray.get_runtime_context().get_session_name() / "logs"
    return {file.name: file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file()}


def test_headers_of_caution_and_pages_of_other_origins(client):
    response = client.post("/v1/recommend", json={"user_id": "u1"}, headers={"Origin": "https://shop.example"})
    assert response.headers["access-control-allow-origin"] == "https://shop.example"
    assert response.headers["x-content-type-options"] == "nosniff" and response.headers["cache-control"] == "no-store"
    assert response.headers["content-security-policy"] == "default-src 'none'"
    stranger = client.post("/v1/recommend", json={"user_id": "u1"}, headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in stranger.headers
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    before = client.options("/v1/recommend", headers={"Origin": "https://shop.example", **asked})
    assert before.status_code == 200 and "POST" in before.headers["access-control-allow-methods"]


def test_what_a_refresh_reads_of_the_metrics(client, models):
    """The names and labels that a watch counts by are those of the service."""
    url, version = str(client.base_url), read_published(models).version
    before = look(url)
    client.ask(user_id="nobody knows me", k=3)
    client.ask(user_id="u1", k=3)
    assert client.post_events({"user_id": "u1", "item_id": "i1", "action": "view"}).status_code == 200
    found = look(url)
    since = found.since(before)
    assert set(found.replicas) == {version} and (since.answers, since.errors, since.events) == (2, 0, 1)
    assert since.fallbacks == 1 and 0 < since.seconds < 60
