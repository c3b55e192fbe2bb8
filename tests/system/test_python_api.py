"""From tables to lists by `import ctxrec`, and every Python block of the README."""

from __future__ import annotations

import os
import re
import shutil

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from paths import REPO

import ctxrec
from ctxrec.core import storage
from ctxrec.core.run_paths import RunPaths
from ctxrec.retrieval.load import load_recommender


@pytest.fixture(scope="module")
def options(tiny_encoder) -> dict[str, object]:
    return {"encoder.name": tiny_encoder, "evaluate.bootstrap": 20}


@pytest.fixture(scope="module")
def tables(tiny_spec) -> dict[str, pd.DataFrame]:
    folder = os.path.dirname(tiny_spec)
    return {name: pq.read_table(f"{folder}/{name}.parquet").to_pandas() for name in ("events", "items", "users")}


@pytest.fixture(scope="module")
def model(ray_cluster, tables, options) -> ctxrec.Model:
    return ctxrec.fit(
        tables["events"],
        items=tables["items"],
        users=tables["users"],
        preset="quick",
        context=("device", "basket_value"),
        split={"strategy": "last"},
        options=options,
    )


def test_a_model_recommends_what_its_kind_of_table_holds(model):
    found = model.recommend("u1", k=5, context={"device": "tv"})
    assert isinstance(found, pd.DataFrame) and list(found.columns) == ["item_id", "score", "title"]
    assert len(found) == 5 and found.score.is_monotonic_decreasing and found.title.notna().all()
    group = model.recommend(history=["i4", "i8"], k=3, filter={"category": ["group0"]})
    assert set(group.item_id.str[1:].astype(int) % 4) == {0}
    assert "i8" in set(model.similar("i4", 8).item_id)


def test_the_report_shows_and_agrees_with_the_figures(model):
    evaluation = model.evaluate()
    assert evaluation["ndcg@10"] > evaluation.metrics["baselines"]["popularity"]["ndcg@10"]["mean"]
    assert "linear ensemble" in str(evaluation)
    report = model.report()
    assert report._repr_html_().startswith("<iframe srcdoc=") and "<html" in report.html


def test_a_saved_model_is_the_same_and_every_command_reads_it(model, tmp_path):
    path = model.save(str(tmp_path / "saved"))
    again = ctxrec.load(path)
    asked = {"k": 5, "context": {"timestamp": 1_700_000_000}}
    pd.testing.assert_frame_equal(again.recommend("u2", **asked), model.recommend("u2", **asked))
    assert storage.read_json(RunPaths(path).manifest)["data_path"] == os.path.join(path, "data")
    assert ctxrec.evaluate(path)["ndcg@10"] == pytest.approx(model.evaluate()["ndcg@10"], rel=1e-5)
    with pytest.raises(ctxrec.UserError, match="is there already"):
        model.save(path)


def test_the_steps_are_the_commands_and_full_goes_on_from_quick(tiny_spec, options, tmp_path, ray_cluster):
    data = ctxrec.prepare(tiny_spec, out=str(tmp_path / "data"), verbose=False)
    run = str(tmp_path / "run")
    quick = ctxrec.train(data, out=run, preset="quick", options=options, verbose=False)
    assert load_recommender(RunPaths(quick.run).bundle).widths == ()
    small = options | {
        "model.dim": 16,
        "train.workers": 0,
        "train.tower_epochs": 1,
        "train.encoder_epochs": 0,
        "train.refit": False,
    }
    full = ctxrec.train(str(tmp_path / "data"), out=run, options=small, verbose=False)
    assert len(load_recommender(RunPaths(full.run).bundle).widths) == 2
    assert len(ctxrec.load(run, kind="polars").recommend("u1", k=4)) == 4


def test_a_model_without_a_folder_goes_with_its_files(ray_cluster, tables, options):
    log = pl.from_pandas(tables["events"].rename(columns={"user_id": "who"}))
    model = ctxrec.fit(log, user="who", preset="quick", options=options, split={"test": 0}, verbose=False)
    assert isinstance(model.recommend("u1", k=2), pl.DataFrame)
    folder = os.path.dirname(model.run)
    assert os.path.isdir(folder)
    with pytest.raises(ctxrec.UserError, match="has no test events"):
        model.report()
    del model
    assert not os.path.exists(folder)


def test_every_python_block_of_the_readme_runs(ray_cluster, tiny_spec, tiny_encoder, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert blocks
    shutil.copytree(os.path.dirname(tiny_spec), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    fit = ctxrec.fit
    monkeypatch.setattr(
        "ctxrec.python_api.steps.fit",
        lambda *args, **given: fit(*args, **given, options={"encoder.name": tiny_encoder, "evaluate.bootstrap": 20}),
    )
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["model"], ctxrec.Model) and os.path.isdir("runs/first/bundle")
