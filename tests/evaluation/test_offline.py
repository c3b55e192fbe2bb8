"""Evaluation of a really trained run on a real cluster, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import call

from ctxrec.core import schema
from ctxrec.core.config import Config, DiversityConfig, EvaluateConfig
from ctxrec.core.errors import UserError
from ctxrec.data.events import histories_from_table
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import concat_requests, split_requests, validation_requests
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.diversity_tradeoff import format_tradeoff, parse_strengths, settings
from ctxrec.evaluation.slices import action_slices, attribute_slices, history_slices
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.evaluation.systems import best_baseline
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
        *([metrics["before"]] if metrics["before"] else []),
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

    config = Config(evaluate=EvaluateConfig(actors=1, batch_size=3))
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
    before = recommender_before_validation(tiny_run, data, tuned=False)
    assert metrics["before"]["ndcg@10"]["mean"] == pytest.approx(ndcg(before))
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


# The rest needs no run: summaries of lists written by hand.


def test_what_diversity_is_compared_with():
    assert parse_strengths("0.7, 0") == (0.7, 0.0) and parse_strengths("") == ()
    for wrong in ("0,2", "-1", "much", "nan"):
        with pytest.raises(UserError, match=f"--diversity is '{wrong}'; expected numbers from 0 to 1"):
            parse_strengths(wrong)
    plain, capped = DiversityConfig(), DiversityConfig(caps={"category": 2}, strength=0.2)
    assert settings(plain, ()) == {} and list(settings(plain, (0.5, 0.0))) == ["diversity=0", "diversity=0.5"]
    caps = DiversityConfig(caps={"category": 2})
    assert settings(caps, ()) == {"diversity=0": caps}
    assert settings(capped, ()) == {"diversity=caps": caps, "diversity=0.2": capped}
    assert list(settings(capped, (0.5, 0.0))) == ["diversity=0", "diversity=0.5"], "0 is the caps alone"
    both = DiversityConfig(caps={"category": 2}, freshness=0.1, half_life_days=7, rules="rules.toml")
    found = settings(both, (0.3,))
    assert list(found) == ["diversity=caps", "diversity=freshness", "diversity=rules", "diversity=0.3"]
    assert found["diversity=freshness"] == DiversityConfig(freshness=0.1, half_life_days=7)
    assert found["diversity=rules"] == DiversityConfig(rules="rules.toml", half_life_days=7)


def hand_made_lists() -> RankedLists:
    # Items 0-2 are warm, 3 and 4 cold. Targets: a {0, 3}, b {4}, c {1}.
    return RankedLists(
        user_ids=np.array(["a", "b", "c"], object),
        target_offsets=np.array([0, 2, 3, 4]),
        target_items=np.array([0, 3, 4, 1]),
        history_lengths=np.array([0, 5, 6]),
        tops={
            "model": np.array([[0, 1, 3], [1, 2, 0], [1, 0, 2]]),
            "popularity": np.array([[2, 1, 0], [2, 1, 0], [2, 1, 0]]),
        },
        attributes={"tier": np.array(["gold", None, "gold"], object)},
    )


def summary_of(lists: RankedLists) -> dict:
    return summarise(
        lists, item_counts=np.array([1, 5, 9, 0, 0]), eligible=np.ones(5, bool), ks=(10,), resamples=50, seed=0
    )


def test_cold_and_warm_slices_count_only_their_targets():
    found = summary_of(hand_made_lists())["slices"]
    # Cold: a's item 3 at rank 3 (NDCG 1/2), b's item 4 not found. Warm: a's item 0 and c's item 1, both first.
    assert found["cold_items"]["requests"] == 2
    assert found["cold_items"]["model"]["ndcg@10"]["mean"] == pytest.approx(0.25)
    assert found["cold_items"]["baselines"]["popularity"]["ndcg@10"]["mean"] == 0
    assert found["warm_items"]["requests"] == 2
    assert found["warm_items"]["model"]["ndcg@10"]["mean"] == 1
    assert found["tier=gold"]["requests"] == 2 and found["tier missing"]["requests"] == 1
    assert found["new_users"]["requests"] == found["history_1-5"]["requests"] == found["history_6-20"]["requests"] == 1


def test_action_slices_count_only_the_targets_taken_so():
    lists = dataclasses.replace(
        hand_made_lists(), actions=("buy", "look"), target_actions=np.array([0b10, 0b100, 0b110, 0b1])
    )
    found = summary_of(lists)["slices"]
    # Bought: a's item 0 (first) and b's 4 (not found). Looked at: a's 3 (third) and b's 4. How c took 1 is not known.
    assert found["action=buy"]["requests"] == found["action=look"]["requests"] == 2
    assert found["action=buy"]["model"]["ndcg@10"]["mean"] == pytest.approx(0.5)
    assert found["action=look"]["model"]["ndcg@10"]["mean"] == pytest.approx(0.25)
    for few in ((), ("buy",)):  # a log of one action has no such slices
        alone = summary_of(dataclasses.replace(lists, actions=few))["slices"]
        assert not any(name.startswith("action=") for name in alone)


def test_the_most_frequent_actions_have_slices():
    names = [f"kind{n}" for n in range(70)]
    sets = np.array([1 << code for code in range(1, 63) for _ in range(70 - code)])
    found = action_slices(sets, names)
    assert list(found) == [f"action=kind{n}" for n in range(10)]
    assert [int(mask.sum()) for mask in found.values()] == [69 - n for n in range(10)]
    assert action_slices(np.array([1 << 62]), names) == {}  # the shared bit is no single action


def test_few_shot_held_out_and_cold_among_cold():
    lists = hand_made_lists()
    lists = dataclasses.replace(
        lists, cold_tops={"model": np.array([[4, 3], [4, 3], [-1, -1]]), "popularity": np.array([[3, 4]] * 3)}
    )
    held_out = np.array([False, False, False, True, False])
    found = summarise(
        lists, item_counts=np.array([1, 5, 9, 0, 0]), eligible=np.ones(5, bool), ks=(10,), resamples=50, seed=0,
        held_out=held_out,
    )["slices"]  # fmt: skip
    # One to five events: items 0 and 1, taken by a and c, both first.
    assert found["few_shot_items"]["requests"] == 2 and found["few_shot_items"]["model"]["hr@10"]["mean"] == 1
    assert found["held_out_items"]["requests"] == 1
    assert found["held_out_items"]["model"]["ndcg@10"]["mean"] == pytest.approx(0.5)
    # Among cold items a's 3 is second for the model and first for popularity, b's 4 the other way round; c took none.
    second = 1 / np.log2(3)
    cold = found["cold_among_cold"]
    assert cold["requests"] == 2
    assert cold["model"]["ndcg@10"]["mean"] == pytest.approx((second + 1) / 2)
    assert cold["baselines"]["popularity"]["ndcg@10"]["mean"] == pytest.approx((1 + second) / 2)


def test_novelty_is_mean_information_of_what_is_shown():
    found = summary_of(hand_made_lists())
    # Shares with one event added for each of the five items: 2, 6, 10, 1 and 1 of 20.
    bits = -np.log2(np.array([2, 6, 10, 1, 1]) / 20)
    expected = np.mean([bits[[0, 1, 3]].mean(), bits[[1, 2, 0]].mean(), bits[[1, 0, 2]].mean()])
    assert found["model"]["novelty@10"]["mean"] == pytest.approx(expected)


def test_shuffled_context_moves_context_and_keeps_who_asks():
    from ctxrec.data.events import US, Context, Events, Users, time_codes
    from ctxrec.data.requests import Requests
    from ctxrec.evaluation.rank_requests import shuffle_context

    num, day = 50, 86_400 * US
    times = np.arange(100, 100 + num) * 37 * day // 24
    requests = Requests(
        users=Users(ids=np.arange(num).astype(str).astype(object)),
        history=Events(
            offsets=np.arange(num + 1), items=np.arange(num), times=times - day, actions=np.zeros(num, np.int16),
            context=Context(),
        ),
        times=times,
        context=Context(
            cat=time_codes(times) | {"device": np.arange(num, dtype=np.int32)},
            num={"price": np.arange(num, dtype=np.float32)},
        ),
    )  # fmt: skip
    shuffled = shuffle_context(requests, seed=0)
    for changed in shuffled.values():
        assert changed.users is requests.users and changed.history is requests.history
        device = changed.context.cat["device"]
        assert sorted(device) == list(range(num)) and (device != np.arange(num)).mean() > 0.8
        assert (device == changed.context.num["price"]).all(), "a context moves as a whole"
    whole, same_time = shuffled["shuffled_context"], shuffled["shuffled_context_same_time"]
    assert (same_time.times == times).all()
    assert (same_time.context.cat["hour"] == requests.context.cat["hour"][same_time.context.cat["device"]]).all()
    assert (whole.times >= requests.history.times).all(), "no request before its own history"
    assert (whole.times == np.maximum(times[whole.context.cat["device"]], times - day)).all()
    for name, codes in time_codes(whole.times).items():
        assert (whole.context.cat[name] == codes).all()


def test_baselines_alone_need_no_run(tiny_run, tiny_config, tmp_path):
    result = call("ctxrec.evaluate", "--data", data_of(tiny_run).path, "--set", f"encoder.name={tiny_config.encoder.name}",
                         "--out", str(tmp_path / "out"))  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["model"] == metrics["before"] == metrics["paired"] == {}
    assert {"ensemble", "ease", "als", "untuned_encoder"} <= set(metrics["baselines"])
    assert format_table(metrics) in result.stdout and (tmp_path / "out" / "report.html").exists()


def test_a_slice_without_requests_is_there_and_empty():
    lists = dataclasses.replace(hand_made_lists(), target_items=np.array([0, 1, 1, 1]))
    assert summary_of(lists)["slices"]["cold_items"] == {
        "requests": 0, "model": {}, "before": {}, "shuffled_context": {}, "shuffled_context_same_time": {},
        "ablations": {}, "baselines": {},
    }  # fmt: skip


def test_paired_difference_is_the_difference_of_means_with_a_narrower_interval():
    rng = np.random.default_rng(0)
    num = 300
    # The baseline has the same list with one more miss in front: always a little worse, on the same users.
    targets = rng.integers(0, 40, num)
    top = np.argsort(rng.random((num, 40)), axis=1)[:, :10]
    worse = np.concatenate([np.full((num, 1), 40), top[:, :9]], axis=1)
    lists = RankedLists(
        user_ids=np.arange(num).astype(str).astype(object),
        target_offsets=np.arange(num + 1),
        target_items=targets,
        history_lengths=np.ones(num),
        tops={"model": top, "shifted": worse},
    )
    found = summarise(lists, item_counts=np.ones(41, int), eligible=np.ones(41, bool), ks=(10,), resamples=500, seed=0)
    model, shifted = found["model"]["ndcg@10"], found["baselines"]["shifted"]["ndcg@10"]
    paired = found["paired"]["shifted"]["ndcg@10"]
    assert paired["mean"] == pytest.approx(model["mean"] - shifted["mean"])
    assert paired["low"] > 0
    assert paired["high"] - paired["low"] < model["high"] - model["low"]
    assert best_baseline(found) == "shifted"


def test_rare_values_share_a_slice_and_numbers_are_divided_by_quantiles():
    names = np.array([f"v{n:02}" for n in range(12) for _ in range(12 - n)], object)
    slices = attribute_slices("job", names)
    assert list(slices)[:2] == ["job=v00", "job=v01"] and len(slices) == 11
    assert slices["job: other values"].sum() == 2 + 1
    near = attribute_slices("at", 1_704_067_200 + np.arange(8.0))  # alike in the first six digits
    assert len(near) == 4 and sum(mask.sum() for mask in near.values()) == 8
    assert next(iter(near)) == "at=1704067200-1704067201"
    numbers = attribute_slices("age", np.arange(8.0))
    assert {name: int(mask.sum()) for name, mask in numbers.items()} == {
        "age=0-1": 2, "age=2-3": 2, "age=4-5": 2, "age=6-7": 2,
    }  # fmt: skip
    assert list(history_slices(np.array([0, 3, 500]))) == ["new_users", "history_1-5", "history_101+"]


def test_targets_that_may_not_be_recommended_are_dropped():
    from ctxrec.data.events import Context, Events, Users
    from ctxrec.data.requests import Requests
    from ctxrec.evaluation.rank_requests import drop_targets

    none = np.zeros(0, np.int64)
    requests = Requests(
        users=Users(ids=np.array(["a", "b", "c"], object)),
        history=Events(offsets=np.zeros(4, np.int64), items=none, times=none, actions=none, context=Context()),
        times=np.zeros(3, np.int64),
        context=Context(),
        target_offsets=np.array([0, 2, 3, 4]),
        target_items=np.array([0, 2, 2, 1]),
        target_actions=np.array([2, 4, 2, 8]),
    )
    kept = drop_targets(requests, np.array([True, True, False]))
    assert kept.users.ids.tolist() == ["a", "c"]
    assert [kept.targets(n).tolist() for n in range(2)] == [[0], [1]]
    assert kept.target_actions.tolist() == [2, 8]
