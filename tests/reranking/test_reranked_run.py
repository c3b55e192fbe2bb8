"""The second stage of a really trained run: candidates without leaks, the command, evaluation, batch scoring."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import call

from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.data.requests import validation_requests
from ctxrec.evaluation.offline import open_data
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics
from ctxrec.reranking.rerank_driver import train_reranker
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.pre_validation import recommender_before_validation
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.reranker_files import load_reranker, save_reranker
from ctxrec.retrieval.retriever import load_retriever
from ctxrec.training.driver import train

OPTIONS = ("candidates=10", "max_tokens=32", "epochs=1", "batch_size=8")


def options_of(run: str, *overrides: str):
    base = f"{run}/config.toml"
    return load_config(None, [*(f"rerank.{option}" for option in OPTIONS), *overrides], base=base)


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> str:
    """A copy of the tiny run with a second stage from the command, its weight set to 10 and its head made anew, as
    what so small a run learns may be left out: it prefers what the retriever found last, and pairs at random."""
    folder = str(tmp_path_factory.mktemp("reranked") / "run")
    shutil.copytree(tiny_run, folder)
    given = [word for option in OPTIONS for word in ("--set", f"rerank.{option}")]
    done = call("ctxrec.rerank", "--run", folder, *given, "--set", "train.workers=2")  # on Ray
    assert done.returncode == 0, done.stderr
    assert "validation requests kept apart: NDCG@10" in done.stdout
    version = load_recommender(f"{folder}/bundle").model_version
    second = load_reranker(f"{folder}/reranker", model_version=version)
    assert second.gain["requests"] > 0 and second.candidates == 10
    assert (second.weight == 0) == ("nothing gained" in done.stdout)
    second.weight = 10.0
    torch.manual_seed(0)
    torch.nn.init.normal_(second.network.head.weight)
    with torch.no_grad():
        second.network.head.weight[:, -2:] = -1.0  # of the retriever's features
    save_reranker(f"{folder}/reranker", second)
    return folder


def test_candidates_come_from_a_model_that_has_not_seen_the_validation_events(tiny_run):
    data = open_data(tiny_run)
    before = recommender_before_validation(tiny_run, data)
    bundled = load_recommender(f"{tiny_run}/bundle")
    requests = validation_requests(data, 10_000)

    # Its towers are those that training validated: the same NDCG@10 to the last digits.
    towers = Recommender(
        config=before.config, spec=before.spec, features=before.features, towers=before._towers, items=before.items,
        item_vectors=before.item_vectors, histories=before.histories, model_version="towers alone",
    )  # fmt: skip
    top = top_k(towers.scores(requests), 10, requests.seen())
    ndcg = request_metrics(top, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()
    log = [json.loads(line) for line in (Path(tiny_run) / "train_log.jsonl").read_text().splitlines()]
    best = max(line["valid_ndcg@10"] for line in log if line["phase"] == "encoder" and "valid_ndcg@10" in line)
    assert ndcg == pytest.approx(best, abs=1e-3)

    # Its memory holds the training events alone: fewer pairs that follow each other than the bundle's.
    assert before.blend.memory.next_II.sum() < bundled.blend.memory.next_II.sum()
    assert np.array_equal(before.blend.weights_2K, bundled.blend.weights_2K)


def test_workers_of_ray_train_what_this_process_trains(run, tiny_run, tmp_path):
    made, data = str(tmp_path / "reranker"), open_data(tiny_run)
    here = train_reranker(tiny_run, data, options_of(tiny_run, "train.workers=0"), out=made)
    version = load_recommender(f"{run}/bundle").model_version
    on_ray, alone = (load_reranker(path, model_version=version) for path in (f"{run}/reranker", made))
    for of in (lambda gain: gain["gain"], lambda gain: {name: gain[name] for name in gain.keys() - {"gain"}}):
        assert of(on_ray.gain) == pytest.approx(of(here), abs=1e-6)
    weights = [dict(second.network.encoder.named_parameters()) for second in (on_ray, alone)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-3)
    assert not Path(f"{tiny_run}/reranking").exists(), "nothing to go on from is left"


def test_a_quick_model_gets_one_too(tiny_data, tiny_config, tmp_path):
    options = dataclasses.replace(tiny_config.train, preset="quick")
    folder = train(tiny_data, str(tmp_path / "run"), dataclasses.replace(tiny_config, train=options))
    gain = train_reranker(folder, open_data(folder), options_of(folder, "train.workers=0"))
    version = load_recommender(f"{folder}/bundle").model_version
    assert load_reranker(f"{folder}/reranker", model_version=version).gain == gain and gain["requests"] > 0


def test_evaluation_ranks_it_beside_the_model(run, tmp_path):
    from ctxrec.evaluation.comparison_table import format_table
    from ctxrec.evaluation.offline import evaluate_run

    config = load_config(None, ["rerank.use=true", "evaluate.bootstrap=50"], base=f"{run}/config.toml")
    metrics = evaluate_run(run, split="test", out=str(tmp_path), config=config)
    assert set(metrics["reranked"]) == set(metrics["model"]) and metrics["reranked"] != metrics["model"]
    facts = metrics["rerank"]
    assert facts["gain"]["mean"] == pytest.approx(-metrics["paired"]["reranked"]["ndcg@10"]["mean"])
    assert facts["gain"]["mean"] == pytest.approx(
        metrics["reranked"]["ndcg@10"]["mean"] - metrics["model"]["ndcg@10"]["mean"]
    )
    assert facts["gain"]["low"] <= facts["gain"]["mean"] <= facts["gain"]["high"]
    for stage in ("retriever", "rerank"):
        assert 0 < facts["latency_ms"][stage]["median"] <= facts["latency_ms"][stage]["p95"]
    table = format_table(metrics)
    assert "ctxrec, re-ranked" in table and "the second stage adds NDCG@10" in table
    assert "ctxrec, re-ranked" in (tmp_path / "report.html").read_text()
    assert all("reranked" in entry for entry in metrics["slices"].values() if entry["requests"] and entry["model"])


def test_retrieval_and_batch_scoring_use_it(run, tmp_path):
    from ctxrec.retrieval.batch_scoring import recommend

    plain, both = load_retriever(run), load_retriever(run, rerank=True)
    raw = [RawRequest(user_id=f"u{n}", timestamp=1_700_000_000.0) for n in range(6)]
    requests, _ = plain.recommender.make_requests(raw)
    first, second = plain.top_k(requests, 10), both.top_k(requests, 10)
    for (items, scores), (again, dealt) in zip(first, second, strict=True):
        assert sorted(items.tolist()) == sorted(again.tolist()) and dealt.tolist() == scores.tolist()
    assert any(items.tolist() != again.tolist() for (items, _), (again, _) in zip(first, second, strict=True))
    short = both.top_k(requests, 3)
    assert [items.tolist() for items, _ in short] == [items[:3].tolist() for items, _ in second]

    asked = pa.table({"request_id": range(6), "user_id": [r.user_id for r in raw], "timestamp": [1_700_000_000.0] * 6})
    pq.write_table(asked, tmp_path / "r.parquet")
    config = load_config(None, ["rerank.use=true"], base=f"{run}/bundle/config.toml")
    recommend(run, str(tmp_path / "r.parquet"), str(tmp_path / "o.parquet"), k=3, config=config)
    answers = pq.read_table(tmp_path / "o.parquet").column("item_ids").to_pylist()
    assert answers == [both.item_ids(items) for items, _ in short]

    # A column of the requests decides for its rows, and what is null there is as the options say.
    said = [True, False, None, True, False, None]
    pq.write_table(asked.append_column("rerank", pa.array(said)), tmp_path / "r.parquet")
    recommend(run, str(tmp_path / "r.parquet"), str(tmp_path / "o.parquet"), k=3)
    answers = pq.read_table(tmp_path / "o.parquet").column("item_ids").to_pylist()
    for n, answer in enumerate(answers):
        assert answer == both.item_ids((second if said[n] else first)[n][0][:3])
    pq.write_table(asked.append_column("rerank", pa.array(["yes"] * 6)), tmp_path / "r.parquet")
    with pytest.raises(UserError, match=r"column 'rerank' is string; expected true, false or null"):
        recommend(run, str(tmp_path / "r.parquet"), str(tmp_path / "o.parquet"), k=3)


def test_a_column_that_asks_for_a_second_stage_that_is_not_there_is_named(tiny_run, tmp_path, caplog):
    from ctxrec.retrieval.batch_scoring import recommend

    columns = {"request_id": [1], "user_id": ["u1"], "timestamp": [1_700_000_000.0], "rerank": [True]}
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    assert recommend(tiny_run, str(tmp_path / "r.parquet"), str(tmp_path / "o.parquet"), k=3) == 1
    assert "the column rerank has no effect: the model has no second stage" in caplog.text


def test_without_a_second_stage_the_option_is_refused(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"no reranker at .*train one with ctxrec rerank"):
        load_retriever(tiny_run, rerank=True)


def test_what_it_needs_is_said(tiny_run, tmp_path):
    data = open_data(tiny_run)
    with pytest.raises(UserError, match=r"neither rerank\.encoder nor encoder\.name is set"):
        train_reranker(tiny_run, data, options_of(tiny_run, "encoder.name="))
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("best-*"))
    with pytest.raises(UserError, match=r"has no best-towers\.safetensors.*Train again"):
        train_reranker(str(tmp_path / "run"), data, options_of(tiny_run))
