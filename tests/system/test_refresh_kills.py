"""`ctxrec refresh` as people run it, killed by SIGKILL in every stage of one round: the next call goes on, and publishes once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from refreshes import arrive, make_shop, quick, serve_first
from trainings import STARTED, command_env, lose_power
from watched_services import Service, running

from ctxrec.bundle import registry
from ctxrec.bundle.publish_lock import publishing
from ctxrec.core import storage
from ctxrec.core.run_paths import ModelsPaths, RefreshPaths

STAGES = ("prepare", "train", "gate", "complete", "publish", "watch")


@pytest.fixture
def place(ray_cluster, tiny_encoder, tmp_path) -> Path:
    """A shop with a served version, and new events."""
    serve_first(make_shop(tmp_path / "shop"), tmp_path / "models", quick(tiny_encoder))
    arrive(tmp_path / "shop", 1)
    return tmp_path


@contextlib.contextmanager
def held(stage: str, models: str) -> Iterator[None]:
    """The stage of publishing takes milliseconds; while somebody else changes the folder it waits."""
    with publishing(models) if stage == "publish" else contextlib.nullcontext():
        yield


@pytest.mark.slow
def test_a_sigkill_in_every_stage_loses_nothing_and_publishes_once(place, wait_for_file: Callable[..., None]):
    models, state = str(place / "models"), RefreshPaths(str(place / "models" / "refresh")).state
    first = registry.read_published(models)
    service = Service(lambda: registry.read_published(models).version, {})
    reached = []
    with running(service) as url:
        command = [sys.executable, "-m", "ctxrec.refresh", str(place / "shop" / "dataset.toml"), "--models", models]
        command += ["--watch", url, "--watch-s", "20"]

        def started() -> subprocess.Popen[bytes]:
            with open(place / "refresh.log", "ab") as sink:
                process = subprocess.Popen(command, stdout=sink, stderr=sink, env=command_env(), start_new_session=True)
            STARTED.append(process)
            return process

        for stage in STAGES:
            with held(stage, models):
                process = started()
                wait_for_file(state, lambda text, stage=stage: f'"stage": "{stage}"' in text, process)
                time.sleep(0.2)  # into the stage, where it lasts that long
                lose_power(process)
            reached.append(storage.read_json(state)["stage"])
            published = registry.read_published(models)
            assert (published != first) == (stage == "watch"), stage
        process = started()
        assert process.wait(300) == 0, (place / "refresh.log").read_text()[-3000:]
    done, now = storage.read_json(state), registry.read_published(models)
    assert done["number"] == 1 and done["outcome"] == "published" and now.version == done["candidate"]
    assert now.previous == (first.version,)
    assert len(list((place / "models" / "versions").iterdir())) == 2, "nothing else was published, and no half is left"
    assert storage.read_json(ModelsPaths(models).decision(now.version))["outcome"] == "published"
    assert [STAGES.index(a) >= STAGES.index(b) for a, b in zip(reached, STAGES, strict=True)] == [True] * len(STAGES)


@pytest.fixture
def wait_for_file() -> Callable[..., None]:
    """Waits until a file's text fulfils a condition, while a process runs that should bring it about."""

    def wait(path: str, condition: Callable[[str], bool], process: subprocess.Popen[bytes]) -> None:
        stop_at = time.monotonic() + 300
        while not (Path(path).exists() and condition(Path(path).read_text())):
            assert process.poll() is None and time.monotonic() < stop_at, "it ended, or the stage never came"
            time.sleep(0.005)

    return wait
