"""What the page and other people's tools read: the catalogue, rows of items, users and their histories."""

from __future__ import annotations

NOW = 1_700_000_000


def test_the_catalogue_tells_what_can_be_asked_for(client, retriever):
    about = client.get("/v1/catalogue").json()
    assert about["name"] == "tiny" and about["num_users"] == 60
    assert about["model_version"] == retriever.recommender.model_version
    assert about["context"] == {
        "categorical": {"device": about["context"]["categorical"]["device"]}, "numeric": ["basket_value"], "text": ["query"],
    }  # fmt: skip
    assert set(about["context"]["categorical"]["device"]) == {"tv", "phone"} and set(about["actions"]) == {
        "view",
        "buy",
    }
    assert set(about["item_columns"]["categorical"]["category"]) == {"all", "group0", "group1", "group2", "group3"}
    assert about["item_columns"]["numeric"] == {"price": {"min": 1.0, "max": 39.0}}
    assert about["latest_event"] == retriever.recommender.histories.events.times.max() / 1e6


def test_rows_of_items_also_of_new_ones(client):
    rows = client.get("/v1/items?id=i7&id=missing&id=i5").json()["items"]
    assert [row["item_id"] for row in rows] == ["i7", "i5"]
    assert rows[0]["category"] == ["group3", "all"] and rows[0]["price"] == 7.0 and rows[1]["price"] is None
    new = {"item_id": "look at/me", "title": "red hat", "category": ["seen"]}
    assert client.post("/v1/items", json={"items": [new]}).status_code == 200
    wanted = [{**new, "price": None}]
    assert client.get("/v1/items", params={"id": "look at/me"}).json()["items"] == wanted
    assert client.get("/v1/catalogue").json()["num_items"] == 41
    assert client.delete("/v1/items/look at/me").status_code == 200
    assert client.get("/v1/items", params={"id": "look at/me"}).json()["items"] == []
    assert client.get("/v1/catalogue").json()["num_items"] == 40
    assert client.get("/v1/items").status_code == client.get("/v1/items?id=").status_code == 422
    assert client.get("/v1/items?" + "&".join(["id=i1"] * 257)).status_code == 422


def test_users_by_the_beginning_of_their_ids(client):
    found = client.get("/v1/users?prefix=u1").json()["users"]
    assert [user["user_id"] for user in found] == ["u1", *(f"u1{n}" for n in range(10))]
    assert all(3 <= user["events"] <= 15 for user in found)
    assert [u["user_id"] for u in client.get("/v1/users?limit=2").json()["users"]] == ["u0", "u1"]
    assert client.get("/v1/users?prefix=zz").json()["users"] == []
    assert client.get("/v1/users?limit=101").status_code == 422


def test_a_history_has_what_the_log_and_the_store_know(client, retriever):
    events = [
        {"user_id": "u33", "item_id": "i1", "action": "buy", "timestamp": NOW, "context": {"device": "tv", "query": "hat"}},
        {"user_id": "u33", "item_id": "i2", "timestamp": NOW + 5, "context": {"basket_value": 0.25}},
    ]  # fmt: skip
    assert client.post_events(*events).status_code == 200
    told = client.get("/v1/users/u33/history").json()
    assert told["user_id"] == "u33" and told["known"] and "degraded" not in told
    recommender = retriever.recommender
    logged = recommender.histories.events.row(recommender.user_row["u33"])
    assert len(told["events"]) == 2 + (logged.stop - logged.start)
    last, first = told["events"][:2]
    assert (last["item_id"], last["action"], last["timestamp"]) == ("i2", None, NOW + 5)
    assert last["context"] == {"basket_value": 0.25}
    assert first["action"] == "buy" and first["context"] == {"device": "tv", "query": "hat"} and first["title"]
    older = client.get("/v1/users/u33/history", params={"before": NOW, "limit": 3}).json()["events"]
    assert older == told["events"][2:5]
    assert client.get("/v1/users/no one/history").json() == {"user_id": "no one", "known": False, "events": []}
    assert client.get("/v1/users/u33/history?before=1e300").status_code == 422
    assert client.get("/v1/users/u33/history?limit=0").status_code == 422
