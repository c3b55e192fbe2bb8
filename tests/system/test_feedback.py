"""Ratings from the log to lists: two tastes that only the ratings tell apart, in training, evaluation, HTTP and batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_logs import LOG, START, histories, run, write_csv
from tolerance import assert_same_scores

import ctxrec
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import RunPaths
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.live.opening import open_store
from ctxrec.live.store import LoggedEvent
from ctxrec.retrieval.batch_scoring import recommend
from ctxrec.retrieval.load import load_recommender
from ctxrec.training.driver import train
from serve.api import RecommendRequest
from serve.engine import load_engine

GROUP, USERS = 24, 80
FEEDBACK = '[events.feedback]\nkind = "rating"\npositive = 4\nnegative = 2\n'
SPEC = LOG + 'value = "rating"\n'
LAST = '[split]\nstrategy = "last"\n'
NOW = START + 10_000_000
AT = {"timestamp": NOW}


def ratings() -> list[tuple]:
    """Users of even numbers love items a0, a1, ... and loathe b0, b1, ...; the others the reverse. Each rates most of both,
    in any order, so without the ratings nothing tells the two kinds apart."""
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        kept = [f"{group}{n}" for group in "ab" for n in rng.choice(GROUP, GROUP - 12, replace=False)]
        for step, item in enumerate(rng.permutation(kept).tolist()):
            loves = item.startswith("ab"[user % 2])
            rows.append((f"u{user}", item, START + 1000 * step + user, rng.choice([4, 5] if loves else [1, 2])))
    return rows


def prepared(folder, rows, feedback=FEEDBACK):
    folder.mkdir()
    write_csv(folder, rows, header="user_id,item_id,timestamp,rating")
    return run(folder, SPEC + feedback + LAST, ["prepare.buckets=2"])


@pytest.fixture(scope="module")
def quick(tiny_config):
    return dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, preset="quick"))


@pytest.fixture(scope="module")
def runs(ray_cluster, quick, tmp_path_factory) -> dict[str, str]:
    """Runs trained on the ratings, on the reversed ratings, and on the same log without `[events.feedback]`."""
    folder, rows = tmp_path_factory.mktemp("feedback"), ratings()
    logs = {"as rated": (rows, FEEDBACK), "blind": (rows, "")}
    logs["reversed"] = [(*row[:3], 6 - row[3]) for row in rows], FEEDBACK
    return {
        name: train(prepared(folder / name.replace(" ", "-"), *log).path, str(folder / name / "run"), quick)
        for name, log in logs.items()
    }


def loved_share(run: str, *, users=range(0, USERS, 2), group="a") -> float:
    """Share of the items of a group among the first of the lists of users, who have not had half of either group."""
    model = ctxrec.load(run)
    found = [model.recommend(f"u{user}", k=3, context=AT) for user in users]
    items = [item for one in found for item in one["item_id"]]
    return float(np.mean([item.startswith(group) for item in items]))


def test_reversing_all_ratings_turns_the_lists_over(runs):
    assert loved_share(runs["as rated"]) > 0.9
    assert loved_share(runs["reversed"]) < 0.1
    assert 0.3 < loved_share(runs["blind"]) < 0.7, "without the section ratings mean nothing"


def test_actions_of_a_negative_weight_turn_the_lists_over_as_ratings_do(ray_cluster, quick, tmp_path):
    """A model of the quick preset, whose only source of this is the item memory; the evaluation says what a success is."""
    rows = [(*row[:3], "love" if row[3] >= 4 else "hate") for row in ratings()]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,kind")
    spec = LOG + 'action = "kind"\n[events.actions]\nlove = 1.0\nhate = {}\n' + LAST
    shares = {}
    for weight in ("-1.0", "0.5"):
        data = run(tmp_path, spec.format(weight), ["prepare.buckets=2"])
        shares[weight] = loved_share(train(data.path, str(tmp_path / f"run {weight}"), quick))
    assert shares["-1.0"] > 0.9 and 0.3 < shares["0.5"] < 0.7
    metrics = evaluate_run(str(tmp_path / "run 0.5"), split="test", out=None, config=quick)
    assert "feedback" not in metrics
    run(tmp_path, spec.format("-1.0"), ["prepare.buckets=2"])
    metrics = evaluate_run(str(tmp_path / "run -1.0"), split="test", out=None, config=quick)
    assert metrics["feedback"] == {"success": "target action (love)", "negative": "negative action (hate)"}
    assert 0 < metrics["liked"]["requests"] < metrics["requests"] and metrics["model"]["disliked@10"]["mean"] < 0.1


def test_the_prepared_log_has_kinds_of_events(ray_cluster, tmp_path):
    rows = [("u", "x", START, 5), ("u", "y", START + 1, 3), ("u", "z", START + 2, 1), ("u", "x", START + 3, "")]
    data = prepared(tmp_path / "log", rows)
    names = ["", *data.features.actions]
    assert [names[code] for code in histories(data)["u"]["actions"]] == [
        "rating positive",
        "rating neutral",
        "rating negative",
        "",
    ]
    assert data.features.graded == {"": names[1:]} and data.meta["counts"]["train_targets"] == 1


def test_thresholds_that_no_value_reaches_are_told(ray_cluster, tmp_path):
    rows = [("u", f"i{n}", START + n, 1 + n % 5) for n in range(10)]
    with pytest.raises(UserError, match=r"positive is 40, and the values of column 'rating' go from 1 to 5"):
        prepared(tmp_path / "high", rows, FEEDBACK.replace("4", "40"))
    data = prepared(tmp_path / "low", rows, FEEDBACK.replace("2", "0.5"))
    assert any("no event is negative feedback" in note for note in data.meta["notes"])
    with pytest.raises(UserError, match=r"column 'rating' has none; name another column"):
        prepared(tmp_path / "none", [(*row[:3], "") for row in rows])


def test_a_posted_star_lowers_what_is_like_it(runs, tmp_path):
    """Through the store and the engine, as HTTP does it, at once; in a row of a requests file and in Python likewise."""
    store = open_store(str(tmp_path / "store"))
    engine = load_engine(runs["as rated"], 4, store)
    ids = engine.retriever.recommender.item_ids

    def scores(user: str) -> dict[str, float]:
        body = RecommendRequest.model_validate({"user_id": user, "k": len(ids), "context": {"timestamp": NOW}})
        (answer,) = engine.recommend([[body]])[0].answers
        return dict(zip(answer.item_ids, answer.scores, strict=True))

    def post(user: str, *rated: tuple[str, float]) -> None:
        times = range(NOW - len(rated), NOW)
        store.append([LoggedEvent(user, i, at * 1_000_000, None, v) for (i, v), at in zip(rated, times, strict=True)])

    post("plain", ("a0", 5), ("b0", 5))
    post("hates", ("a0", 5), ("b0", 5), ("a1", 1))
    post("loves", ("a0", 5), ("b0", 5), ("a1", 5))
    post("first", ("a1", 1))
    post("first love", ("a1", 5))
    plain, hates, loves = (scores(user) for user in ("plain", "hates", "loves"))
    like = [f"a{n}" for n in range(2, GROUP)]
    other = [f"b{n}" for n in range(2, GROUP)]

    def lead(found: dict[str, float]) -> float:
        """How far the items like a1 are ahead of the others, on average."""
        return float(np.mean([found[item] for item in like]) - np.mean([found[item] for item in other]))

    assert lead(hates) < lead(plain) < lead(loves)
    assert lead(scores("first")) < lead(scores("first love")), "of somebody whose first event it is, too"
    store.close()

    history = [{"item_id": "a0", "value": 5}, {"item_id": "b0", "value": 5}, {"item_id": "a1", "value": 1}]
    for n, event in enumerate(history):
        event["timestamp"] = float(NOW - 3 + n)
    table = pa.table({"request_id": ["r"], "timestamp": [float(NOW)], "history": [history]})
    pq.write_table(table, tmp_path / "r.parquet")
    recommend(runs["as rated"], str(tmp_path / "r.parquet"), str(tmp_path / "o.parquet"), k=len(ids))
    row = pq.read_table(tmp_path / "o.parquet").to_pylist()[0]
    batch = dict(zip(row["item_ids"], row["scores"], strict=True))
    given = ctxrec.load(runs["as rated"]).recommend(history=history, k=len(ids), context=AT)
    python = dict(zip(given["item_id"], given["score"], strict=True))
    body = RecommendRequest.model_validate({"history": history, "k": len(ids), "context": {"timestamp": NOW}})
    (answer,) = engine.recommend([[body]])[0].answers
    http = dict(zip(answer.item_ids, answer.scores, strict=True))
    for found in (batch, python, http):
        assert set(found) == set(hates)
        assert_same_scores(np.array([found[item] for item in hates]), np.array(list(hates.values())))


def test_an_explanation_tells_that_a_dislike_takes(runs):
    model = ctxrec.load(runs["as rated"])
    history = [{"item_id": "a0", "value": 5, "timestamp": NOW - 2}, {"item_id": "a1", "value": 1, "timestamp": NOW - 1}]
    why = model.explain(None, "a5", history=history, context=AT)
    effects = {row["name"]: row["effect"] for row in why.to_dict("records") if row["part"] == "history"}
    assert effects["a0"] > 0 > effects["a1"]


def test_a_table_of_later_events_is_judged_both_ways(runs):
    model = ctxrec.load(runs["as rated"])
    table = pa.table(
        {
            "user_id": [f"u{n % USERS}" for n in range(4 * USERS)],
            "item_id": [f"{'ab'[n % 2]}{n // 2 % GROUP}" for n in range(4 * USERS)],
            "timestamp": [NOW + n for n in range(4 * USERS)],
            "rating": [5 if n % 4 < 3 else 1 for n in range(4 * USERS)],
        }
    )
    found = model.evaluate(table).metrics
    assert 0 < found["liked"]["requests"] < found["requests"]
    assert {"action=rating positive", "action=rating negative"} <= set(found["slices"])


def test_an_evaluation_counts_both_ways(runs, quick, tmp_path):
    metrics = evaluate_run(runs["as rated"], out=str(tmp_path / "seen"), config=quick)
    blind = evaluate_run(runs["blind"], out=str(tmp_path / "blind"), config=quick)
    assert metrics["feedback"] == {"success": "rating of 4 or more", "negative": "rating of 2 or less"}
    liked = metrics["liked"]
    assert 0 < liked["requests"] < metrics["requests"] == blind["requests"] == USERS
    assert liked["model"]["ndcg@10"]["mean"] > metrics["model"]["ndcg@10"]["mean"] > 0
    assert liked["paired"]["popularity"]["ndcg@10"]["low"] > 0
    slices = {name: entry["requests"] for name, entry in metrics["slices"].items() if name.startswith("action=")}
    assert slices["action=rating positive"] == liked["requests"]
    assert sum(slices.values()) == metrics["requests"]
    taken = metrics["model"]["disliked@10"]["mean"]
    assert 0 <= taken < metrics["baselines"]["popularity"]["disliked@10"]["mean"]
    told = format_table(metrics)
    assert "a success is a rating of 4 or more" in told and "known to dislike (rating of 2 or less)" in told
    assert "What users liked" in (tmp_path / "seen" / "report.html").read_text()
    assert "liked" not in blind and "disliked@10" not in blind["model"]
    assert "What users liked" not in (tmp_path / "blind" / "report.html").read_text()


def test_a_bundle_without_the_section_is_as_before(runs):
    model = load_recommender(RunPaths(runs["blind"]).bundle)
    assert model.blend.memory.speaks_A is None and not model.kinds.are_graded
    assert "feedback" not in storage.read_json(RunPaths(runs["blind"]).bundle + "/data.json")["spec"]["events"]
