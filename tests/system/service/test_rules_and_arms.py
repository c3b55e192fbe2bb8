"""Rules, diversity and an A/B test in a running service; each leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.experiments import ab_test
from ctxrec.experiments.ab_report import report
from ctxrec.experiments.event_credit import attribute, choose_experiment, read_log
from ctxrec.experiments.exposures import read_exposures
from ctxrec.retrieval.retriever import load_retriever
from serve.api import RecommendRequest
from serve.engine import Engine

NOW = 1_700_000_000


def shown(client, user: str = "u1", k: int = 10, **more) -> list[str]:
    answer = client.ask(user_id=user, k=k, context={"timestamp": NOW}, **more)
    assert (np.diff([item["score"] for item in answer["items"]]) <= 0).all()
    return [item["item_id"] for item in answer["items"]]


def counted(client, name: str, *labels: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))


def test_diversity_of_a_request(client):
    plain = shown(client)
    assert shown(client, diversity=0) == plain
    spread = shown(client, diversity=1)
    assert len(spread) == 10 and spread[0] == plain[0] and spread != plain
    for wrong in (-0.1, 1.1, "0.5", True):
        assert "diversity" in client.refuses({"user_id": "u1", "diversity": wrong})


def test_the_rule_file_is_followed_and_a_damaged_one_is_not(client, rule_file, wait_for):
    before = rule_file.read_text()
    plain = shown(client)
    rule_file.write_text(f'[[block]]\nitems = ["{plain[0]}"]\n[[pin]]\nitems = ["{plain[5]}"]\nplace = 2\n')
    try:
        wait_for(lambda: plain[0] not in shown(client))
        ruled = shown(client)
        assert len(ruled) == 10 and ruled[1] == plain[5]
        refused = counted(client, "ctxrec_rule_changes_total", 'result="refused"')
        rule_file.write_text('[[block]]\nitems = ["no such item"]')
        wait_for(lambda: counted(client, "ctxrec_rule_changes_total", 'result="refused"') == refused + 1)
        assert shown(client) == ruled
    finally:
        rule_file.write_text(before)
    wait_for(lambda: shown(client) == plain)


@pytest.fixture
def running_test(client, models, tiny_run, make_variant, tmp_path, wait_for):
    """A test in which half of the users get another version; with the bundles by arm."""
    make_variant(find_bundle(tiny_run), tmp_path / "other", by=5)
    test = ab_test.start(str(tmp_path / "other"), models, name="half", arm="b", share=0.5)
    wait_for(lambda: "experiment" in client.ask(user_id="u1"))
    yield test, {"control": find_bundle(tiny_run), "b": str(tmp_path / "other")}
    if ab_test.read_experiment(models) is not None:
        ab_test.end(models)
    wait_for(lambda: "experiment" not in client.ask(user_id="u1"))


def test_users_stay_in_their_arms_and_their_events_are_attributed(client, live, running_test, models, wait_for):
    test, bundles = running_test
    arms = {user: (test.arm_of(user).name if test.arm_of(user) else "control") for user in (f"u{n}" for n in range(60))}
    body = {"k": 5, "context": {"timestamp": NOW}}
    engines = {arm: Engine(load_retriever(bundle)) for arm, bundle in bundles.items()}
    versions = {arm: engine.model_version for arm, engine in engines.items()}
    for _ in range(2):
        calls = [{"user_id": user, **body} for user in arms]
        answers = client.post("/v1/recommend", json={"requests": calls}).json()["responses"]
        for user, answer in zip(arms, answers, strict=True):
            assert answer["experiment"] == {"name": "half", "arm": arms[user]}
            assert answer["model_version"] == versions[arms[user]]
    user = next(u for u, arm in arms.items() if arm == "b")
    (wanted,) = engines["b"].recommend([[RecommendRequest.model_validate({"user_id": user, **body})]])[0].answers
    found = client.ask(user_id=user, **body)
    assert [i["item_id"] for i in found["items"]] == wanted.item_ids
    np.testing.assert_allclose([i["score"] for i in found["items"]], wanted.scores, rtol=1e-4)
    for request_id in ("first", "second", "third", "fourth"):
        own = {"history": [{"item_id": "i3"}], **body}
        answer = client.post("/v1/recommend", json=own, headers={"X-Request-ID": request_id}).json()
        arm = test.arm_of(request_id)
        assert answer["experiment"]["arm"] == (arm.name if arm else "control")

    item = {"item_id": "for both", "title": "red shoe", "category": ["both arms"]}
    assert client.post("/v1/items", json={"items": [item]}).status_code == 200
    by_arm = {arm: user for user, arm in arms.items()}
    for user in by_arm.values():
        assert shown(client, user, filter={"category": ["both arms"]}) == ["for both"]
    assert client.delete("/v1/items/for both").status_code == 200
    for user in by_arm.values():
        assert shown(client, user, filter={"category": ["both arms"]}) == []

    buyers = [user for user, arm in arms.items() if arm == "b"][:7] + [u for u, arm in arms.items() if arm != "b"][:3]
    events = [{"user_id": user, "item_id": "i5", "action": "buy"} for user in buyers]
    assert (
        client.post_events(*events, {"user_id": "not in the test", "item_id": "i5", "action": "odd"}).status_code == 200
    )
    assert counted(client, "ctxrec_arm_events_total", 'arm="b"', 'action="buy"') == 7
    assert counted(client, "ctxrec_arm_events_total", 'action="other"') == 1
    assert counted(client, "ctxrec_arm_answers_total", f'version="{versions["b"]}"') > 2 * list(arms.values()).count(
        "b"
    )

    spec = EventsSpec(path="", action="action")

    def bought() -> int:
        files = list((Path(live) / "events").glob("*.parquet"))
        return sum(pq.read_table(f).column("action").to_pylist().count("buy") for f in files)

    wait_for(lambda: bought() >= 10)
    wait_for(lambda: len(read_exposures(str(live / "exposures"))) > 2 * len(arms))
    name, exposures = choose_experiment(read_exposures(str(live / "exposures")), "half")
    observed = attribute(exposures, read_log(str(live / "events"), spec), window_s=3600)
    made = report(observed, experiment=name, window_s=3600)
    assert made["arms"]["b"]["events"]["buy"] == 7 and made["arms"]["control"]["events"]["buy"] == 3
    assert made["arms"]["b"]["versions"].keys() == {versions["b"]}
    assert {arm: made["arms"][arm]["users"] for arm in bundles} == {
        arm: list(arms.values()).count(arm) for arm in bundles
    }
    assert observed.num_left_out == 0 and observed.num_nameless >= 4
