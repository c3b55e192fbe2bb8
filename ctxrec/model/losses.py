"""Training losses over query positions; each is a weighted sum, so that the shares of a batch add up.

Legend: P positions with a target, D width, I items, N negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class ChunkParams:
    """How many scores, positions times items, the full softmax holds at a time. Results do not depend on it.

    Attributes:
        scores: on a CPU. They take 1 MB, so that they stay in the cache of a core.
        gpu_scores: on a GPU, a limit of memory (256 MB).
        rows: positions of a chunk at least, as each chunk adds to the gradients of all items, which costs as much as 64
            rows of scores.
    """

    scores: int = 1 << 18
    gpu_scores: int = 1 << 26
    rows: int = 64


CHUNKS = ChunkParams()
_NO_SCORE = -1e4  # score of an item that takes no part; it is finite, because there may be no other item


@dataclass(frozen=True)
class Divided:
    """Items that are divided over the workers of the process group, as vocabulary-parallel language models divide words
    (Shoeybi et al. 2019, arXiv 1909.08053).

    Attributes:
        world: number of workers.
        most: items of the worker that has most of them.
    """

    world: int
    most: int


def softmax_loss(
    q_PD: torch.Tensor,
    v_ID: torch.Tensor,
    target_P: torch.Tensor,
    weight_P: torch.Tensor,
    *,
    divided: Divided | None = None,
) -> torch.Tensor:
    """Sum of weighted cross-entropies over all items.

    A negative weight is negative feedback: it adds |w|·−log(1 − p(target)) ("unlikelihood", Welleck et al. 2020), which
    lowers the score of the item.

    Args:
        q_PD: queries.
        v_ID: item vectors.
        target_P: int64, number of the item at each position.
        weight_P: weight of each position.
        divided: the items are divided over workers, and `v_ID` are those of this worker. Then every worker has the same
            queries and weights, and `target_P` is -1 where another worker has the target.

    Returns:
        A scalar, float32. Of divided items it is an equal part of the loss, so that the parts of all workers add up to
        it. The gradient of `v_ID` is then whole, and the gradients of `q_PD` of all workers add up to the whole.
    """
    return _SoftmaxLoss.apply(q_PD, v_ID, target_P, weight_P, divided)


class _SoftmaxLoss(torch.autograd.Function):
    """Cross-entropy over all items, whose gradient is computed in the forward pass, while a chunk's scores are in the cache.

    The scores, positions times items, would be by far the largest tensor of a step; they are never held all at once. With z
    the target's score less the log-sum of the scores of all others, p(target) is sigmoid(z); that stays exact where p rounds
    to 1. Workers that divide the items exchange two numbers a position: the log-sum of their scores and the target's score.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_PD: torch.Tensor,
        v_ID: torch.Tensor,
        target_P: torch.Tensor,
        weight_P: torch.Tensor,
        divided: Divided | None,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=q_PD.device)
        grad_q, grad_v = torch.empty_like(q_PD), torch.zeros_like(v_ID)
        rows = _chunk_rows(len(v_ID) if divided is None else divided.most, v_ID.device)
        for start in range(0, len(q_PD), rows):
            part = slice(start, start + rows)
            weight_p, target_p = weight_P[part].float(), target_P[part]
            mine = torch.nonzero(target_p >= 0).squeeze(1)
            at_target = mine, target_p[mine]
            scores = (q_PD[part] @ v_ID.T).float()
            wanted_p = scores.new_full((len(scores),), float("-inf")).index_put((mine,), scores[at_target])
            scores[at_target] = _NO_SCORE
            top_p1 = scores.amax(1, keepdim=True)
            odds = scores.sub_(top_p1).exp_()
            others_p = top_p1.squeeze(1) + odds.sum(1).log()
            if divided is not None:
                both = torch.stack([others_p, wanted_p])
                parts = [torch.empty_like(both) for _ in range(divided.world)]
                dist.all_gather(parts, both)
                others_p = torch.stack([other for other, _ in parts]).logsumexp(0)
                wanted_p = torch.stack([wanted for _, wanted in parts]).amax(0)
            surplus_p = (others_p - wanted_p) * torch.where(
                weight_p < 0, -1.0, 1.0
            )  # the loss is -log sigmoid of -this
            total += (F.softplus(surplus_p) * weight_p.abs()).sum()
            pull_p = weight_p * surplus_p.sigmoid()  # less the gradient of the target's score
            grad = odds.mul_((pull_p * (top_p1.squeeze(1) - others_p).exp())[:, None])
            grad[at_target] = -pull_p[mine]
            grad = grad.to(q_PD.dtype)
            grad_q[part] = grad @ v_ID
            grad_v.addmm_(grad.T, q_PD[part])
        ctx.save_for_backward(grad_q, grad_v)
        return total if divided is None else total / divided.world

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_q, grad_v = ctx.saved_tensors
        return grad * grad_q, grad * grad_v, None, None, None


def _chunk_rows(num_items: int, device: torch.device) -> int:
    scores = CHUNKS.scores if device.type == "cpu" else CHUNKS.gpu_scores
    return max(scores // max(num_items, 1), CHUNKS.rows)


def _unlike(logits: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor) -> torch.Tensor:
    """Sum of w·-log(1 - p) as a difference of two log-sums, whose gradient does not vanish where p rounds to 1."""
    others = logits.scatter(1, target_P[:, None], _NO_SCORE)
    return ((torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)) * weight_P).sum()


def _cross_entropy(logits: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor) -> torch.Tensor:
    nll_P = F.cross_entropy(logits, target_P, reduction="none")
    positive = (nll_P * weight_P.clamp(min=0)).sum()
    disliked = weight_P < 0
    if not disliked.any():
        return positive
    return positive + _unlike(logits[disliked], target_P[disliked], -weight_P[disliked])


def sampled_softmax_loss(
    q_PD: torch.Tensor,
    v_ID: torch.Tensor,
    target_P: torch.Tensor,
    weight_P: torch.Tensor,
    negatives_N: torch.Tensor,
    log_expected_N: torch.Tensor,
) -> torch.Tensor:
    """Sum of weighted cross-entropies over the target and N shared negatives.

    The scores of negatives are corrected by the log of their expected count in the sample (Bengio and Senécal 2008). The
    target is present for certain, so its score is not corrected (arXiv 2507.09331). A negative that is the target of a
    position is left out at that position.

    Args:
        q_PD: queries.
        v_ID: item vectors.
        target_P: int64, number of the item at each position.
        weight_P: weight of each position; a negative one is negative feedback, as in `softmax_loss`.
        negatives_N: int64, numbers of items.
        log_expected_N: log of the expected count of each negative, [N] or a scalar.

    Returns:
        A scalar, float32.
    """
    target_score_P1 = (q_PD * v_ID[target_P]).sum(-1, keepdim=True).float()
    logits_PN = (q_PD @ v_ID[negatives_N].T).float() - log_expected_N
    logits_PN = logits_PN.masked_fill(negatives_N[None, :] == target_P[:, None], float("-inf"))
    logits = torch.cat([target_score_P1, logits_PN], 1)
    return _cross_entropy(logits, torch.zeros_like(target_P), weight_P)


def bce_loss(
    q_PD: torch.Tensor, v_ID: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor, negatives_N: torch.Tensor
) -> torch.Tensor:
    """Sum of weighted binary cross-entropies of the target and of N shared negatives, a scalar.

    The mean over the negatives weighs as much as the target. A negative weight makes the target itself a negative example.
    The arguments are those of `sampled_softmax_loss`.

    He et al. (2017, arXiv 1708.05031) train recommenders with this loss.
    """
    target_score_P = (q_PD * v_ID[target_P]).sum(-1).float()
    label_P = (weight_P > 0).float()
    positive = F.binary_cross_entropy_with_logits(target_score_P, label_P, reduction="none")
    logits_PN = (q_PD @ v_ID[negatives_N].T).float()
    valid_PN = (negatives_N[None, :] != target_P[:, None]).float()
    negative_PN = F.binary_cross_entropy_with_logits(logits_PN, torch.zeros_like(logits_PN), reduction="none")
    negative = (negative_PN * valid_PN).sum(1) / valid_PN.sum(1).clamp(min=1)
    return ((positive + negative * label_P) * weight_P.abs()).sum()
