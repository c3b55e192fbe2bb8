"""The simulated news service follows its parameters, and nobody ranks better than by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from commands import call

from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.datasets.best_possible import load_oracles
from ctxrec.datasets.moving_files import write_news
from ctxrec.datasets.news import BREAKING, BREAKING_HALVES_S, NEVER, NewsLog, NewsPlan, NewsTruth
from ctxrec.evaluation.stream_files import evaluate_stream
from ctxrec.ingest.pipeline import prepare

HOUR = 3_600 * US


def test_logits_worked_by_hand():
    truth = NewsTruth(
        item_topic=np.array([0, 1, 1]), item_born_us=np.array([0, HOUR, 9 * HOUR]), item_appeal=np.array([0.5, 0.0, 7.0]),
        item_halves_s=np.array([7_200.0, 3_600.0, 1.0]), taste_NC=np.array([[1.0, 2.0]]),
        broke_us=np.array([2 * HOUR]), broke_topic=np.array([1]),
    )  # fmt: skip
    at = np.array([5 * HOUR])
    broke = BREAKING * 0.5 ** (3 * 3600 / BREAKING_HALVES_S)
    expected = [1 + 0.5 - math.log(2) * 2.5, 2 + broke - math.log(2) * 4]
    found = truth.logits(np.array([0]), at)[0]
    assert found[:2].tolist() == pytest.approx(expected, rel=1e-5) and found[2] == NEVER, "the last one is not out"


def test_no_article_is_read_before_its_birth_or_twice_and_reading_follows_attention():
    log = NewsLog.make(NewsPlan(users=60, items=240, events=4_000, seed=3))
    users, items, times = [], [], []
    for chunk in log.chunks():
        users += [int(name[1:]) for name in chunk["user_id"].to_pylist()]
        items += [int(name[1:]) for name in chunk["item_id"].to_pylist()]
        times += chunk["timestamp"].to_pylist()
    assert len(set(zip(users, items, strict=True))) == len(users)
    items_E, times_E = np.array(items), np.array(times) * US
    assert (times_E >= log.truth.item_born_us[items_E]).all()
    # The mean probability of what was read is what a draw from the true probabilities has: their mean over all articles.
    p = np.exp(log.truth.logits(np.array(users), times_E).astype(float))
    p /= p.sum(1, keepdims=True)
    taken, expected = p[np.arange(len(p)), items_E].mean(), (p**2).sum(1).mean()
    assert expected / 2 < taken < expected * 1.2


def test_a_log_is_written_once_and_its_mistakes_are_named(tmp_path):
    plan = NewsPlan(users=20, items=48, events=300)
    assert write_news(str(tmp_path / "news"), plan) and not write_news(str(tmp_path / "news"), plan)
    assert write_news(str(tmp_path / "news"), NewsPlan(users=20, items=48, events=300, seed=1))
    done = call("ctxrec.datasets.__main__", "simulate-news", "--out", str(tmp_path / "x"), "--context", "1")
    assert done.returncode == 2 and "--context is given; expected none with simulate-news" in done.stderr
    with pytest.raises(UserError, match="--items is 3"):
        NewsPlan(items=3)


def test_a_stream_of_baselines_is_below_the_best_possible_and_above_what_stands_still(ray_cluster, tmp_path):
    write_news(str(tmp_path / "news"), NewsPlan(users=300, items=480, events=9_000))
    data = prepare(load_spec(str(tmp_path / "news" / "dataset.toml")), str(tmp_path / "data"), load_config(None, []))
    assert set(load_oracles(str(tmp_path / "news"), data)) == {"oracle"}
    config = load_config(None, ["evaluate.bootstrap=100"])
    metrics = evaluate_stream(
        None, data=data.path, config=config, oracle=str(tmp_path / "news"), out=str(tmp_path / "out")
    )
    ndcg = {name: values["ndcg@10"]["mean"] for name, values in metrics["baselines"].items()}
    assert ndcg["oracle"] > ndcg["popularity_1h"] > ndcg["popularity_1w"]
    late = evaluate_stream(None, data=data.path, config=config, delay_s=12 * 3600)["baselines"]
    assert late["popularity_1h"]["ndcg@10"]["mean"] < ndcg["popularity_1h"] / 2, "old news are no news"
    assert sum(metrics["curves"]["requests"]) == metrics["requests"] == 900
    assert (tmp_path / "out" / "report.html").read_text().count("<polyline") >= 3
    with pytest.raises(UserError, match="--delay is -1"):
        evaluate_stream(None, data=data.path, config=config, delay_s=-1.0)
