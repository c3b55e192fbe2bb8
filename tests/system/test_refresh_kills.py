"""`ctxrec refresh` as people run it, killed by SIGKILL ten times in one round: the next call goes on, and publishes once.

Three kills come at drawn moments after the start, and one at a drawn moment of every stage. Somebody who follows the folder
as replicas do finds a whole version at every time.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refreshes import arrive, make_shop, quick, serve_first
from trainings import STARTED, command_env, lose_power
from watched_services import Service, running

from ctxrec.bundle import registry
from ctxrec.bundle.format import check_bundle
from ctxrec.core import storage
from ctxrec.core.run_paths import ModelsPaths, RefreshPaths
from ctxrec.experiments.ab_test import read_experiment

STAGES = ("prepare", "train", "gate", "complete", "canary", "publish", "watch")
STARTS, WATCH_S = 3, 12


@pytest.fixture
def place(ray_cluster, tiny_encoder, tmp_path) -> Path:
    """A shop with a served version, and new events."""
    serve_first(make_shop(tmp_path / "shop"), tmp_path / "models", quick(tiny_encoder))
    arrive(tmp_path / "shop", 1)
    return tmp_path


class Shop(Service):
    """The service of the folder, whose users of an A/B test get the arm's version."""

    def __init__(self, models: str):
        super().__init__(lambda: registry.read_published(models).version, {})
        self.models, self.of_arms = models, 0

    def text(self) -> str:
        test = read_experiment(self.models)
        self.of_arms += 0 if test is None else 10
        arms = "" if test is None else f'ctxrec_arm_answers_total{{version="{test.arms[0].version}"}} {self.of_arms}\n'
        return super().text() + arms


class Follower:
    """Loads what is published and what a test gives out, again and again, as replicas do; keeps what fails."""

    def __init__(self, models: str):
        self.models, self.failed, self.loaded = models, [], []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.follow)

    def follow(self) -> None:
        while not self.stop.wait(0.05):
            try:
                test = read_experiment(self.models)
                versions = [registry.read_published(self.models).version]
                versions += [] if test is None else [arm.version for arm in test.arms]
                for version in versions:
                    if version not in self.loaded:
                        folder = registry.version_folder(self.models, version)
                        check_bundle(folder, scratch=storage.temporary_folder())
                        self.loaded.append(version)
            except Exception as error:
                self.failed.append(repr(error))

    def __enter__(self) -> Follower:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.mark.slow
def test_ten_sigkills_lose_nothing_and_it_publishes_once(place, wait_for_file: Callable[..., None]):
    models, state = str(place / "models"), RefreshPaths(str(place / "models" / "refresh")).state
    first, rng = registry.read_published(models), np.random.default_rng(0)
    reached = []
    with running(Shop(models)) as url, Follower(models) as follower:
        command = [sys.executable, "-m", "ctxrec.refresh", str(place / "shop" / "dataset.toml"), "--models", models]
        command += ["--watch", url, "--watch-s", str(WATCH_S), "--canary", "0.3"]

        def started() -> subprocess.Popen[bytes]:
            with open(place / "refresh.log", "ab") as sink:
                process = subprocess.Popen(command, stdout=sink, stderr=sink, env=command_env(), start_new_session=True)
            STARTED.append(process)
            return process

        for after_s in rng.uniform(0.5, 10, STARTS):
            process = started()
            time.sleep(after_s)
            lose_power(process)
        for stage in STAGES:
            process = started()
            wait_for_file(state, lambda text, stage=stage: f'"stage": "{stage}"' in text, process)
            time.sleep(0 if stage == "publish" else rng.uniform(0, 1))  # into the stage, where it lasts that long
            lose_power(process)
            reached.append(storage.read_json(state)["stage"])
            if stage != "publish":  # which takes milliseconds, so the kill comes before or after it is done
                assert (registry.read_published(models) != first) == (stage == "watch"), stage
        process = started()
        assert process.wait(300) == 0, (place / "refresh.log").read_text()[-3000:]
    done, now = storage.read_json(state), registry.read_published(models)
    assert done["number"] == 1 and done["outcome"] == "published" and now.version == done["candidate"]
    assert now.previous == (first.version,) and read_experiment(models) is None
    assert len(list((place / "models" / "versions").iterdir())) == 2, "nothing else was published, and no half is left"
    assert storage.read_json(ModelsPaths(models).decision(now.version))["outcome"] == "published"
    assert [STAGES.index(a) >= STAGES.index(b) for a, b in zip(reached, STAGES, strict=True)] == [True] * len(STAGES)
    assert not follower.failed and set(follower.loaded) == {first.version, now.version}


@pytest.fixture
def wait_for_file() -> Callable[..., None]:
    """Waits until a file's text fulfils a condition, while a process runs that should bring it about."""

    def wait(path: str, condition: Callable[[str], bool], process: subprocess.Popen[bytes]) -> None:
        stop_at = time.monotonic() + 300
        while not (Path(path).exists() and condition(Path(path).read_text())):
            assert process.poll() is None and time.monotonic() < stop_at, "it ended, or the stage never came"
            time.sleep(0.005)

    return wait
