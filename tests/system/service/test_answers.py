"""What the service answers: the same as the batch command, in the shapes of the contract."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ctxrec
from ctxrec.core.config import Config
from ctxrec.retrieval.batch_scoring import recommend

NOW = 1_700_000_000


def test_probes_and_documentation(client, retriever):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "model_version": retriever.recommender.model_version}
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    items = {"/v1/items", "/v1/items/{item_id}", "/v1/items/{item_id}/similar", "/v1/catalogue", "/v1/trending"}
    items |= {"/v1/users", "/v1/users/{user_id}", "/v1/users/{user_id}/history"}
    assert set(paths) == items | {"/v1/recommend", "/v1/events", "/healthz", "/readyz", "/metrics"}
    document = client.get("/openapi.json").json()
    bodies = paths["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    for name in ["ColumnRule", "EventsRequest", *(body["$ref"].rsplit("/", 1)[1] for body in bodies)]:
        assert document["components"]["schemas"][name]["properties"]


def test_the_whole_body_of_the_contract(client, retriever):
    answer = client.ask(
        user_id="u1",
        k=5,
        context={"timestamp": NOW, "device": "tv", "basket_value": 3, "query": "red shoe"},
        history=[{"item_id": "i2", "action": "view", "timestamp": NOW - 60, "context": {"device": "tv"}}],
        exclude=["i6", "no such item"],
        filter={"category": ["group2"]},
        explain=False,
    )
    assert answer.keys() == {"items", "model_version", "fallback", "warnings"}
    assert [warning["loc"] for warning in answer["warnings"]] == [["body", "exclude"]], "one of its items is unknown"
    assert answer["model_version"] == retriever.recommender.model_version and answer["fallback"] is False
    ids = [item["item_id"] for item in answer["items"]]
    assert len(ids) == len(set(ids)) == 5 and {int(i[1:]) % 4 for i in ids} == {2}
    assert not {"i2", "i6"} & set(ids)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)


def test_the_second_stage_ranks_for_those_who_ask_for_it(client):
    plain, again = (
        [item["item_id"] for item in client.ask(user_id="u1", context={"timestamp": NOW}, rerank=said)["items"]]
        for said in (False, True)
    )
    assert plain != again and sorted(plain) == sorted(again)
    bodies = [{"user_id": "u1", "context": {"timestamp": NOW}, "rerank": said} for said in (True, None)]
    lists = [[item["item_id"] for item in one["items"]] for one in client.ask(requests=bodies)["responses"]]
    assert lists == [again, plain]
    assert "rerank" in client.refuses({"user_id": "u1", "rerank": "yes"})
    assert 'ctxrec_stage_seconds_count{stage="rerank"}' in client.get("/metrics").text


def test_a_query_ranks_by_words_and_taste(client):
    """The free text of a request, alone and in a list; texts of the context are read in the same way."""
    plain, red, blue = (
        [item["item_id"] for item in client.ask(user_id="u1", k=40, context={"timestamp": NOW}, **asked)["items"]]
        for asked in ({}, {"query": "red shoe"}, {"query": "蓝色 blue hat"})
    )
    assert sorted(plain) == sorted(red) == sorted(blue) and len({*map(tuple, (plain, red, blue))}) == 3
    many = {
        "requests": [{"user_id": "u1", "k": 40, "query": q, "context": {"timestamp": NOW}} for q in ("red shoe", " ")]
    }
    first, second = client.post("/v1/recommend", json=many).json()["responses"]
    assert [item["item_id"] for item in first["items"]][:5] == red[:5]
    assert [w["type"] for w in first["warnings"]] == ["short_list"], (
        "the query is read, and all items that are left are asked for"
    )
    assert [item["item_id"] for item in second["items"]][:5] == plain[:5]
    why = client.ask(user_id="u1", context={"timestamp": NOW}, query="red shoe", explain=True)["items"][0]
    assert "query" in why["why"]["sources"]
    assert sum(why["why"]["sources"].values()) == pytest.approx(why["score"], rel=1e-3)
    assert "query" in client.refuses({"user_id": "u1", "query": "x" * 1001})
    assert "query" in client.refuses({"user_id": "u1", "query": ["red"]})
    heavy = [{"user_id": "u1", "k": 600, "query": f"red shoe {n}"} for n in range(256)]
    assert "too much at once" in client.refuses({"requests": heavy})


def test_scores_over_http_equal_those_of_recommend(client, tiny_run, tmp_path):
    users = [f"u{n}" for n in range(20)] + ["nobody", None]
    histories = [["i1", "i5"] if n % 5 == 4 else None for n in range(21)] + [["i3"]]
    devices = [["tv", "phone", None][n % 3] for n in range(22)]
    table = {
        "request_id": list(range(22)),
        "user_id": users,
        "timestamp": [NOW + 3600 * n for n in range(22)],
        "device": devices,
        "history": pa.array(histories, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(table), tmp_path / "R.parquet")
    out = str(tmp_path / "O.parquet")
    recommend(tiny_run, str(tmp_path / "R.parquet"), out, k=12, config=Config())
    for row in pq.read_table(out).to_pylist():
        n = row["request_id"]
        body = {"k": 12, "context": {"timestamp": NOW + 3600 * n}}
        body |= {} if users[n] is None else {"user_id": users[n]}
        body |= {} if histories[n] is None else {"history": [{"item_id": i} for i in histories[n]]}
        body["context"] |= {} if devices[n] is None else {"device": devices[n]}
        answer = client.ask(**body)
        assert [item["item_id"] for item in answer["items"]] == row["item_ids"]
        np.testing.assert_allclose([item["score"] for item in answer["items"]], row["scores"], rtol=1e-5, atol=1e-5)
        assert answer["fallback"] is (users[n] == "nobody" and histories[n] is None)


def test_the_context_counts(client):
    tv = client.ask(user_id="u1", context={"timestamp": NOW, "device": "tv"})
    phone = client.ask(user_id="u1", context={"timestamp": NOW, "device": "phone"})
    assert [i["score"] for i in tv["items"]] != [i["score"] for i in phone["items"]]


def test_an_unknown_user_gets_a_fallback_that_depends_on_the_context(client):
    tv = client.ask(user_id="\U0001f600 новый", context={"timestamp": NOW, "device": "tv"})
    phone = client.ask(user_id="\U0001f600 новый", context={"timestamp": NOW, "device": "phone"})
    assert tv["fallback"] and phone["fallback"] and len(tv["items"]) == 10
    assert [i["score"] for i in tv["items"]] != [i["score"] for i in phone["items"]]
    clicked = client.ask(user_id="\U0001f600 новый", history=[{"item_id": "i1"}])
    assert not clicked["fallback"] and "i1" not in [i["item_id"] for i in clicked["items"]]


def test_k_beyond_the_catalogue_gives_all_that_is_eligible(client):
    assert len(client.ask(user_id="nobody", k=1000)["items"]) == 40
    assert len(client.ask(user_id="nobody", k=1000, filter={"category": ["group1"]})["items"]) == 10
    assert client.ask(user_id="nobody", filter={"category": ["no such value"]})["items"] == []


def test_rules_and_an_allow_list_choose_among_the_items(client, retriever):
    items = retriever.recommender.items
    price = dict(zip(retriever.recommender.item_ids, items.column("num_price").to_pylist(), strict=True))

    def found(**body) -> set[str]:
        return {i["item_id"] for i in client.ask(user_id="nobody", k=1000, **body)["items"]}

    assert found(filter={"category": {"none": ["group1", "group2"]}}) == {i for i in price if int(i[1:]) % 4 in (0, 3)}
    cheap = {i for i, p in price.items() if p is not None and 3 <= p <= 17}
    assert found(filter={"price": {"min": 3, "max": 17}}) == cheap
    both = {"price": {"min": 3, "max": 17}, "category": {"any": ["group1"]}}
    assert found(filter=both) == {i for i in cheap if int(i[1:]) % 4 == 1}
    assert found(allow=["i3", "i4", "i4", "no such item"]) == {"i3", "i4"}
    assert found(allow=["i3", "i4", "i5"], exclude=["i4"], filter={"category": ["group1", "group0"]}) == {"i5"}
    assert found(allow=[]) == set()
    for k in (1, len(cheap)):  # always k where k are eligible
        assert len(client.ask(user_id="u1", k=k, filter={"price": {"min": 3}})["items"]) == k


def test_a_list_of_requests_gets_the_answers_that_each_gets_alone(client):
    bodies = [
        {
            "user_id": f"u{n}",
            "k": 1 + n % 7,
            "context": {"timestamp": NOW + n},
            **({"exclude": ["i1"]} if n % 2 else {}),
        }
        for n in range(100)
    ]
    response = client.post("/v1/recommend", json={"requests": bodies})
    assert response.status_code == 200 and response.json().keys() == {"responses"}
    answers = response.json()["responses"]
    assert len(answers) == 100 and [len(a["items"]) for a in answers] == [b["k"] for b in bodies]
    for body, answer in list(zip(bodies, answers, strict=True))[::9]:
        alone = client.ask(**body)
        assert [i["item_id"] for i in alone["items"]] == [i["item_id"] for i in answer["items"]]
        np.testing.assert_allclose(
            [i["score"] for i in alone["items"]], [i["score"] for i in answer["items"]], rtol=1e-5, atol=1e-5
        )
        assert answer["model_version"] == alone["model_version"] and answer["fallback"] is alone["fallback"]
    assert client.ask(user_id="requests")["fallback"], "a value of that name makes no list"


def test_similar_items(client, retriever):
    answer = client.get("/v1/items/i5/similar", params={"k": 3}).json()
    positions, scores = retriever.similar(retriever.recommender.item_position["i5"], 3)
    assert [i["item_id"] for i in answer["items"]] == retriever.item_ids(positions)
    np.testing.assert_allclose([i["score"] for i in answer["items"]], scores, rtol=1e-5, atol=1e-5)
    assert answer["fallback"] is False
    assert len(client.get("/v1/items/i5/similar").json()["items"]) == 10
    assert len(client.get("/v1/items/i5/similar?k=1000").json()["items"]) == 39
    for item in ("nothing", "a%2Fb/c", "%F0%9F%98%80", "x" * 5000):
        response = client.get(f"/v1/items/{item}/similar")
        assert response.status_code == 404 and "catalogue has no item" in response.json()["detail"]
    for k in ("0", "-1", "1001", "many", "1.5"):
        response = client.get(f"/v1/items/i5/similar?k={k}")
        assert response.status_code == 422 and response.json()["detail"][0]["loc"] == ["query", "k"]


def test_parallel_requests_get_the_answers_they_get_alone(client):
    def body(n: int) -> dict:
        made = {
            "user_id": f"u{n}",
            "k": 1 + n % 20,
            "context": {"timestamp": NOW + n, "device": ["tv", "phone"][n % 2]},
        }
        if n % 4 == 0:
            made["filter"] = {"category": [f"group{n % 3}"]}
        if n % 5 == 0:
            made["exclude"] = [f"i{n % 40}"]
        return made

    bodies = [body(n) for n in range(64)]
    alone = [client.ask(**b) for b in bodies]
    bad = [{"user_id": "u1", "context": {"weather": "rain"}}] * 6  # a bad request harms no other of its batch

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=80)
        async with httpx.AsyncClient(base_url=client.base_url, timeout=client.timeout, limits=limits) as parallel:
            return await asyncio.gather(*(parallel.post("/v1/recommend", json=b) for b in bodies + bad))

    with ThreadPoolExecutor(1) as thread:
        responses = thread.submit(asyncio.run, all_at_once()).result()
    assert [r.status_code for r in responses] == [200] * 64 + [422] * 6
    for wanted, response in zip(alone, responses, strict=False):
        found = response.json()
        assert [i["item_id"] for i in found["items"]] == [i["item_id"] for i in wanted["items"]]
        np.testing.assert_allclose(
            [i["score"] for i in found["items"]], [i["score"] for i in wanted["items"]], rtol=1e-5, atol=1e-5
        )


def test_explanations_are_differences_of_real_scores(client):
    history = [{"item_id": f"i{n}", "action": "view", "timestamp": NOW - 50 + n} for n in (1, 5, 9, 1, 14)]
    asked = {"user_id": "u1", "k": 1000, "context": {"timestamp": NOW, "device": "tv", "query": "red shoe"}}

    def scores(context: dict, events: list) -> dict[str, float]:
        items = client.ask(**{**asked, "context": context, "history": events})["items"]
        return {i["item_id"]: i["score"] for i in items}

    explained = client.ask(**asked, history=history, explain=True)["items"]
    whole = scores(asked["context"], history)
    assert {i["item_id"] for i in explained} == set(whole) and explained[0]["why"].keys() == {
        "history",
        "context",
        "user",
        "sources",
    }
    for item in explained:
        assert item["score"] == pytest.approx(whole[item["item_id"]], abs=1e-4)
        assert sum(item["why"]["sources"].values()) == pytest.approx(item["score"], abs=1e-4)
    without = {
        name: scores({k: v for k, v in asked["context"].items() if k != name}, history) for name in ("device", "query")
    }
    lacking = {
        i: scores(asked["context"], [e for e in history if e["item_id"] != i]) for i in ("i1", "i5", "i9", "i14")
    }
    for item in explained:
        name, why = item["item_id"], item["why"]
        assert set(why["history"]) == set(lacking) and set(why["context"]) == {*without, "hour", "weekday", "month"}
        for part, others in ((why["history"], lacking), (why["context"], without)):
            for key, other in others.items():
                assert part[key] == pytest.approx(whole[name] - other[name], abs=1e-4)
    assert any(abs(effect) > 1e-3 for item in explained for effect in item["why"]["history"].values())
    assert "why" not in client.ask(**asked)["items"][0]
    assert client.ask(user_id="nobody", explain=True, k=1)["items"][0]["why"]["history"] == {}


def test_a_request_in_a_time_zone_of_its_own_equals_batch_and_python(client, tiny_run, retriever, tmp_path):
    scores = {}
    for zone in (None, "America/New_York"):
        context = {"timestamp": NOW, "device": "tv"} | ({} if zone is None else {"timezone": zone})
        served = client.ask(user_id="u1", k=8, context=context)["items"]
        rows = {"request_id": [1], "user_id": ["u1"], "timestamp": [NOW], "device": ["tv"]}
        rows["timezone"] = pa.array([zone], pa.string())
        pq.write_table(pa.table(rows), tmp_path / "R.parquet")
        recommend(tiny_run, str(tmp_path / "R.parquet"), str(tmp_path / "O.parquet"), k=8, config=Config())
        batch = pq.read_table(tmp_path / "O.parquet").to_pylist()[0]
        model = ctxrec.load(tiny_run)
        here = model.recommend("u1", k=8, context=context)
        scores[zone] = [item["score"] for item in served]
        assert [item["item_id"] for item in served] == batch["item_ids"] == list(here["item_id"])
        np.testing.assert_allclose(scores[zone], batch["scores"], rtol=1e-5)
        np.testing.assert_allclose(scores[zone], np.array(here["score"], np.float64), rtol=1e-5)
    assert scores[None] != pytest.approx(scores["America/New_York"], rel=1e-4)


def test_an_unknown_time_zone_is_refused_by_its_name(client):
    for zone in ("Asia/Shanghia", "../../etc/localtime", 8, ""):
        text = client.refuses({"user_id": "u1", "context": {"timezone": zone}})
        assert "context timezone is" in text and "Asia/Shanghai" in text
        assert json.loads(text)["detail"][0]["loc"] == ["body", "context", "timezone"]
    event = {"user_id": "u1", "item_id": "i1", "context": {"timezone": "UTC"}}
    answer = client.post_events(event)
    assert answer.status_code == 422 and "unknown context key 'timezone'" in answer.text
