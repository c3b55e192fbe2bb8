"""Ablations and SASRec: one change each, trained by the same code, reused when they are there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from ctxrec.core.config import Config, load_config
from ctxrec.core.errors import UserError
from ctxrec.evaluation.ablations import FROZEN, NAMES, SASREC, SASREC_OPTIONS, WITHOUT, ablated, parse_names


def changed_options(before: Config, after: Config) -> set[str]:
    return {
        f"{section.name}.{option.name}"
        for section in dataclasses.fields(Config)
        for option in dataclasses.fields(getattr(before, section.name))
        if getattr(getattr(before, section.name), option.name) != getattr(getattr(after, section.name), option.name)
    }


@pytest.mark.parametrize("name", NAMES[:-1])
def test_an_ablation_changes_its_sources_alone(name):
    config = load_config(None, ["model.dim=32", "train.workers=2", "train.seed=7"])
    assert NAMES[-1] == SASREC
    assert changed_options(config, ablated(config, name)) == {"encoder.tune" if name == FROZEN else "model.sources"}
    assert ablated(config, name).model.dim == 32


def test_a_source_that_the_run_has_not_is_not_added():
    config = load_config(None, ['model.sources=["text", "id", "user"]'])
    assert {name: ablated(config, name).model.sources for name in WITHOUT} == {
        "text_only": ("text", "user"),
        "id_only": ("id", "user"),
        "no_context": ("text", "id", "user"),
    }
    with pytest.raises(UserError, match=r"model\.sources is \[\]; expected at least one"):
        ablated(load_config(None, ['model.sources=["id"]']), "text_only")


def test_each_ablation_leaves_a_model():
    text_only, id_only, no_context = (ablated(Config(), name).model for name in ("text_only", "id_only", "no_context"))
    assert text_only.sources == ("text", "context", "user")
    assert id_only.sources == ("id", "context", "user", "memory")
    assert no_context.sources == ("text", "media", "id", "features", "user", "memory")


def test_sasrec_is_the_same_whatever_the_run_was():
    """Every option of model that its result depends on is set by the preset; workers and seed are the run's."""
    plain = ablated(Config(), "sasrec")
    other = load_config(
        None,
        [
            "model.dim=32",
            "model.backbone=gru",
            "model.history=7",
            "train.tower_lr=0.1",
            "train.loss=bce",
            "train.seed=3",
        ],
    )
    assert ablated(other, "sasrec").model == plain.model
    assert changed_options(plain, ablated(other, "sasrec")) == {"train.seed"}
    assert plain.model.sources == ("id",)
    model_options = {f"model.{option.name}" for option in dataclasses.fields(plain.model)}
    assert model_options <= set(SASREC_OPTIONS), "a new option of the model must have its value for SASRec"


def test_names_are_checked():
    assert parse_names("all") == NAMES
    assert parse_names("sasrec,sasrec, id_only") == ("sasrec", "id_only")
    with pytest.raises(UserError, match="unknown ablation 'ids'; expected some of text_only, id_only"):
        parse_names("ids")


@pytest.mark.parametrize("names", [("id_only",), pytest.param(("id_only", "sasrec"), marks=pytest.mark.slow)])
def test_ablations_are_trained_once_and_evaluated_beside_the_model(tiny_run, tmp_path, monkeypatch, names):
    from ctxrec.evaluation.offline import evaluate_run
    from ctxrec.retrieval.load import load_recommender

    monkeypatch.setitem(SASREC_OPTIONS, "train.tower_epochs", 4)  # it is about the way, not the accuracy
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    saved = run / "config.toml"
    saved.write_text(saved.read_text().replace("workers = 2", "workers = 0"))  # the same training, started sooner
    config = Config()
    metrics = evaluate_run(str(run), config=config, ablations=names)
    assert set(metrics["ablations"]) == {"id_only"}
    entries = [metrics["ablations"]["id_only"]]
    if "sasrec" in names:
        entries.append(metrics["baselines"]["sasrec"])
    assert all(set(entry) == set(metrics["model"]) for entry in entries)
    assert set(names) <= set(metrics["paired"])
    widths = [load_recommender(str(folder / "bundle")).widths for folder in (run, run / "ablations/id_only")]
    assert [len(w) for w in widths] == [2, 1]  # the content head is gone with the text
    page = (run / "report.html").read_text()
    assert "ctxrec, IDs only" in page and ("SASRec" in page) == ("sasrec" in names)

    trained = load_recommender(str(run / "ablations" / "id_only" / "bundle"))
    original = load_config(str(saved))
    assert original.train.workers == trained.config.train.workers == 0
    assert changed_options(original, trained.config) == {"model.sources"}
    if "sasrec" in names:
        sasrec = load_recommender(str(run / "ablations" / "sasrec" / "bundle")).config
        assert sasrec.model.dim == 64 and sasrec.train.workers == original.train.workers

    before = {p: p.stat().st_mtime_ns for p in Path(run, "ablations").rglob("*") if p.is_file()}
    again = evaluate_run(str(run), config=config, ablations=names[-1:])
    assert {p: p.stat().st_mtime_ns for p in before} == before, "reused"
    if "sasrec" in names:
        assert again["baselines"]["sasrec"] == metrics["baselines"]["sasrec"]
        assert again["ablations"] == {}, "only what was asked for"
    else:
        assert again["ablations"] == metrics["ablations"]
