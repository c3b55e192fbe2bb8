"""Losses and their gradients against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ctxrec.model import losses
from ctxrec.model.losses import bce_loss, sampled_softmax_loss, softmax_loss

P, D, NUM_ITEMS = 13, 6, 9


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "q_PD": torch.randn(P, D, generator=generator, requires_grad=True),
        "v_ID": torch.randn(NUM_ITEMS, D, generator=generator, requires_grad=True),
        "target_P": torch.randint(NUM_ITEMS, (P,), generator=generator),
        "weight_P": torch.rand(P, generator=generator) + 0.1,
    }


def gradients(loss: torch.Tensor, batch: dict) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [batch["q_PD"], batch["v_ID"]]))


def assert_equal(found: torch.Tensor, expected: torch.Tensor, batch: dict) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(found, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def softmax_by_hand(batch: dict) -> torch.Tensor:
    total = torch.zeros(())
    for q, target, weight in zip(batch["q_PD"], batch["target_P"], batch["weight_P"], strict=True):
        log_p = torch.log_softmax(batch["v_ID"] @ q, 0)
        chance = log_p[target].exp()
        total = total - weight.abs() * torch.log(chance if weight >= 0 else 1 - chance)
    return total


@pytest.mark.parametrize("scores", [1 << 24, NUM_ITEMS * 4, 1])
def test_softmax_by_hand_whole_and_in_chunks(batch, monkeypatch, scores):
    monkeypatch.setattr(losses, "CHUNKS", losses.ChunkParams(scores=scores, rows=1))
    batch["weight_P"][::3] *= -1
    assert_equal(softmax_loss(**batch), softmax_by_hand(batch), batch)


def test_softmax_of_one_position_in_numbers():
    q, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(2), 5.0], [0.0, 7.0], [math.log(5), 0.0]])
    # exp of the scores: 2, 1, 5
    like = softmax_loss(q, v, torch.tensor([0]), torch.tensor([3.0]))
    dislike = softmax_loss(q, v, torch.tensor([0]), torch.tensor([-3.0]))
    assert float(like) == pytest.approx(3 * math.log(8 / 2), rel=1e-5)
    assert float(dislike) == pytest.approx(-3 * math.log(1 - 2 / 8), rel=1e-5)


def test_no_position_is_a_zero_with_gradient(batch):
    none = {k: (v if k == "v_ID" else v[:0]) for k, v in batch.items()}
    loss = softmax_loss(**none)
    loss.backward()
    assert float(loss) == 0 and not batch["v_ID"].grad.any()


@pytest.mark.parametrize("scores", [0.0, 5.0, 50.0])
def test_a_disliked_item_is_pushed_down_however_sure_the_model_is(scores):
    q, v = torch.tensor([[scores, 0.0]]), torch.eye(2, requires_grad=True)
    negatives = torch.tensor([0, 1, 1])
    for loss in (
        softmax_loss(q + 1, v, torch.tensor([0]), torch.tensor([-1.0])),
        sampled_softmax_loss(q + 1, v, torch.tensor([0]), torch.tensor([-1.0]), negatives, torch.zeros(())),
        bce_loss(q + 1, v, torch.tensor([0]), torch.tensor([-1.0]), negatives),
    ):
        (gradient,) = torch.autograd.grad(loss, v)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert float((gradient[0] * (q[0] + 1)).sum()) > 0.1, "a step against the gradient lowers the score"


def test_a_dislike_in_a_catalogue_of_one_item_is_finite():
    v = torch.ones(1, 2, requires_grad=True)
    loss = softmax_loss(torch.ones(1, 2), v, torch.tensor([0]), torch.tensor([-1.0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(v.grad).all()


def test_sampled_softmax_with_every_item_once_is_the_full_softmax(batch):
    """N = I draws without repetition: log(N / I) = 0, the target's own draw is left out, so the sum is over all."""
    batch["weight_P"][::3] *= -1
    negatives = torch.randperm(NUM_ITEMS)
    found = sampled_softmax_loss(**batch, negatives_N=negatives, log_expected_N=torch.zeros(()))
    assert_equal(found, softmax_loss(**batch), batch)


def test_sampled_softmax_with_every_item_twice_is_the_full_softmax(batch):
    """Each item twice: the correction log(2) halves each draw's share, so that two draws count once."""
    negatives = torch.arange(NUM_ITEMS).repeat(2)
    found = sampled_softmax_loss(**batch, negatives_N=negatives, log_expected_N=torch.tensor(math.log(2)))
    assert_equal(found, softmax_loss(**batch), batch)


def test_sampled_softmax_by_hand(batch):
    negatives = torch.tensor([0, 3, 3, 8])
    correction = math.log(len(negatives) / NUM_ITEMS)
    expected = torch.zeros(())
    for q, target, weight in zip(batch["q_PD"], batch["target_P"], batch["weight_P"], strict=True):
        own = (batch["v_ID"][target] @ q).exp()
        others = sum((batch["v_ID"][n] @ q - correction).exp() for n in negatives if n != target)
        expected = expected - weight * torch.log(own / (own + others))
    found = sampled_softmax_loss(**batch, negatives_N=negatives, log_expected_N=torch.tensor(correction))
    assert_equal(found, expected, batch)


def test_bce_by_hand(batch):
    batch["weight_P"][::3] *= -1
    negatives = torch.tensor([0, 3, 3, 8])
    expected = torch.zeros(())
    for q, target, weight in zip(batch["q_PD"], batch["target_P"], batch["weight_P"], strict=True):
        own = batch["v_ID"][target] @ q
        if weight < 0:
            expected = expected - weight * -F.logsigmoid(-own)
            continue
        others = [-F.logsigmoid(-(batch["v_ID"][n] @ q)) for n in negatives if n != target]
        expected = expected + weight * (-F.logsigmoid(own) + sum(others) / len(others))
    assert_equal(bce_loss(**batch, negatives_N=negatives), expected, batch)


def test_bce_with_no_other_negative_is_the_target_alone():
    q, v, target = torch.tensor([[0.5]]), torch.tensor([[2.0]]), torch.tensor([0])
    loss = bce_loss(q, v, target, torch.tensor([1.0]), torch.tensor([0, 0]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "bce"])
def test_shards_add_up_to_the_whole(batch, name):
    batch["weight_P"][::3] *= -1
    negatives = torch.tensor([0, 3, 3, 8])

    def loss(part: slice) -> torch.Tensor:
        some = {k: (v if k == "v_ID" else v[part]) for k, v in batch.items()}
        if name == "softmax":
            return softmax_loss(**some)
        if name == "bce":
            return bce_loss(**some, negatives_N=negatives)
        return sampled_softmax_loss(**some, negatives_N=negatives, log_expected_N=torch.tensor(-0.8))

    assert_equal(loss(slice(0, 4)) + loss(slice(4, 5)) + loss(slice(5, None)), loss(slice(None)), batch)


def test_zero_weight_is_no_position(batch):
    batch["weight_P"][5] = 0
    kept = torch.arange(P) != 5
    some = {k: (v if k == "v_ID" else v[kept]) for k, v in batch.items()}
    assert_equal(softmax_loss(**batch), softmax_loss(**some), batch)
