"""A replica without HTTP and without Ray Serve: an A/B test begins, changes and ends while it answers."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable

import pytest
from prometheus_client import values

from ctxrec.bundle.registry import find_bundle, publish
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import ModelsPaths
from ctxrec.experiments import ab_test
from serve.api import RecommendRequest
from serve.arguments import AppArgs
from serve.replica import Replica
from serve.service_metrics import Metrics

USERS = [f"u{n}" for n in range(40)]


@pytest.fixture
def versions(tiny_run, make_variant, tmp_path) -> dict[str, str]:
    """Bundles by version; the first is the tiny run's."""
    first = find_bundle(tiny_run)
    made = {storage.read_json(f"{first}/manifest.json")["model_version"]: first}
    for by in (1, 2, 3):
        folder = tmp_path / f"version{by}"
        made[make_variant(first, folder, by=by)] = str(folder)
    return made


def test_a_test_begins_changes_and_ends_while_its_control_is_swapped(versions, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))  # what a process of its own would keep
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    models, (a, b, c, broken) = str(tmp_path / "models"), versions
    publish(versions[a], models)
    args = AppArgs(run=models, models_every_s=0.1, event_files_every_s=60, load_encoder=False).resolved()
    metrics = Metrics(str(tmp_path / "metrics"))
    replica = Replica(args, metrics, num_threads=1)
    body = {"k": 3, "context": {"timestamp": 1_700_000_000}}
    asked = [RecommendRequest.model_validate({"user_id": user, **body}) for user in USERS]

    async def by_arm() -> dict[str | None, set[str]]:
        """Versions of the answers by arm; users must be in the arms that the test says."""
        found: dict[str | None, set[str]] = {}
        for user, answer in zip(USERS, (await replica.recommend(asked, "r")).answers, strict=True):
            arm = answer.experiment[1] if answer.experiment else None
            found.setdefault(arm, set()).add(answer.model_version)
            if arm is not None and test is not None and answer.experiment[0] == test.name:
                said = test.arm_of(user)
                assert arm == (said.name if said else ab_test.CONTROL)
        return found

    async def becomes(wanted: dict[str | None, set[str]]) -> None:
        for _ in range(300):
            if (found := await by_arm()) == wanted:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"found {found}, wanted {wanted}")

    async def live() -> None:
        nonlocal test
        await becomes({None: {a}})
        test = ab_test.start(versions[b], models, name="t", arm="b", share=0.5)
        await becomes({"control": {a}, "b": {b}})
        publish(versions[c], models)  # the control is swapped, the arm stays
        await becomes({"control": {c}, "b": {b}})
        damaged = tmp_path / "models" / "versions" / broken
        shutil.copytree(versions[broken], damaged)
        (damaged / "items.parquet").write_bytes(b"PAR1")
        with pytest.raises(UserError, match=r"items\.parquet"):
            ab_test.start(None, models, name="t", arm="c", share=0.3, version=broken)
        more = dataclasses.replace(test, arms=(*test.arms, ab_test.Arm(name="c", version=broken, share=0.3)))
        storage.write_json(ModelsPaths(models).experiment, dataclasses.asdict(more))
        assert await refused(metrics.render)
        assert await by_arm() == {"control": {c}, "b": {b}}, "all stays as it is"
        publish(versions[b], models)  # the arm wins
        await becomes({"control": {b}, "b": {b}})
        ab_test.end(models)
        await becomes({None: {b}})

    test = None
    try:
        asyncio.run(live())
    finally:
        replica.close()
        metrics.close()


async def refused(render: Callable[[], bytes]) -> bool:
    for _ in range(300):
        if b'ctxrec_model_swaps_total{result="refused"} 1.0' in render():
            return True
        await asyncio.sleep(0.1)
    return False
