"""`train.preset = "quick"` from data to a served list, and on to a full training in the same folder."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import REPO
from test_layers import REFUSE
from tolerance import assert_same_scores

from ctxrec.core import schema, storage
from ctxrec.core.config import Config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.posted_rows import posted_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import validation_requests
from ctxrec.evaluation.ablations import parse_runs
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.retriever import load_retriever
from ctxrec.training.driver import describe_run, train
from serve.api import RecommendRequest
from serve.engine import load_engine


@pytest.fixture(scope="module")
def quick(tiny_config):
    return dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, preset="quick"))


@pytest.fixture(scope="module")
def quick_run(tiny_data, quick, tmp_path_factory) -> str:
    return train(tiny_data, str(tmp_path_factory.mktemp("runs") / "quick"), quick)


def test_a_quick_training_needs_neither_ray_nor_deepspeed(tiny_data, quick, quick_run, tmp_path):
    """It runs where Ray cannot be imported, makes the same model, and has not imported DeepSpeed."""
    (tmp_path / "quick.toml").write_text(to_toml(quick))
    (tmp_path / "job.py").write_text(
        "import sys\nfrom ctxrec.core.config import load_config\nfrom ctxrec.training.driver import train\n"
        f"train({tiny_data!r}, {str(tmp_path / 'run')!r}, load_config({str(tmp_path / 'quick.toml')!r}))\n"
        "assert 'deepspeed' not in sys.modules\n"
    )
    env = os.environ | {"PYTHONPATH": f"{REPO}:{tmp_path}"}
    command = [sys.executable, "-c", REFUSE, "ray", "job"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    versions = [
        storage.read_json(RunPaths(run).manifest)["model_version"] for run in (quick_run, str(tmp_path / "run"))
    ]
    assert versions[0] == versions[1]


def test_a_folder_where_another_command_trains_is_left_alone(tiny_data, quick, tmp_path):
    out = str(tmp_path / "run")
    with only_here(out), pytest.raises(UserError, match=r"another command writes into .*run now"):
        train(tiny_data, out, quick)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(UserError, match="holds the prepared data; expected another folder for the run"):
        train(tiny_data, tiny_data, quick)


def test_the_figure_that_is_told_is_that_of_the_blend_before_the_validation_events(tiny_data, quick_run):
    data = PreparedData.open(tiny_data)
    requests = validation_requests(data, 10_000)
    model = recommender_before_validation(quick_run, data)
    lists = top_k(model.scores(requests), 10, requests.seen())
    found = request_metrics(lists, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()
    told = storage.read_json(RunPaths(quick_run).manifest)["valid_ndcg@10"]
    assert_same_scores(told, found)
    assert f"; validation NDCG@10 {told:.4f}" in describe_run(quick_run)
    assert told > 0.2, "the log has a signal"


def test_the_service_answers_explains_and_takes_new_items(quick_run):
    engine = load_engine(quick_run, 4)
    bodies = [
        {"user_id": "u1", "k": 10, "context": {"timestamp": 1_700_000_000, "device": "tv"}, "explain": True},
        {"user_id": "nobody", "k": 10},
        {"history": [{"item_id": "i3"}, {"item_id": "i7"}], "k": 10, "diversity": 0.5},
    ]
    answers = engine.recommend([[RecommendRequest.model_validate(body) for body in bodies]])[0].answers
    assert [len(set(answer.item_ids)) for answer in answers] == [10, 10, 10]
    assert [answer.fallback for answer in answers] == [False, True, False]
    for why, score in zip(answers[0].why, answers[0].scores, strict=True):
        assert_same_scores(sum(why.sources.values()), score)
    assert len(engine.similar("i5", 5).item_ids) == 5
    retriever = engine.retriever
    rows = [{"item_id": "new", "title": "red shoe a", "category": ["group1"], "price": 3.0}]
    encoded = ItemEncoder(RunPaths(quick_run).bundle, retriever.recommender).encode(
        posted_table(rows, retriever.recommender.spec)
    )
    retriever.catalogue.put(encoded)
    assert "new" in engine.similar("i0", 41).item_ids, "the title of i0 is that of the new item"


def test_a_quick_run_is_evaluated_on_both_splits(quick_run, quick, tmp_path):
    for split in ("test", "valid"):
        metrics = evaluate_run(quick_run, split=split, out=str(tmp_path / split), config=quick)
        assert metrics["model"]["ndcg@10"]["mean"] > 2 * metrics["baselines"]["popularity"]["ndcg@10"]["mean"]
        assert (tmp_path / split / "report.html").exists()
        assert "context text" in metrics["knockouts"]


def test_another_run_ranks_the_same_requests_beside_a_run(tiny_run, quick_run, quick, tmp_path):
    alone = evaluate_run(quick_run, out=str(tmp_path / "quick"), config=quick)
    both = evaluate_run(tiny_run, out=str(tmp_path / "both"), config=quick, compare={"first try": quick_run})
    assert both["other_runs"] == {"run/first try": alone["model"]} and "other_runs" not in alone
    assert set(both["baselines"]) == set(alone["baselines"]), "another run is no baseline"
    gain = both["paired"]["run/first try"]["ndcg@10"]["mean"]
    assert gain == pytest.approx(both["model"]["ndcg@10"]["mean"] - alone["model"]["ndcg@10"]["mean"], abs=1e-12)
    row = next(line for line in format_table(both).splitlines() if line.startswith("first try "))
    assert f"{alone['model']['ndcg@10']['mean']:.4f}" in row and f"{gain:+.4f}" in row
    assert "first try" in (tmp_path / "both" / "report.html").read_text()


def test_another_run_must_be_of_the_same_data(tiny_run, quick_run, tmp_path):
    manifest = storage.read_json(RunPaths(quick_run).manifest)
    storage.write_json(RunPaths(str(tmp_path)).manifest, manifest | {"data_fingerprint": "0" * 64})
    with pytest.raises(UserError, match=r"has fingerprint .* was trained on 000000000000"):
        evaluate_run(tiny_run, config=Config(), compare={"other": str(tmp_path)})
    for given in (["quick"], ["=run"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(UserError, match="expected NAME=RUN"):
            parse_runs(given)


def test_texts_of_contexts_are_read_as_in_training_and_queries_too(tiny_data, quick_run):
    """The shop's contexts have texts: their weight is fitted, and the loaded model gives the scores of the fit."""
    data, model = PreparedData.open(tiny_data), load_recommender(RunPaths(quick_run).bundle)
    assert model.blend.heard == ("context text", "query")
    requests = validation_requests(data, 50)
    silent = dataclasses.replace(requests, context=dataclasses.replace(requests.context, text={}))
    with_text = np.array([bool(text) for text in requests.context.text["query"]])
    added = model.scores(requests) - model.scores(silent)
    assert with_text.any() and np.abs(added[with_text]).max(1).min() > 1e-4 and not added[~with_text].any()
    asked = dataclasses.replace(silent, query=np.full(len(silent), "red shoe", object))
    titles = data.items.column(schema.ITEM_TITLE).to_pylist()
    alike = np.array(["red" in title and "shoe" in title for title in titles])
    gain = model.scores(asked) - model.scores(silent)
    assert gain[:, alike].mean() > gain[:, ~alike].mean() + 0.5 * gain.std()


def test_a_quick_run_is_reused_and_keeps_its_folder_from_another_configuration(tiny_data, quick, quick_run, capsys):
    train(tiny_data, quick_run, quick)
    assert "reused" in capsys.readouterr().out
    other = dataclasses.replace(quick, model=dataclasses.replace(quick.model, history=7))
    with pytest.raises(UserError, match=r"another configuration: model\.history is 10 there and 7 here; give another"):
        train(tiny_data, quick_run, other)


def test_a_full_training_goes_on_in_the_folder_of_a_quick_one(tiny_data, quick, tiny_config, tmp_path):
    run = str(tmp_path / "run")
    tiny_config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, workers=0))
    train(tiny_data, run, quick)
    before = storage.read_json(RunPaths(run).manifest)
    for name in ("metrics", "report", "requests", "evaluated"):
        storage.write_text(getattr(RunPaths(run), name), "of the quick model")
    train(tiny_data, run, quick)
    assert storage.exists(RunPaths(run).report), "a run that is reused keeps its evaluation"
    # A full training that was cut off has written its options and nothing else: the next one is no "reused".
    storage.write_text(RunPaths(run).config, to_toml(tiny_config))
    assert load_recommender(RunPaths(run).bundle).widths == ()
    train(tiny_data, run, tiny_config)
    after = storage.read_json(RunPaths(run).manifest)
    assert (before["preset"], after["preset"]) == ("quick", "full")
    assert before["model_version"] != after["model_version"]
    assert not [
        name
        for name in ("metrics.json", "report.html", "requests.parquet", "evaluated.txt")
        if storage.exists(f"{run}/{name}")
    ]
    assert len(load_recommender(RunPaths(run).bundle).widths) == 2
    with pytest.raises(UserError, match=r"another configuration: train\.preset is 'full' there and 'quick' here"):
        train(tiny_data, run, quick)


def test_what_a_quick_training_cannot_do_is_one_line(tiny_data, quick, tmp_path):
    with pytest.raises(
        UserError, match=r"--profile traces the steps of a training, and train\.preset = 'quick' has none"
    ):
        train(tiny_data, str(tmp_path / "run"), quick, profile=True)
    without = dataclasses.replace(quick, model=dataclasses.replace(quick.model, sources=("text", "id")))
    with pytest.raises(UserError, match=r"model\.sources is \['text', 'id'\].*expected 'memory'"):
        train(tiny_data, str(tmp_path / "run"), without)


def test_a_log_without_validation_events_takes_set_weights(tiny_spec, quick, ray_cluster, tmp_path):
    from ctxrec.core.dataset_spec import load_spec
    from ctxrec.ingest.pipeline import prepare

    spec = load_spec(tiny_spec)
    spec = dataclasses.replace(spec, split=dataclasses.replace(spec.split, valid=0.0, test=0.0))
    data = prepare(spec, str(tmp_path / "data"), quick)
    assert data.meta["counts"]["valid"] == 0
    bare = dataclasses.replace(quick, encoder=dataclasses.replace(quick.encoder, name=""))
    run = train(data.path, str(tmp_path / "run"), bare)
    retriever = load_retriever(run)
    assert "valid_ndcg@10" not in storage.read_json(RunPaths(run).manifest)
    assert "text" not in retriever.recommender.blend.sources
    scores = retriever.recommender.blend.memory.popularity_I
    assert np.isfinite(scores).all() and data.items.column(schema.ITEM_ID).length() == len(scores)
