"""Versions that change under load, and a replica that is killed; these leave the service changed, hence last."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from safetensors.numpy import load_file, save_file

from ctxrec.bundle.registry import find_bundle, publish, roll_back
from ctxrec.core import storage
from ctxrec.retrieval.retriever import load_retriever
from serve.api import RecommendRequest
from serve.engine import Engine

NOW = 1_700_000_000


def test_a_version_published_under_load_fails_no_request_and_mixes_no_versions(
    client, models, tiny_run, make_variant, tmp_path, wait_for
):
    first = client.get("/readyz").json()["model_version"]
    second = make_variant(find_bundle(tiny_run), tmp_path / "second")
    wanted = {}
    for version, bundle in ((first, find_bundle(tiny_run)), (second, str(tmp_path / "second"))):
        body = RecommendRequest.model_validate(SWAP_BODY)
        (answer,) = Engine(load_retriever(bundle)).recommend([[body]])[0].answers
        wanted[version] = dict(zip(answer.item_ids, answer.scores, strict=True))
    assert wanted[first].keys() != wanted[second].keys() or wanted[first] != wanted[second]
    item = {"item_id": "before the swap", "title": "red shoe a", "category": ["kept"]}
    assert client.post("/v1/items", json={"items": [item]}).status_code == 200

    stop, seen, failed = threading.Event(), [], []

    def ask_on() -> None:
        with httpx.Client(base_url=client.base_url, timeout=client.timeout) as own:
            while not stop.is_set():
                response = own.post("/v1/recommend", json={"requests": [SWAP_BODY, SWAP_BODY]})
                if response.status_code != 200:
                    failed.append(response.text)
                    continue
                answers = response.json()["responses"]
                versions = {answer["model_version"] for answer in answers}
                seen.append(versions.pop())
                for answer in answers:
                    found = {i["item_id"]: i["score"] for i in answer["items"]}
                    if versions or found.keys() != wanted[seen[-1]].keys() or not all(
                        abs(found[i] - wanted[seen[-1]][i]) < 1e-3 for i in found
                    ):  # fmt: skip
                        failed.append(f"{seen[-1]}: {answer}")

    def serving() -> str:
        return client.get("/readyz").json()["model_version"]

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            wait_for(lambda: len(seen) > 20)
            publish(str(tmp_path / "second"), models)
            wait_for(lambda: serving() == second)
            wait_for(lambda: seen[-20:] == [second] * 20)
            roll_back(models)
            wait_for(lambda: serving() == first)
            wait_for(lambda: seen[-20:] == [first] * 20)
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert not failed, failed[:3]
    assert set(seen) == {first, second}
    found = client.ask(user_id="u1", filter={"category": ["kept"]})["items"]
    assert [i["item_id"] for i in found] == ["before the swap"]
    assert client.delete("/v1/items/before the swap").status_code == 200


SWAP_BODY = {
    "k": 12,
    "context": {"timestamp": NOW, "device": "tv"},
    "history": [{"item_id": "i3", "action": "buy"}, {"item_id": "i7", "action": "view"}],
    "exclude": ["before the swap"],
}


def test_a_damaged_version_is_refused_and_the_old_one_stays(client, models, tiny_run, make_variant, tmp_path, wait_for):
    first = client.get("/readyz").json()["model_version"]
    broken = make_variant(find_bundle(tiny_run), tmp_path / "broken", by=2)
    damaged = Path(models) / "versions" / broken
    shutil.copytree(tmp_path / "broken", damaged)
    data = bytearray((damaged / "towers.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "towers.safetensors").write_bytes(bytes(data))
    now = json.loads((Path(models) / "current.json").read_text())
    storage.write_json(f"{models}/current.json", {**now, "version": broken, "previous": [first]})
    wait_for(lambda: 'ctxrec_model_swaps_total{result="refused"} 1.0' in client.get("/metrics").text)
    assert client.get("/readyz").json()["model_version"] == first
    assert client.ask(user_id="u1")["model_version"] == first
    storage.write_json(f"{models}/current.json", now)
    # Whole, with every hash right, but made by other code: a weight of the towers is missing.
    other = tmp_path / "other"
    make_variant(find_bundle(tiny_run), other, by=3)
    weights = load_file(other / "towers.safetensors")
    weights.pop("user.start.weight")
    save_file(weights, other / "towers.safetensors")
    manifest = storage.read_json(f"{other}/manifest.json")
    manifest["files"]["towers.safetensors"] = storage.sha256_file(f"{other}/towers.safetensors")
    manifest["model_version"] = storage.sha256_json(manifest["files"])[:12]
    del manifest["sha256"]  # as in a bundle of an earlier version
    storage.write_json(f"{other}/manifest.json", manifest)
    publish(str(other), models)
    wait_for(lambda: 'ctxrec_model_swaps_total{result="refused"} 2.0' in client.get("/metrics").text)
    assert client.ask(user_id="u1")["model_version"] == first
    assert roll_back(models).version == first


def test_kill_9_of_the_replica_loses_no_acknowledged_event_no_item_and_no_user(client, wait_for):
    """The replica dies while events are posted, and its successor knows every event that was acknowledged."""
    item = {"item_id": "survivor", "title": "green hat", "category": "survivors"}
    assert client.post("/v1/items", json={"items": [item]}).status_code == 200
    assert client.delete("/v1/items/i39").status_code == 200
    assert client.post("/v1/users", json={"users": [{"user_id": "survivor", "age": 77}]}).status_code == 200
    pid = replica_pid()
    acknowledged = []
    some_are_in = threading.Event()

    def kill() -> None:
        some_are_in.wait()
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    for n in range(400):
        try:
            event = {"user_id": f"survivor{n}", "item_id": f"i{n % 40}", "timestamp": NOW + n}
            response = client.post("/v1/events", json={"events": [event]}, timeout=60)
        except httpx.TransportError:
            break
        if response.status_code != 200:
            break
        acknowledged.append(n)
        if len(acknowledged) == 20:
            some_are_in.set()  # while the next ones are under way
    some_are_in.set()
    killer.join()
    assert len(acknowledged) >= 20

    def back() -> bool:
        try:
            return client.get("/readyz", timeout=10).status_code == 200 and replica_pid() != pid
        except (httpx.TransportError, LookupError):
            return False

    wait_for(back)
    for start in range(0, len(acknowledged), 200):
        part = [{"user_id": f"survivor{n}", "k": 1} for n in acknowledged[start : start + 200]]
        answers = client.post("/v1/recommend", json={"requests": part}).json()["responses"]
        assert not any(answer["fallback"] for answer in answers)
    found = [i["item_id"] for i in client.ask(user_id="nobody", k=1000)["items"]]
    assert "survivor" in found and "i39" not in found and len(found) == 40
    assert client.get("/v1/users/survivor").json()["attributes"] == {"age": 77}


def replica_pid() -> int:
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    found = [a.pid for a in actors if a.class_name == "ServeReplica:default:Service"]
    if not found:
        raise LookupError(str([a.class_name for a in actors]))
    return found[0]
