"""The training of the second stage by itself: what it holds out, what it learns, when it stays."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from second_stages import NUM_CANDIDATES, NUM_ITEMS, OPTIONS, titles
from second_stages import fresh as fresh  # a fixture, as the two below
from second_stages import requests as requests
from second_stages import world as world
from tolerance import assert_same_scores

from ctxrec.core import storage
from ctxrec.core.config import load_config
from ctxrec.core.errors import Stopped, UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.tensor_files import write_tensors
from ctxrec.reranking.fresh_reranker import make_reranker
from ctxrec.reranking.rerank_candidates import Examples, TrainingPairs
from ctxrec.reranking.rerank_driver import divided
from ctxrec.reranking.rerank_outcome import Outcome, summary
from ctxrec.reranking.rerank_params import RerankTrainingParams
from ctxrec.reranking.rerank_worker import RerankTraining, epochs_of
from ctxrec.retrieval.request_texts import request_texts
from ctxrec.retrieval.reranker_files import load_reranker, save_reranker
from ctxrec.training import faults
from ctxrec.training.local_job import run_here

FAST = RerankTrainingParams(head_lr=2e-2)
WANTED = ("shoe", "coat", "chair")  # words of the items that the planted signal makes users take


@pytest.fixture(scope="module")
def config(tiny_encoder):
    given = [f"encoder.name={tiny_encoder}", "train.workers=0", *(f"rerank.{option}" for option in OPTIONS)]
    return load_config(None, given)


def make_reranker_like(fresh, config, world):
    return make_reranker(config.encoder.name, world.catalogue.texts, config, model_version=fresh.model_version)


def examples_where(world, requests, takes) -> Examples:
    """Candidates at random with scores of no meaning; `takes(items)` says which one of them was taken."""
    rng, found, hits = np.random.default_rng(1), [], []
    for _ in range(len(requests)):
        items = rng.choice(NUM_ITEMS, NUM_CANDIDATES, replace=False)
        found.append((items, np.sort(rng.normal(size=NUM_CANDIDATES)).astype(np.float32)[::-1].copy()))
        hits.append(np.arange(NUM_CANDIDATES) == takes(rng, items))
    targets = np.array([items[hit][0] for (items, _), hit in zip(found, hits, strict=True)], np.int32)
    offsets = np.arange(len(requests) + 1)
    return Examples(dataclasses.replace(requests, target_offsets=offsets, target_items=targets), found, hits)


def is_wanted(world, items) -> np.ndarray:
    return np.array([any(word in world.catalogue.texts[item] for word in WANTED) for item in items])


def of_wanted_text(world):
    def takes(rng, items) -> int:
        wanted = np.flatnonzero(is_wanted(world, items))
        return int(rng.choice(wanted)) if len(wanted) else 0

    return takes


def trained(world, fresh, config, examples: Examples, work: Path, callbacks=()) -> dict:
    """Train on three fifths of the examples in this process, decide by the others; returns the gain."""
    order = np.random.default_rng(0).permutation(len(examples))
    train, rest = examples.take(order[: 3 * len(order) // 5]), examples.take(order[3 * len(order) // 5 :])
    said = request_texts(train.requests, world.features, titles(world), history_items=fresh.history_items)
    pairs = TrainingPairs.of(train, fresh.reader.plain(said, config.rerank.max_tokens), fresh.items)
    kept = RunPaths(str(work)).checkpoints
    job = {"config": config.to_dict(), "run": str(work)}
    job |= {"pairs": f"{kept}/pairs.safetensors", "weights": f"{kept}/epoch-{{epoch}}.safetensors"}
    if not storage.exists(job["pairs"]):
        write_tensors(job["pairs"], pairs.tensors())

    def worker(job, place, report) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            RerankTraining(job, place, report, scratch, FAST).run()

    run_here(job, config, callbacks, worker=worker)
    outcome = Outcome(fresh, world.features, titles(world), seed=0)
    return outcome.decide(epochs_of(job["weights"], config.rerank.epochs), *divided(rest, seed=0))


def test_it_learns_a_planted_signal_and_survives_saving(world, requests, fresh, config, tmp_path):
    examples = examples_where(world, requests, of_wanted_text(world))
    gain = trained(world, fresh, config, examples, tmp_path / "work")
    assert gain["gain"]["low"] > 0.1 and gain["reranked"] > gain["retriever"] + 0.1 and gain["weight"] > 0
    assert "use it with" in summary(gain)
    part = requests.take(np.arange(20))
    found = examples.found[:20]
    wanted, first, first_before = 0, 0, 0
    for (items, _), (new, _) in zip(
        found, fresh.rerank(part, found, 1, features=world.features, titles=titles(world)), strict=True
    ):
        wanted += is_wanted(world, items).any()
        first += is_wanted(world, new).all()
        first_before += is_wanted(world, items[:1]).all()
    assert first >= 0.6 * wanted > 0.4 * wanted > first_before

    save_reranker(str(tmp_path / "reranker"), fresh)
    loaded = load_reranker(str(tmp_path / "reranker"), model_version=fresh.model_version)
    assert loaded.weight == fresh.weight and loaded.gain == gain
    says = [r.logits(part, found, features=world.features, titles=titles(world)) for r in (fresh, loaded)]
    np.testing.assert_allclose(np.concatenate(says[1]), np.concatenate(says[0]), atol=1e-5)
    kinds = {Path(name).suffix for name in storage.local_files(str(tmp_path / "reranker"))}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt"}, "nothing that could run"


def test_where_nothing_is_gained_the_retriever_stays(world, requests, fresh, config, tmp_path):
    examples = examples_where(world, requests, lambda rng, items: 0)  # what the retriever puts first is taken
    config = dataclasses.replace(config, rerank=dataclasses.replace(config.rerank, epochs=1))
    gain = trained(world, fresh, config, examples, tmp_path / "work")
    assert gain["weight"] == fresh.weight == 0 and gain["gain"]["mean"] <= 0 and "nothing gained" in summary(gain)
    torch.nn.init.normal_(fresh.network.head.weight)
    part = requests.take(np.arange(4))
    again = fresh.rerank(part, examples.found[:4], 5, features=world.features, titles=titles(world))
    for (items, scores), (new, new_scores) in zip(examples.found, again, strict=False):
        assert new.tolist() == items[:5].tolist()
        assert_same_scores(new_scores, scores[:5])


class StopsAtFirst:
    """Asks the training to end when its first checkpoint is saved, as SIGTERM does."""

    def __init__(self, work: Path) -> None:
        self.stop = f"{RunPaths(str(work)).checkpoints}/stop"

    def after_report(self, **_) -> None:
        storage.write_text(self.stop, "")


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(world, requests, fresh, config, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_LOOK_EVERY_S", 0.0)  # else a quick machine is through before the second look
    examples = examples_where(world, requests, of_wanted_text(world))
    config = dataclasses.replace(
        config,
        rerank=dataclasses.replace(config.rerank, epochs=1),
        train=dataclasses.replace(config.train, checkpoint_every=1),
    )
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    with pytest.raises(Stopped, match="the same command goes on"):
        trained(world, fresh, config, examples, cut, callbacks=[StopsAtFirst(cut)])
    assert not storage.exists(f"{RunPaths(str(cut)).checkpoints}/epoch-1.safetensors")
    trained(world, fresh, config, examples, cut)
    trained(world, make_reranker_like(fresh, config, world), config, examples, whole)
    (resumed,), (expected,) = (
        epochs_of(f"{RunPaths(str(w)).checkpoints}/epoch-{{epoch}}.safetensors", 1) for w in (cut, whole)
    )
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_is_one_line(world, requests, fresh, config, tmp_path):
    config = dataclasses.replace(config, rerank=dataclasses.replace(config.rerank, lr=1e30))
    with pytest.raises(UserError, match=r"the loss is nan at step \d+; lower rerank.lr \(1e\+30 now\)"):
        trained(world, fresh, config, examples_where(world, requests, of_wanted_text(world)), tmp_path / "work")
