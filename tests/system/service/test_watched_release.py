"""A spoilt version that passed the gates by hand: users do not take what it lists, and the watch takes it back."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from refreshes import permute_ids, rewritten

from ctxrec.bundle import registry
from ctxrec.core import storage
from ctxrec.core.config import load_config
from ctxrec.core.run_paths import ModelsPaths, RefreshPaths, RunPaths
from ctxrec.experiments.ab_test import read_experiment
from ctxrec.lifecycle import rounds
from ctxrec.lifecycle.decision import Decision, write_card
from ctxrec.lifecycle.guards import WatchParams, hits_of
from ctxrec.lifecycle.refresh_loop import Refresh, refresh
from ctxrec.lifecycle.service_look import look
from ctxrec.lifecycle.watch import save_look

GUARDS = WatchParams(every_s=0.5, fewest=40, slower=100.0)  # the machine may be busy with other work
LONG_AGO = 1_000_000_000  # so that nothing of it is trending in the other tests of this service
HISTORIES = [[{"item_id": f"i{n}"}, {"item_id": f"i{n + 3}"}] for n in range(12)]


class Shoppers:
    """Requests of ever new users, each followed by an event of what the first version would have listed first."""

    def __init__(self, url: str, timeout: float):
        self.failed: list[str] = []
        self.versions: set[str] = set()
        self._stop, self._numbers = threading.Event(), itertools.count()
        self._url, self._timeout = url, timeout
        with httpx.Client(base_url=url, timeout=timeout) as client:
            answers = [client.post("/v1/recommend", json={"history": h, "k": 5}).json() for h in HISTORIES]
        self._wanted = [answer["items"][0]["item_id"] for answer in answers]

    def shop(self) -> None:
        with httpx.Client(base_url=self._url, timeout=self._timeout) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                user, which = f"shopper {time.time()} {number}", number % len(HISTORIES)
                asked = client.post("/v1/recommend", json={"user_id": user, "history": HISTORIES[which], "k": 5})
                event = {"user_id": user, "item_id": self._wanted[which], "timestamp": LONG_AGO}
                for answer in (asked, client.post("/v1/events", json={"events": [event]})):
                    if answer.status_code != 200:
                        self.failed.append(answer.text)
                if asked.status_code == 200:
                    self.versions.add(asked.json()["model_version"])

    def __enter__(self) -> Shoppers:
        self._pool = ThreadPoolExecutor(2)
        self._shopping = [self._pool.submit(self.shop) for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._shopping:
            each.result()
        self._pool.shutdown()


@pytest.mark.slow  # how much a permutation spoils differs from one training to the next, and the watch may take minutes
@pytest.mark.parametrize("canary", [0.4, 0.0])
def test_a_spoilt_version_is_taken_back_under_load(client, models, tmp_path, wait_for, canary):
    now, url, work = registry.read_published(models), str(client.base_url), str(tmp_path / "work")
    run = RefreshPaths(work).run(1)
    spoilt = rewritten(registry.find_bundle(models), Path(RunPaths(run).bundle), permute_ids)
    version = storage.read_json(f"{spoilt}/manifest.json")["model_version"]
    state = rounds.Round(
        number=1, stage="canary", served=now.version, served_since=now.since, started=time.time(), candidate=version
    )
    rounds.write(work, state)
    write_card(models, Decision(version, now.version, True, "by hand", []), name=version, facts={})
    save_look(RefreshPaths(work).look(1, "begin"), look(url))
    job = Refresh(
        models=models, work=work, spec=None, config=load_config(None, []), watch=url, watch_s=600.0, guards=GUARDS,
        canary=canary,
    )  # fmt: skip
    begin = look(url)
    with Shoppers(url, client.timeout.read) as shoppers:
        wait_for(lambda: hits_of(version, look(url).since(begin))[1][1] > 2 * GUARDS.fewest)
        done = refresh(job)
        wait_for(lambda: set(look(url).replicas) == {now.version})
    assert not shoppers.failed, shoppers.failed[:3]
    assert done.outcome == "rolled back" and shoppers.versions == {now.version, version}
    assert registry.read_published(models) == now and read_experiment(models) is None
    card = storage.read_json(ModelsPaths(models).decision(version))
    assert "first events after a list" in card["guard"] and card["outcome"] == "rolled back"
    hits = card["canary_service" if canary else "service"]["hits"]
    # Events after lists of the old version still come when the guard looks, so the share of the spoilt one falls by degrees.
    assert hits["others"] > 0.7 and hits["version"] < 0.9 * hits["others"]
