"""The simulated shop follows its campaigns, and nobody ranks better than by them."""

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
from ctxrec.datasets.moving_files import write_shop
from ctxrec.datasets.shop import AFTER_HALVES_S, SPAN_S, ShopLog, ShopPlan, ShopTruth
from ctxrec.datasets.visits import START_S
from ctxrec.evaluation.stream_files import evaluate_stream
from ctxrec.ingest.pipeline import prepare

HOUR, DAY = 3_600 * US, 86_400 * US
END_US = (START_S + SPAN_S) * US


@pytest.fixture(scope="module")
def shop() -> tuple[ShopLog, np.ndarray, np.ndarray, np.ndarray]:
    """A log, and users, items and times (microseconds) of its events."""
    log = ShopLog.make(ShopPlan(users=600, items=800, events=20_000, seed=5))
    chunks = list(log.chunks())
    users, items = (
        np.array([int(name[1:]) for chunk in chunks for name in chunk[column].to_pylist()])
        for column in ("user_id", "item_id")
    )
    return log, users, items, np.concatenate([chunk["timestamp"].to_numpy() for chunk in chunks]) * US


def test_logits_worked_by_hand():
    truth = ShopTruth(
        item_category=np.array([0, 1, 1]), item_appeal=np.array([0.5, 0.0, -1.0]), taste_NC=np.array([[1.0, 2.0]]),
        campaign_start_us=np.array([2 * HOUR, 3 * HOUR]), campaign_stop_us=np.array([10 * HOUR, 5 * HOUR]),
        campaign_lift=np.array([3.0, 2.0]), campaign_items_PJ=np.array([[1], [2]]),
    )  # fmt: skip
    halved = 0.5 ** (4 * 3600 / AFTER_HALVES_S)
    for hours, expected in ((1, [1.5, 2, 1]), (2, [1.5, 5, 1]), (5, [1.5, 5, 3]), (9, [1.5, 5, 1 + 2 * halved])):
        found = truth.logits(np.array([0]), np.array([hours * HOUR]))[0]
        assert found.tolist() == pytest.approx(expected, rel=1e-5), hours


def test_a_campaign_is_visible_in_the_log_and_ends(shop):
    """Sales a day of the items of each campaign, by the time next to it, over those of its quiet time."""
    log, _, items, times = shop
    truth, lifts, after = log.truth, [], []
    for n in range(len(truth.campaign_lift)):
        start, stop, chosen = truth.campaign_start_us[n], truth.campaign_stop_us[n], truth.campaign_items_PJ[n]
        others = np.delete(np.arange(len(truth.campaign_lift)), n)
        alone = not np.isin(truth.campaign_items_PJ[others], chosen).any()
        if not alone or start < START_S * US + 3 * DAY or stop + 3 * DAY > END_US:
            continue
        of_items = np.sort(times[np.isin(items, chosen)])

        def a_day(begin: int, end: int, of_items: np.ndarray = of_items) -> float:
            return float(np.diff(np.searchsorted(of_items, (begin, end)))[0]) * DAY / (end - begin)

        quiet = a_day(START_S * US, start) + 0.2  # a fifth of a sale, so that nothing is divided by none
        lifts.append(a_day(start, stop) / quiet)
        after.append(a_day(stop + DAY, stop + 3 * DAY) / quiet)
    assert len(lifts) >= 10
    assert np.median(lifts) > 5, "a factor of 10 to 60, of which users who bought already take a part"
    assert np.median(after) < 1.5


def test_no_item_is_bought_twice_and_the_best_possible_is_far_above_the_last_day(shop):
    log, users, items, times = shop
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) == len(users) == log.plan.events
    asked = np.arange(int(len(users) * 0.95), len(users))
    best_NI = log.truth.logits(users[asked], times[asked])
    hits = {"best": 0, "day": 0, "all": 0}
    for row, n in enumerate(asked.tolist()):
        before = items[:n][times[:n] < times[n]]
        last_day = items[:n][(times[:n] < times[n]) & (times[:n] > times[n] - DAY)]
        bought = items[:n][users[:n] == users[n]]
        for name, scores in (
            ("best", best_NI[row].astype(float)),
            ("day", np.bincount(last_day, minlength=log.plan.items).astype(float)),
            ("all", np.bincount(before, minlength=log.plan.items).astype(float)),
        ):
            scores[bought] = -math.inf
            hits[name] += items[n] in np.argsort(-scores, kind="stable")[:10]
    assert hits["best"] > 1.2 * hits["day"] and hits["day"] > 1.2 * hits["all"], hits


def test_a_log_is_written_once_and_its_mistakes_are_named(tmp_path):
    plan = ShopPlan(users=20, items=48, events=300)
    assert write_shop(str(tmp_path / "shop"), plan) and not write_shop(str(tmp_path / "shop"), plan)
    assert write_shop(str(tmp_path / "shop"), ShopPlan(users=20, items=48, events=300, seed=1))
    done = call("ctxrec.datasets.__main__", "simulate-shop", "--out", str(tmp_path / "x"), "--cold", "0.1")
    assert done.returncode == 2 and "--cold is given; expected none with simulate-shop" in done.stderr
    done = call("ctxrec.datasets.__main__", "simulate-shop", "--out", str(tmp_path / "x"), "--events", "200")
    assert done.returncode == 0 and "simulate-shop: written; source: simulation of a shop" in done.stdout
    with pytest.raises(UserError, match="--items is 3"):
        ShopPlan(items=3)


def test_a_stream_ranks_the_best_possible_beside_the_live_baselines(ray_cluster, tmp_path):
    write_shop(str(tmp_path / "shop"), ShopPlan(users=300, items=240, events=9_000))
    data = prepare(load_spec(str(tmp_path / "shop" / "dataset.toml")), str(tmp_path / "data"), load_config(None, []))
    assert set(load_oracles(str(tmp_path / "shop"), data)) == {"oracle"}
    config = load_config(None, ["evaluate.bootstrap=100"])
    metrics = evaluate_stream(None, data=data.path, config=config, oracle=str(tmp_path / "shop"))
    ndcg = {name: values["ndcg@10"]["mean"] for name, values in metrics["baselines"].items()}
    assert ndcg["oracle"] > ndcg["popularity_1d"] > ndcg["popularity_1w"], ndcg
