"""Posted events and items, and where they go."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tolerance import assert_same_scores

from ctxrec.core.config import Config
from ctxrec.data.prepared import PreparedData

NOW = 1_700_000_000


def test_events_are_known_to_the_next_recommendation(client):
    new = {"user_id": "новый 1"}
    assert client.ask(**new)["fallback"]
    clicks = [{**new, "item_id": f"i{n}", "action": "view", "context": {"device": "tv"}} for n in (1, 5, 9)]
    assert client.post_events(*clicks).json() == {"accepted": 3}
    answer = client.ask(**new, k=1000)
    assert not answer["fallback"] and len(answer["items"]) == 37
    assert not {"i1", "i5", "i9"} & {i["item_id"] for i in answer["items"]}
    given = client.ask(history=[{"item_id": f"i{n}", "action": "view", "context": {"device": "tv"}} for n in (1, 5, 9)])
    assert [i["item_id"] for i in answer["items"]][:3] == [i["item_id"] for i in given["items"]][:3]
    assert client.ask(**new, history=[])["fallback"], "a given history replaces the stored one"
    assert client.ask(**new, context={"timestamp": NOW})["fallback"], "at that time there was none of them"


def test_what_is_trending_counts_posted_events_of_all_users_at_once(client):
    rows = client.get("/v1/items", params={"id": ["i7", "i8"]}).json()["items"]
    posts = [{"user_id": f"trend {n}", "item_id": item} for n, item in enumerate(["i7"] * 60 + ["i8"] * 40)]
    assert client.post_events(*posts).json() == {"accepted": 100}

    def trending(**params) -> dict:
        for _ in range(100):  # they are counted within milliseconds
            answer = client.get("/v1/trending", params=params).json()
            if answer["items"] and answer["items"][0]["score"] > 35:
                break
            time.sleep(0.05)
        return answer

    answer = trending(k=2)
    assert [item["item_id"] for item in answer["items"]] == ["i7", "i8"] and answer["fallback"] is False
    assert 60 <= answer["items"][0]["score"] < 70 and answer["model_version"]
    column = next(name for name, value in rows[1].items() if isinstance(value, list) and value)
    wanted = json.dumps({column: {"any": rows[1][column]}})
    found = client.get("/v1/items", params={"id": [i["item_id"] for i in trending(filter=wanted)["items"]]})
    assert all(set(row[column]) & set(rows[1][column]) for row in found.json()["items"])
    for wrong, place in (('{"nothing": ["x"]}', "filter"), ("{", "filter"), (f'{{"{column}": 3}}', "filter")):
        response = client.get("/v1/trending", params={"filter": wrong})
        assert response.status_code == 422 and place in response.json()["detail"][0]["loc"], response.text
    assert client.get("/v1/trending", params={"k": 0}).status_code == 422


def test_posted_events_join_the_history_of_the_bundle_at_their_time(client, retriever):
    recommender = retriever.recommender
    events = recommender.histories.events
    row = events.row(recommender.user_row["u40"])
    seen = [recommender.item_ids[n] for n in events.items[row]]
    times = events.times[row] / 1e6
    unseen = next(i for i in recommender.item_ids if i not in seen)
    middle = float(times[0] + times[1]) / 2
    old = {"user_id": "u40", "item_id": seen[0], "timestamp": float(times[0]), "action": "view"}
    old["action"] = recommender.features.actions[int(events.actions[row][0]) - 1]
    assert client.post_events({"user_id": "u40", "item_id": unseen, "timestamp": middle}, old).json() == {"accepted": 2}
    history = [{"item_id": seen[0], "timestamp": float(times[0]), "action": old["action"]}]
    stamps = {n: recommender.features.actions[int(a) - 1] for n, a in enumerate(events.actions[row])}
    contexts = [
        {
            "device": recommender.features.context_categories["device"][int(events.context.cat["device"][n]) - 2],
            "basket_value": float(events.context.num["basket_value"][n]),
            "query": events.context.text["query"][n],
        }
        for n in range(row.start, row.stop)
    ]
    history = [
        {"item_id": seen[n], "timestamp": float(times[n]), "action": stamps[n], "context": contexts[n]}
        for n in range(len(seen))
    ]
    history.insert(1, {"item_id": unseen, "timestamp": middle})
    for at in (float(times[0]) + 1, middle + 1, NOW):
        stored = client.ask(user_id="u40", k=20, context={"timestamp": at})
        known = [event for event in history if event["timestamp"] < at]
        given = client.ask(user_id="u40", k=20, context={"timestamp": at}, history=known)
        assert [i["item_id"] for i in stored["items"]] == [i["item_id"] for i in given["items"]]
        np.testing.assert_allclose(
            [i["score"] for i in stored["items"]], [i["score"] for i in given["items"]], atol=1e-4
        )


def test_an_event_that_changes_nothing_is_stored_and_named(client):
    odd = {"user_id": "odd"}
    answer = client.post_events({**odd, "item_id": "no such item"}, {"user_id": "u1", "item_id": "i1"}).json()
    assert answer["accepted"] == 2 and answer["warnings"] == [
        {"loc": ["body", "events", 0, "item_id"], "type": "unknown_item", "msg": answer["warnings"][0]["msg"]}
    ]
    assert answer["warnings"][0]["msg"].startswith("'no such item' (1 event) is not in the catalogue.")
    assert client.ask(**odd)["fallback"], "which the warning says"
    answer = client.post_events({**odd, "item_id": "i1", "action": "veiw"}).json()
    assert answer["accepted"] == 1 and [w["loc"] for w in answer["warnings"]] == [["body", "events", 0, "action"]]
    assert "expected one of buy, view." in answer["warnings"][0]["msg"]
    assert not client.ask(**odd)["fallback"], "the item counts all the same"


def test_an_event_from_a_clock_that_is_ahead_counts_at_once(client):
    event = {"user_id": "ahead", "item_id": "i3", "timestamp": time.time() + 60}
    assert client.post_events(event).json() == {"accepted": 1}
    assert not client.ask(user_id="ahead")["fallback"]


def test_events_of_many_senders_at_once(client):
    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=client.timeout) as parallel:
            posts = [
                parallel.post("/v1/events", json={"events": [{"user_id": f"crowd{n}", "item_id": f"i{n % 40}"}]})
                for n in range(60)
            ]
            return [r.status_code for r in await asyncio.gather(*posts)]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, all_at_once()).result() == [200] * 60
    assert not any(client.ask(user_id=f"crowd{n}")["fallback"] for n in range(0, 60, 7))


def test_a_new_item_is_searchable_at_once_until_it_is_removed(client):
    item = {"item_id": "brand/new", "title": "red shoe a", "category": ["novelty", "all"], "price": 77.5}
    bare = {"item_id": "bare"}
    assert client.post("/v1/items", json={"items": [bare]}).json() == {"accepted": 1}
    for letter in "abc":  # each time with a text that is new
        text = {"title": f"red shoe {letter}"}
        assert client.post("/v1/items", json={"items": [item | text, bare]}).json() == {"accepted": 2}
        found = client.ask(user_id="u1", k=3, filter={"category": ["novelty"]})["items"]
        assert [i["item_id"] for i in found] == ["brand/new"]
    everything = {i["item_id"] for i in client.ask(user_id="nobody", k=1000)["items"]}
    assert {"brand/new", "bare"} <= everything and len(everything) == 42
    similar = client.get("/v1/items/brand%2Fnew/similar?k=5").json()["items"]
    assert len(similar) == 5 and "brand/new" not in [i["item_id"] for i in similar]
    assert not client.ask(history=[{"item_id": "brand/new"}])["fallback"], "a click on it is a history"
    assert client.post_events({"user_id": "early", "item_id": "brand/new"}).status_code == 200
    assert "brand/new" not in [i["item_id"] for i in client.ask(user_id="early", k=1000)["items"]]
    assert client.post("/v1/items", json={"items": [{**item, "price": 10}]}).json() == {"accepted": 1}
    assert client.ask(user_id="u1", filter={"price": {"min": 70}})["items"] == []
    for item_id in ("brand%2Fnew", "bare"):
        assert client.delete(f"/v1/items/{item_id}").json() == {"accepted": 1}
        response = client.delete(f"/v1/items/{item_id}")
        assert response.status_code == 404 and "catalogue has no item" in response.json()["detail"]
        assert client.get(f"/v1/items/{item_id}/similar").status_code == 404
    assert len(client.ask(user_id="nobody", k=1000)["items"]) == 40


def test_posted_events_become_files_that_prepare_reads_with_the_log(client, live, tiny_spec, tmp_path, wait_for):
    """The log's own file (times in seconds, shuffled) and the service's files in one folder."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    event = {"user_id": "for training", "item_id": "i7", "action": "buy", "timestamp": 1_650_000_000.25}
    event["context"] = {"device": "phone", "basket_value": 0.5, "query": "hat"}
    event2 = {"user_id": "for training", "item_id": "brand new", "timestamp": 1_650_000_001, "action": "view"}
    event3 = {"user_id": "for training", "item_id": "i8", "timestamp": 1_650_000_002, "action": "view"}
    answer = client.post_events(event, event2, event3).json()
    (warning,) = answer.pop("warnings")
    assert answer == {"accepted": 3} and warning["loc"] == ["body", "events", 1, "item_id"]
    wait_for(lambda: "for training" in users_of(live / "events"))
    shop = Path(tiny_spec).parent
    folder = tmp_path / "log"
    shutil.copytree(live / "events", folder)
    shutil.copy(shop / "events.parquet", folder)
    spec = load_spec(tiny_spec)
    spec = dataclasses.replace(spec, events=dataclasses.replace(spec.events, path=str(folder)))
    prepare(spec, str(tmp_path / "data"), Config())
    data = PreparedData.open(str(tmp_path / "data"))
    assert not data.meta["counts"]["rejects"] or set(data.meta["counts"]["rejects"]) == {"duplicate event"}
    rows = [row for n in range(len(data.bucket_paths)) for row in data.read_bucket(n).to_pylist()]
    (row,) = [row for row in rows if row["user_id"] == "for training"]
    ids = data.items.column("item_id").to_pylist()
    assert [ids[n] for n in row["items"]] == ["i7", "brand new", "i8"]
    assert row["times"] == [1_650_000_000_250_000, 1_650_000_001_000_000, 1_650_000_002_000_000]
    device = data.features.context_categories["device"]
    assert [device[c - 2] if c > 1 else None for c in row["ctx_device"]] == ["phone", None, None]
    assert row["ctx_query"] == ["hat", None, None]


def test_posted_rows_become_a_file_that_prepare_reads_before_the_catalogues_own(
    client, live, tiny_spec, tmp_path, wait_for
):
    """A new item with all its columns, and an old one with a new price: the newest row is the one that is kept."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    new = {"item_id": "posted", "title": "blue lamp z", "category": ["group1", "posted"], "price": 12.5}
    old = {"item_id": "i6", "title": "another hat", "category": "group2", "price": 99}
    gone = {"item_id": "gone again", "title": "hat"}
    assert client.post("/v1/items", json={"items": [new, old, gone]}).json() == {"accepted": 3}
    assert client.delete("/v1/items/gone again").json() == {"accepted": 1}

    def written() -> list[str]:
        return [row["item_id"] for row in rows_in(live / "items")]

    # Items of this test and of others that were taken away leave the files after a while.
    gone = {"gone again", "bare", "brand/new"}
    wait_for(lambda: {"posted", "i6"} <= set(written()) and not gone & set(written()))
    shop, folder = Path(tiny_spec).parent, tmp_path / "catalogue"
    copied(live / "items", folder)
    shutil.copy(shop / "items.parquet", folder)
    spec = load_spec(tiny_spec)
    spec = dataclasses.replace(spec, items=dataclasses.replace(spec.items, path=str(folder)))
    prepare(spec, str(tmp_path / "data"), Config())
    items = {row["item_id"]: row for row in PreparedData.open(str(tmp_path / "data")).items.to_pylist()}
    assert len(items) == 41
    assert items["posted"]["title"] == "blue lamp z" and items["i6"]["title"] == "another hat"
    assert sorted(items["posted"]["cat_category"]) == ["group1", "posted"] and items["i6"]["cat_category"] == ["group2"]
    assert items["posted"]["num_price"] == 12.5 and items["i6"]["num_price"] == 99
    assert items["i7"]["cat_category"] == ["group3", "all"]
    back = pq.read_table(shop / "items.parquet").to_pylist()[6]
    assert client.post("/v1/items", json={"items": [back]}).json() == {"accepted": 1}
    assert client.delete("/v1/items/posted").json() == {"accepted": 1}


def test_posted_users_are_known_at_once_and_to_the_next_prepare(client, live, tiny_spec, tmp_path, wait_for):
    """A new user, a known one with other attributes, and one who is taken away: the newest row is the one that is kept."""
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    plain = {"history": ["i4", "i8"], "k": 10, "context": {"timestamp": 1_700_000_000}}
    users = [
        {"user_id": "posted/history", "gender": "F", "age": 20},
        {"user_id": "u7", "age": 99},
        {"user_id": "u8", "age": 1},
    ]
    before = count(client, "ctxrec_user_changes_total")
    assert client.post("/v1/users", json={"users": users}).json() == {"accepted": 3}
    assert client.delete("/v1/users/u8").json() == {"accepted": 1}
    assert client.delete("/v1/users/u8").status_code == 404
    assert count(client, "ctxrec_user_changes_total") == before + 4
    told = client.get("/v1/users/posted%2Fhistory").json()
    assert told == {"user_id": "posted/history", "attributes": {"gender": "F", "age": 20}, "posted": True}
    assert client.get("/v1/users/u9").json()["posted"] is False and client.get("/v1/users/nobody").status_code == 404
    found = client.ask(user_id="posted/history", **plain)["items"]
    wanted = client.ask(user={"gender": "F", "age": 20}, **plain)["items"]
    assert [i["item_id"] for i in found] == [i["item_id"] for i in wanted]
    assert_same_scores([i["score"] for i in found], [i["score"] for i in wanted])
    why = client.ask(user_id="posted/history", explain=True, **plain)["items"][0]["why"]
    assert set(why["user"]) == {"gender", "age"}
    (note,) = client.post("/v1/users", json={"users": [{"user_id": "odd", "gender": "X"}]}).json()["warnings"]
    assert note["loc"] == ["body", "users", 0, "gender"] and note["type"] == "unknown_value"

    def written() -> dict[str, dict]:
        return {row["user_id"]: row for row in reversed(rows_in(live / "users"))}

    wait_for(lambda: {"posted/history", "u7", "u8", "odd"} <= set(written()))
    shop = Path(tiny_spec).parent
    for name in ("users", "log"):
        (tmp_path / name).mkdir()
    copied(live / "users", tmp_path / "users")
    shutil.copy(shop / "users.parquet", tmp_path / "users")
    log = pq.read_table(shop / "events.parquet")
    pq.write_table(log, tmp_path / "log" / "events.parquet")
    more = {"user_id": "posted/history", "item_id": "i7", "timestamp": log.column("timestamp")[0].as_py()}
    row = {name: more.get(name) for name in log.column_names}
    pq.write_table(pa.Table.from_pylist([row], log.schema), tmp_path / "log" / "more.parquet")
    spec = load_spec(tiny_spec)
    assert spec.users is not None
    spec = dataclasses.replace(
        spec,
        events=dataclasses.replace(spec.events, path=str(tmp_path / "log")),
        users=dataclasses.replace(spec.users, path=str(tmp_path / "users")),
    )
    prepare(spec, str(tmp_path / "data"), Config())
    data = PreparedData.open(str(tmp_path / "data"))
    rows = {row["user_id"]: row for n in range(len(data.bucket_paths)) for row in data.read_bucket(n).to_pylist()}
    genders = data.features.user_categories["gender"]
    assert genders[rows["posted/history"]["user_gender"] - 2] == "F" and rows["posted/history"]["user_age"] == 20
    assert (rows["u7"]["user_gender"], rows["u7"]["user_age"]) == (0, 99)
    assert rows["u8"]["user_gender"] == 0 and rows["u8"]["user_age"] is None
    shop_users = {row["user_id"]: row for row in pq.read_table(shop / "users.parquet").to_pylist()}
    assert rows["u9"]["user_age"] == shop_users["u9"]["age"]
    back = [{k: v for k, v in shop_users[name].items() if v is not None} for name in ("u7", "u8")]
    assert client.post("/v1/users", json={"users": back}).json() == {"accepted": 2}


def count(client, name: str) -> float:
    return sum(float(x.rpartition(" ")[2]) for x in client.get("/metrics").text.splitlines() if x.startswith(name))


def rows_in(folder: Path) -> list[dict]:
    """The rows of all files, those first that `prepare` keeps. The service takes files away while they are read."""
    while True:
        try:
            return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        except FileNotFoundError:
            continue


def copied(folder: Path, to: Path) -> None:
    """Copy the files that the service has now."""
    to.mkdir(exist_ok=True)
    while True:
        try:
            for path in sorted(folder.glob("*.parquet")):
                shutil.copy(path, to)
            return
        except FileNotFoundError:
            continue


def users_of(folder: Path) -> set[str]:
    return {u for file in folder.glob("*.parquet") for u in pq.read_table(file).column("user_id").to_pylist()}
