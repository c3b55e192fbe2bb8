"""Evaluation of a really trained run on a real cluster, and what it says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import call

from ctxrec.core import schema
from ctxrec.core.config import Config, EvaluateConfig
from ctxrec.core.errors import UserError
from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import concat_requests, split_requests, validation_requests
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.diversity_tradeoff import format_tradeoff
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics
from ctxrec.retrieval.load import load_recommender


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory) -> tuple[dict, Path]:
    """Metrics and folder of the tiny run's test evaluation."""
    from ctxrec.evaluation.offline import evaluate_run

    out = tmp_path_factory.mktemp("evaluation")
    return evaluate_run(tiny_run, split="test", out=str(out), config=Config()), out


def data_of(run: str) -> PreparedData:
    return PreparedData.open(json.loads((Path(run) / "manifest.json").read_text())["data_path"])


def intervals(value: object) -> list[dict]:
    """All the {"mean", "low", "high"} below a value."""
    if isinstance(value, dict) and "mean" in value:
        return [value]
    return [i for v in value.values() for i in intervals(v)] if isinstance(value, dict) else []


def test_metrics_json_has_the_shape_of_the_contract(evaluated):
    metrics, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["split"] == "test" and metrics["requests"] > 0
    assert metrics["ablations"] == {} and metrics["seconds"]["total"] > 0
    wanted = {f"{name}@{k}" for name in ("hr", "recall", "mrr", "ndcg") for k in (5, 10, 20)}
    wanted |= {"coverage@10", "gini@10", "popularity@10", "novelty@10"}
    names = {"popularity", "popularity_7d", "markov", "itemknn", "ease", "als", "untuned_encoder", "ensemble"}
    assert set(metrics["baselines"]) == names
    for system in (
        metrics["model"],
        *metrics["baselines"].values(),
        metrics["frozen"],
        metrics["tuned"],
    ):
        assert set(system) == wanted
    for shuffled in ("shuffled_context", "shuffled_context_same_time"):
        assert set(metrics[shuffled]) == wanted | {"drop"}
        assert metrics[shuffled]["drop"]["mean"] == pytest.approx(
            1 - metrics[shuffled]["ndcg@10"]["mean"] / metrics["model"]["ndcg@10"]["mean"]
        )
    for interval in intervals(metrics):
        assert set(interval) in ({"mean", "low", "high"}, {"mean", "low", "high", "p"})
        assert interval["low"] <= interval["mean"] + 1e-12 and interval["mean"] <= interval["high"] + 1e-12
    expected = {"cold_items", "warm_items", "few_shot_items", "new_users", "history_1-5", "gender=F", "age=20"}
    expected |= {"device=tv", "month=September", "action=view", "action=buy"}
    assert expected <= set(metrics["slices"])
    for parts in (("gender=F", "gender=M", "gender missing"), ("device=tv", "device=phone")):
        assert sum(metrics["slices"][name]["requests"] for name in parts) == metrics["requests"]


def test_knock_outs_hide_one_source_of_the_same_model(evaluated, tiny_run):
    """Worked out here: the memory and the popularity by the weights alone, the texts by item vectors without them."""
    metrics, _ = evaluated
    manifest = json.loads((Path(tiny_run) / "manifest.json").read_text())
    assert (
        metrics["encoder"]["state"] == manifest["encoder"]
        and metrics["encoder"]["reason"] == manifest["encoder_reason"]
    )
    data, model = data_of(tiny_run), load_recommender(f"{tiny_run}/bundle")
    parts = [histories_from_table(data.read_bucket(b), data.features) for b in range(len(data.bucket_paths))]
    requests = concat_requests([split_requests(p, schema.TEST, repeats=False) for p in parts])
    seen, blend = requests.seen(), model.blend

    def ndcg(scores) -> float:
        found = request_metrics(top_k(scores, 20, seen), requests.target_offsets, requests.target_items, [10])
        return found["ndcg@10"].mean()

    assert metrics["knockouts"]["memory"]["ndcg@10"]["mean"] == pytest.approx(
        ndcg(model.queries(requests) @ model.vectors.T), abs=1e-6
    )
    queries = model.queries(requests)
    start = sum(model.widths) + blend.text_IC.shape[1]
    queries[:, start : start + 2] = 0
    plain = queries @ model.vectors.T + model.remembered(requests).toarray()
    assert metrics["knockouts"]["popularity"]["ndcg@10"]["mean"] == pytest.approx(ndcg(plain), abs=1e-6)
    for name, values in metrics["knockouts"].items():
        assert values["lost"]["mean"] == pytest.approx(
            metrics["model"]["ndcg@10"]["mean"] - values["ndcg@10"]["mean"]
        ), name
    assert metrics["knockouts"]["texts"]["ndcg@10"] != metrics["model"]["ndcg@10"]


def test_sharded_evaluation_equals_one_process(evaluated, tiny_run):
    from ctxrec.retrieval.load import load_recommender

    metrics, out = evaluated
    data, recommender = data_of(tiny_run), load_recommender(f"{tiny_run}/bundle")
    parts = [histories_from_table(data.read_bucket(b), data.features) for b in range(len(data.bucket_paths))]
    assert len(parts) > 1
    requests = concat_requests([split_requests(p, schema.TEST, repeats=False) for p in parts])
    seen = [requests.history.items[requests.history.row(n)] for n in range(len(requests))]
    top = top_k(recommender.scores(requests), 20, seen)
    expected = request_metrics(top, requests.target_offsets, requests.target_items, (5, 10, 20))
    assert metrics["requests"] == len(requests)
    for name, values in expected.items():
        assert metrics["model"][name]["mean"] == pytest.approx(values.mean(), abs=1e-9), name

    rows = {row["user_id"]: row for row in pq.read_table(out / "requests.parquet").to_pylist()}
    for n, user in enumerate(requests.users.ids):
        assert rows[user]["recommended"] == [recommender.item_ids[i] for i in top[n] if i >= 0]
        assert rows[user]["targets"] == [recommender.item_ids[i] for i in requests.targets(n)]
        assert rows[user]["ndcg@10"] == pytest.approx(expected["ndcg@10"][n])


def test_nothing_depends_on_actors_and_batches(evaluated, tiny_run, tmp_path):
    from ctxrec.evaluation.offline import evaluate_run

    config = Config(evaluate=EvaluateConfig(actors=2, batch_size=3))
    again = evaluate_run(tiny_run, split="test", out=str(tmp_path), config=config)
    # Products of other shapes round differently, which can only matter where two scores are equal to the last bit.
    for name, interval in evaluated[0]["model"].items():
        assert again["model"][name] == pytest.approx(interval, abs=1e-6), name
    assert again["baselines"]["popularity"] == evaluated[0]["baselines"]["popularity"]


def test_validation_requests_are_ranked_by_what_has_not_seen_them(tiny_run, tmp_path):
    """The bundle has: its memory knows what followed."""
    from ctxrec.evaluation.offline import evaluate_run, open_data
    from ctxrec.retrieval.pre_validation import recommender_before_validation

    metrics = evaluate_run(tiny_run, split="valid", out=str(tmp_path), config=Config())
    assert any(note.startswith("validation split: ctxrec is ranked as it was before") for note in metrics["notes"])
    data = open_data(tiny_run)
    requests = validation_requests(data, 10_000)
    assert metrics["requests"] == len(requests)

    def ndcg(recommender) -> float:
        top = top_k(recommender.scores(requests), 10, requests.seen())
        return request_metrics(top, requests.target_offsets, requests.target_items, [10])["ndcg@10"].mean()

    assert metrics["model"]["ndcg@10"]["mean"] == pytest.approx(ndcg(recommender_before_validation(tiny_run, data)))
    if metrics["encoder"]["state"] == "tuned":
        frozen = ndcg(recommender_before_validation(tiny_run, data, tuned=False))
    else:
        frozen = ndcg(recommender_before_validation(tiny_run, data))
    assert metrics["frozen"]["ndcg@10"]["mean"] == pytest.approx(frozen)
    assert metrics["tuned"] == metrics["model"], "on the validation split no system is refitted"
    hidden = {"texts", "memory", "sequence", "popularity", "context", "context text", "user attributes"}
    assert hidden <= set(metrics["knockouts"])
    assert ndcg(load_recommender(f"{tiny_run}/bundle")) != pytest.approx(metrics["model"]["ndcg@10"]["mean"], abs=1e-6)


def test_the_command_prints_the_table_and_takes_options(tiny_run, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[block]]\ncolumn = "category"\nany = ["group0"]\n')
    result = call("ctxrec.evaluate", 
        "--run", tiny_run, "--split", "valid", "--out", str(tmp_path / "out"),
        "--set", "evaluate.bootstrap=20", "--set", "evaluate.max_baseline_items=3",
        "--diversity", "0,1", "--rules", str(rules), "--set", "diversity.pool=40", "--set", "diversity.freshness=0.5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["split"] == "valid"
    assert format_table(metrics) in result.stdout
    assert (
        "ItemKNN, EASE and the ensemble left out: 40 items are more than evaluate.max_baseline_items (3)"
        in result.stdout
    )
    assert not {"ease", "itemknn"} & set(metrics["baselines"])
    arranged = metrics["diversity"]
    alone, together = ["diversity=freshness", "diversity=rules"], ["diversity=0", "diversity=1"]
    assert list(arranged) == ["model", *alone, *together] and not arranged.keys() & metrics["baselines"].keys()
    for system, entry in arranged.items():  # a quarter of the items is blocked by the rules
        blocked = system not in ("model", "diversity=freshness")
        assert (entry["coverage@10"]["mean"] <= 0.75) == blocked, system
    assert arranged["diversity=freshness"] != arranged["model"]
    assert arranged["model"]["ndcg@10 minus model"]["mean"] == 0
    assert arranged["model"]["ndcg@10"] == pytest.approx(metrics["model"]["ndcg@10"])
    # By content, as it was chosen by: lists of ten from the three groups that are left can hardly differ more in these.
    assert arranged["diversity=1"]["distance@10"]["mean"] > arranged["diversity=0"]["distance@10"]["mean"]
    assert all(0 < entry["distance@10/category"]["mean"] < 1 for entry in arranged.values())
    assert format_tradeoff(arranged) in result.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Diversity and rules" in page
    assert "http" not in page.replace("http-equiv", ""), "opens without a network"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "no finished run at nowhere"),
        ([], "neither --run nor --data is given"),
        (["--data", "nowhere", "--diversity", "0.3"], "--diversity needs --run"),
        (["--data", "nowhere"], "no prepared data at nowhere"),
        (["--data", "nowhere", "--ablations", "all"], "--ablations needs --run"),
        (["--run", "{run}", "--ablations", "no_text"], "unknown ablation 'no_text'; expected some of text_only"),
        (["--run", "{run}", "--data", "nowhere"], "no prepared data at nowhere"),
        (["--run", "{run}", "--set", "evaluate.ks=[5]"], "evaluate.ks is (5,); expected a list that has 10"),
        (["--run", "{run}", "--set", "evaluate.k=5"], "unknown key 'evaluate.k'; valid keys are ks"),
    ],
)
def test_mistakes_are_one_line_and_status_two(tiny_run, arguments, message):
    result = call("ctxrec.evaluate", *[a.replace("{run}", tiny_run) for a in arguments])
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_other_data_than_the_run_was_trained_on_is_refused(tiny_run, tmp_path):
    from ctxrec.evaluation.offline import evaluate_run

    manifest = json.loads((Path(tiny_run) / "manifest.json").read_text())
    manifest["data_fingerprint"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"has fingerprint .* was trained on 000000000000"):
        evaluate_run(str(tmp_path), split="test", config=Config())


def test_a_split_without_events_is_said(tiny_run, tmp_path):
    from ctxrec.evaluation.offline import evaluate_run

    data = data_of(tiny_run)
    folder = tmp_path / "data"
    folder.mkdir()
    counts = data.meta["counts"] | {"test": 0}
    (folder / "meta.json").write_text(json.dumps(data.meta | {"counts": counts}))
    with pytest.raises(UserError, match=r"has no test events; expected some to evaluate on\. Set split\.test above 0"):
        evaluate_run(tiny_run, split="test", config=Config(), data=str(folder))
    with pytest.raises(UserError, match="split is 'train'; expected one of valid, test"):
        evaluate_run(tiny_run, split="train", config=Config())


def test_a_damaged_bundle_is_refused(tiny_run, tmp_path):
    import shutil

    from ctxrec.evaluation.offline import evaluate_run

    shutil.copytree(tiny_run, tmp_path / "run")
    path = tmp_path / "run" / "bundle" / "vectors.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"vectors\.safetensors"):
        evaluate_run(str(tmp_path / "run"), split="test", config=Config())


def test_baselines_alone_need_no_run(tiny_run, tiny_config, tmp_path):
    result = call("ctxrec.evaluate", "--data", data_of(tiny_run).path, "--set", f"encoder.name={tiny_config.encoder.name}",
                         "--out", str(tmp_path / "out"))  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["model"] == metrics["paired"] == {}
    assert {"ensemble", "ease", "als", "untuned_encoder"} <= set(metrics["baselines"])
    assert format_table(metrics) in result.stdout and (tmp_path / "out" / "report.html").exists()
