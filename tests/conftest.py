"""The fixtures and the two tiers of the tests: one real Ray cluster, a tiny real encoder, a tiny real data set and run.

A test is in the tier `system` if it lies in `tests/system`, if it uses the fixture `ray_cluster` (or one that does, as
`tiny_data` and `tiny_run`), or if it is marked so because it starts a process. All others are in the tier `unit`, which
runs first. The hook below marks them; nobody has to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # 15 by default, which leaves almost no time beside other busy processes
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from redis_servers import redis_server as redis_server  # a fixture
from shared_folders import shared_folder
from shop import make_dataset, make_encoder
from worlds import random_world

# The tests of each tier, and their seconds with fixtures, summed over the processes that ran them.
TIERS: dict[str, list[float]] = {"unit": [0, 0.0], "system": [0, 0.0]}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, tier in TIERS.items():
        if name in report.keywords:
            tier[0] += report.when == "call"
            tier[1] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    took = [f"{name} tier: {count} tests of {seconds:.0f} s" for name, (count, seconds) in TIERS.items() if count]
    if took:
        terminalreporter.write_line("; ".join(took))


SYSTEM_TESTS = Path(__file__).resolve().parent / "system"
SERVICE_TESTS = "tests/system/service/"  # in the names of its tests


def _is_system(item: pytest.Item) -> bool:
    uses_ray = "ray_cluster" in getattr(item, "fixturenames", ())
    return uses_ray or SYSTEM_TESTS in item.path.parents or item.get_closest_marker("system") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, Any, Any]:
    """Mark every test with its tier, and run the unit tier first.

    Where several processes run the tests, the longest files start first, so that no process ends long before another.
    """
    for item in items:
        item.add_marker("system" if _is_system(item) else "unit")
    result = yield  # pytest selects by mark and groups by fixture
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (SYSTEM_TESTS not in item.path.parents, not _is_system(item)))
    else:
        items.sort(key=_is_system)  # stable
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One of several processes runs all tests of a file, and all that share the one service."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrService(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "service" if nodeid.startswith(SERVICE_TESTS) else super()._split_scope(nodeid)

    return ByFileOrService(config, log)


@pytest.fixture(autouse=True)
def _a_unit_test_starts_no_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses Ray to the unit tier, so that the tier stays what it says."""
    if request.node.get_closest_marker("unit"):
        import ray

        def refuse(*_args: object, **_options: object) -> None:
            pytest.fail("this test starts Ray: it must ask for the fixture ray_cluster (or one that does)")

        monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray cluster of two CPUs for all tests that one process runs."""
    import ray

    from ctxrec.core import ray_cluster
    from serve.port_guard import set_proxy_environment

    set_proxy_environment()
    ray_cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    return str(shared_folder(tmp_path_factory, "encoder", make_encoder))


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory) -> str:
    return str(shared_folder(tmp_path_factory, "shop", make_dataset) / "dataset.toml")


@pytest.fixture(scope="session")
def tiny_data(ray_cluster, tiny_spec, tmp_path_factory) -> str:
    """The tiny data set, prepared; all processes read it, and none writes to it."""
    from ctxrec.core.config import Config
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    return str(shared_folder(tmp_path_factory, "data", lambda out: prepare(load_spec(tiny_spec), str(out), Config())))


@pytest.fixture(scope="session")
def tiny_config(tiny_encoder):
    """Options of a small training in one process, without dropout, so that other numbers of workers give the same."""
    from ctxrec.core.config import load_config

    return load_config(
        None,
        [
            f"encoder.name={tiny_encoder}",
            "encoder.top_layers=1",
            "model.dim=16",
            "model.history=10",
            "model.dropout=0",
            "model.id_dropout=0",
            "model.text_dropout=0",
            "model.action_heads=true",
            "train.workers=0",
            "train.zero_stage=0",
            "train.global_batch_size=16",
            "train.tower_epochs=2",  # two epochs, so that a checkpoint lies inside the phase
            "train.encoder_epochs=1",
            "train.encoder_lr=5e-3",  # rates at which the encoder's phase gains for sure
            "train.encoder_phase_tower_lr=4e-3",
            "train.max_failures=0",
            "train.precision=fp32",  # bf16 where a CPU has it would round what tests compare
        ],
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_config, tmp_path_factory) -> str:
    """A finished training on the tiny data set, with LoRA, in one process. Each process of the tests has its own copy."""
    from ctxrec.training.driver import train

    made = shared_folder(tmp_path_factory, "run", lambda out: train(tiny_data, str(out), tiny_config))
    return str(shutil.copytree(made, tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="session")
def told_run(ray_cluster, tiny_config, tmp_path_factory) -> str:
    """A short training on the shop whose users have several interests and a text about themselves."""
    import dataclasses

    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare
    from ctxrec.training.driver import train

    def make(out: Path) -> None:
        spec, data = make_dataset(out.with_name(out.name + "-shop"), told=True), str(out.with_name(out.name + "-data"))
        short = dataclasses.replace(tiny_config.train, tower_epochs=1, encoder_epochs=0)
        prepare(load_spec(spec), data, tiny_config)
        train(data, str(out), dataclasses.replace(tiny_config, train=short))

    return str(shutil.copytree(shared_folder(tmp_path_factory, "told", make), tmp_path_factory.mktemp("runs") / "told"))


@pytest.fixture(scope="session")
def make_world():
    """Makes a random data set of given history lengths; with `rich`, one with every kind of feature."""
    return random_world


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def make_variant():
    """Writes another version of a bundle: the same items and vectors, other weights, and so other scores."""

    def make(bundle: str, out: Path, *, by: float = 1.0) -> str:
        """Returns the new model version."""
        from safetensors.numpy import load_file, save_file

        from ctxrec.bundle.format import BUNDLE
        from ctxrec.core import manifest, storage
        from ctxrec.core.run_paths import BundlePaths

        shutil.copytree(bundle, out)
        blend = BundlePaths(str(out)).blend
        arrays = load_file(blend)
        change = np.linspace(0.2 * by, by, arrays["weights"].size, dtype=np.float32)
        arrays["weights"] = arrays["weights"] + change.reshape(arrays["weights"].shape)
        save_file(arrays, blend)
        kept = storage.read_json(BundlePaths(str(out)).manifest)
        files = manifest.hash_files(str(out))
        facts = {key: kept[key] for key in ("encoder", "data_fingerprint")}
        manifest.write_manifest(str(out), BUNDLE, files=files, model_version=manifest.version_of(files), **facts)
        return manifest.version_of(files)

    return make


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here (root alone may): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
