"""Summaries and slices of lists that are written by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.evaluation.slices import action_slices, attribute_slices, history_slices
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.evaluation.systems import best_baseline


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


def test_a_slice_without_requests_is_there_and_empty():
    lists = dataclasses.replace(hand_made_lists(), target_items=np.array([0, 1, 1, 1]))
    assert summary_of(lists)["slices"]["cold_items"] == {
        "requests": 0, "model": {}, "frozen": {}, "tuned": {}, "shuffled_context": {}, "shuffled_context_same_time": {},
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


def test_liked_targets_alone_and_disliked_items_in_lists():
    # a likes item 0 and not 3, b does not like 4, c likes 1. Known dislikes: a's 3, b's 1 and 2.
    lists = dataclasses.replace(
        hand_made_lists(),
        target_weights=np.array([1, -1, -1, 0.5], np.float32),
        disliked_offsets=np.array([0, 1, 3, 3]),
        disliked_items=np.array([3, 1, 2], np.int32),
    )
    found = summary_of(lists)
    assert found["liked"]["requests"] == 2
    assert found["liked"]["model"]["ndcg@10"]["mean"] == 1
    popular = (1 / np.log2(4) + 1 / np.log2(3)) / 2  # a's item 0 at rank 3, c's item 1 at rank 2
    assert found["liked"]["baselines"]["popularity"]["ndcg@10"]["mean"] == pytest.approx(popular)
    assert found["liked"]["paired"]["popularity"]["ndcg@10"]["mean"] == pytest.approx(1 - popular)
    assert found["model"]["disliked@10"]["mean"] == pytest.approx((0.1 + 0.2 + 0) / 3)
    plain = summary_of(hand_made_lists())
    assert plain["model"]["ndcg@10"] == found["model"]["ndcg@10"], "every event stays a target of the main figures"
    assert "liked" not in plain and "disliked@10" not in plain["model"]
    nothing = summary_of(dataclasses.replace(lists, target_weights=np.full(4, -1, np.float32)))["liked"]
    assert nothing["requests"] == 0 and nothing["model"] == {}
