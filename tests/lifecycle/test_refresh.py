"""A refresh as a whole: it publishes once, goes on after a kill at any moment, and leaves alone what others changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from commands import assert_users_mistake, call
from refreshes import arrive, make_shop, quick, serve_first
from shared_folders import shared_folder
from watched_services import FAST, Service, running

from ctxrec.bundle import all_events, registry
from ctxrec.core import schema, storage
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.core.run_paths import ModelsPaths, RefreshPaths
from ctxrec.experiments.ab_test import Arm, Experiment
from ctxrec.lifecycle import refresh_loop, rounds
from ctxrec.lifecycle.refresh_loop import Refresh, refresh
from ctxrec.retrieval.load import load_recommender


@pytest.fixture(scope="module")
def served_shop(ray_cluster, tiny_encoder, tmp_path_factory) -> Path:
    """A shop with a served version; `models` and `shop` lie in it."""

    def make(out: Path) -> None:
        serve_first(make_shop(out / "shop"), out / "models", quick(tiny_encoder))

    return Path(shared_folder(tmp_path_factory, "served-shop", make))


@pytest.fixture
def place(served_shop, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(served_shop, tmp_path / "place"))


def asked(place: Path, encoder: str, **changed) -> Refresh:
    spec = load_spec(str(place / "shop" / "dataset.toml"))
    made = Refresh(models=str(place / "models"), work=str(place / "work"), spec=spec, config=quick(encoder))
    return dataclasses.replace(made, **changed)


def card(models: str, version: str) -> dict:
    return storage.read_json(ModelsPaths(models).decision(version))


def test_new_events_are_published_once(place, tiny_encoder):
    job = asked(place, tiny_encoder)
    before = registry.read_published(job.models)
    arrive(place / "shop", 1)
    done = refresh(job)
    assert done.outcome == "published" and registry.read_published(job.models).version == done.candidate
    assert registry.read_published(job.models).previous == (before.version,)
    said = card(job.models, done.candidate)
    assert said["publish"] and said["outcome"] == "published" and said["served"] == before.version
    assert (
        card(job.models, done.judged)["outcome"] == f"published as {done.candidate}" and done.judged in said["judged"]
    )
    histories = load_recommender(registry.version_folder(job.models, done.candidate)).histories
    assert (histories.split != schema.TEST).all(), "what is served knows the newest events"
    page = Path(ModelsPaths(job.models).decision(done.candidate)).with_suffix(".html").read_text()
    assert "published" in page and "lost items" in page
    again = refresh(job)
    assert again.number == 2 and again.outcome == "nothing new"
    assert registry.read_published(job.models).since > before.since


class Killed(BaseException):
    """In the place of a SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", range(7))
def test_a_killed_refresh_goes_on_and_publishes_once(place, tiny_encoder, monkeypatch, write, moment):
    """It is killed before or after each write of its state: begin, train, gate, complete, canary, publish, done."""
    job = asked(place, tiny_encoder)
    first = registry.read_published(job.models).version
    arrive(place / "shop", 1)
    real, published = rounds.write, []
    counted = []

    def dies(work, state):
        counted.append(state.stage)
        if len(counted) == write + 1:
            if moment == "after":
                real(work, state)
            raise Killed
        real(work, state)

    publish = registry._write
    monkeypatch.setattr(registry, "_write", lambda models, now: published.append(now.version) or publish(models, now))
    monkeypatch.setattr(rounds, "write", dies)
    with pytest.raises(Killed):
        refresh(job)
    monkeypatch.setattr(rounds, "write", real)
    done = refresh(job)
    if write == 6 and moment == "after":  # it was done: the next call finds nothing new
        assert done.number == 2 and done.outcome == "nothing new"
    else:
        assert done.number == 1 and done.outcome == "published"
    assert len(published) == 1 and registry.read_published(job.models).previous == (first,)


def test_what_somebody_changed_meanwhile_stays(place, tiny_encoder, monkeypatch):
    """Killed after it published; somebody rolls back; the same command does not publish it again."""
    job = asked(place, tiny_encoder)
    first = registry.read_published(job.models).version
    arrive(place / "shop", 1)
    monkeypatch.setattr(refresh_loop, "_ended", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        refresh(job)
    monkeypatch.undo()
    assert registry.roll_back(job.models).version == first
    done = refresh(job)
    assert done.outcome == "superseded" and registry.read_published(job.models).version == first


def test_where_the_newest_events_break_a_gate_what_was_judged_is_published(place, tiny_encoder, monkeypatch):
    """The memory of all events is spoilt on its way: its pairs are lost."""
    job, real = asked(place, tiny_encoder), all_events.fit_memory
    arrive(place / "shop", 1)

    def spoilt(*args, **kwargs):
        made = real(*args, **kwargs)
        nothing = made.popularity_I * 0
        return dataclasses.replace(
            made,
            cooccurrence_II=made.cooccurrence_II * 0,
            next_II=made.next_II * 0,
            popularity_I=nothing,
            recent_I=nothing,
        )

    monkeypatch.setattr(all_events, "fit_memory", spoilt)
    done = refresh(job)
    assert done.outcome == "published" and not done.judged
    said = card(job.models, done.candidate)
    assert said["outcome"] == "published" and "NDCG@10" in said["without_the_newest_events_because"]
    histories = load_recommender(registry.version_folder(job.models, done.candidate)).histories
    assert (histories.split == schema.TEST).any()


def test_a_refused_candidate_is_told_and_not_tried_again(place, tiny_encoder):
    job = asked(place, tiny_encoder)
    served = registry.read_published(job.models).version
    arrive(place / "shop", 1)
    (place / "shop" / "events" / "0.parquet").unlink()
    done = refresh(job)
    assert done.outcome == "refused" and registry.read_published(job.models).version == served
    assert not card(job.models, done.candidate)["publish"]
    assert refresh(job).outcome == "nothing new"


def test_one_refresh_at_a_time_and_something_must_be_served(place, tiny_encoder, tmp_path):
    from ctxrec.core.folder_lock import only_here

    job = asked(place, tiny_encoder)
    with only_here(job.work), pytest.raises(UserError, match="another command writes"):
        refresh(job)
    storage.write_text(RefreshPaths(job.work).state, '{"number": "x"}')
    with pytest.raises(UserError, match="begins a new round"):
        refresh(job)
    ended = call("ctxrec.refresh", str(place / "shop" / "dataset.toml"), "--models", str(tmp_path / "none"))
    assert_users_mistake(ended, "nothing is published", "ctxrec publish")


def test_a_canary_needs_users_to_watch_and_no_other_test(place, tiny_encoder):
    job = asked(place, tiny_encoder, canary=0.1)
    with pytest.raises(UserError, match="needs --watch URL"):
        refresh(job)
    with pytest.raises(UserError, match="share of the users above 0 and below 1"):
        refresh(dataclasses.replace(job, canary=1.5, watch="http://localhost:1"))
    test = Experiment(name="spring", arms=(Arm(name="a", version="b" * 12, share=0.5),))
    storage.write_json(ModelsPaths(job.models).experiment, dataclasses.asdict(test))
    with pytest.raises(UserError, match="runs the A/B test 'spring'; end it"):
        refresh(dataclasses.replace(job, watch="http://localhost:1"))
    assert not storage.exists(RefreshPaths(job.work).state), "nothing has begun"


@pytest.mark.parametrize("errors", [0, 8])
def test_a_version_that_fails_in_service_is_rolled_back(place, tiny_encoder, errors):
    """Of 48 calls of the new version 8 fail; the served version comes back, and the card says why."""
    job = asked(place, tiny_encoder, watch_s=120.0 if errors else 1.0, guards=FAST)
    first = registry.read_published(job.models).version
    arrive(place / "shop", 1)

    def serves() -> str:
        return registry.read_published(job.models).version

    class Failing(dict):
        def get(self, version, default=None):
            return {} if version == first else {"errors": float(errors)}

    with running(Service(serves, Failing())) as url:
        done = refresh(dataclasses.replace(job, watch=url))
    said = card(job.models, done.candidate)
    if errors:
        assert done.outcome == said["outcome"] == "rolled back" and "calls fail" in said["guard"]
        assert registry.read_published(job.models) == registry.Published(first, ())
    else:
        assert done.outcome == "published" and said["guard"] == "" and "answers" in said["watched"]
    with pytest.raises(UserError, match="leave --watch out"):
        refresh(dataclasses.replace(job, watch=url))


def test_a_full_model_is_trained_on(ray_cluster, tiny_encoder, tiny_config, tmp_path):
    """The candidate starts from the served towers, in one phase; the card says so, whatever the gates decide."""
    config = dataclasses.replace(
        tiny_config,
        encoder=dataclasses.replace(tiny_config.encoder, tune="freeze"),
        train=dataclasses.replace(tiny_config.train, tower_epochs=1, global_batch_size=64),
    )
    shop, models = make_shop(tmp_path / "shop"), tmp_path / "models"
    serve_first(shop, models, config)
    arrive(shop, 1)
    job = Refresh(
        models=str(models), work=str(tmp_path / "work"), spec=load_spec(str(shop / "dataset.toml")), config=config
    )
    done = refresh(job)
    assert done.warm and done.outcome in ("published", "refused")
    assert card(job.models, done.candidate)["warm_start"] is True
    run = RefreshPaths(job.work).run(done.number)
    lines = (Path(run) / "train_log.jsonl").read_text().splitlines()
    assert lines and all('"phase": "refit"' in line for line in lines)
    assert read_run_manifest(run)["warm_start"].startswith(job.models)
