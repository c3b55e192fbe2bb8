"""Training losses over query positions, all as weighted sums so that shards of a batch add up.

Legend: P positions with a target, D width, I items, N negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_SCORES = 1 << 24  # scores held at once; more positions are recomputed chunk by chunk in the backward pass
_NO_SCORE = -1e4  # of an item that takes no part; finite, as there may be no other


def softmax_loss(
    q_PD: torch.Tensor, v_ID: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor, *, smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of weighted cross-entropies over all items.

    A negative weight is negative feedback: it adds |w|·−log(1 − p(target)) ("unlikelihood",
    Welleck et al. 2020), which pushes the item down.
    """
    rows = max(CHUNK_SCORES // max(v_ID.shape[0], 1), 1)
    if q_PD.shape[0] <= rows:
        return _softmax_chunk(q_PD, v_ID, target_P, weight_P, smoothing)
    total = q_PD.new_zeros((), dtype=torch.float32)
    for start in range(0, q_PD.shape[0], rows):
        part = slice(start, start + rows)
        total = total + checkpoint(
            _softmax_chunk, q_PD[part], v_ID, target_P[part], weight_P[part], smoothing, use_reentrant=False
        )
    return total


def _softmax_chunk(
    q_PD: torch.Tensor, v_ID: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor, smoothing: float
) -> torch.Tensor:
    logits_PI = (q_PD @ v_ID.T).float()
    return _cross_entropy(logits_PI, target_P, weight_P, smoothing)


def _cross_entropy(
    logits: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor, smoothing: float
) -> torch.Tensor:
    nll_P = F.cross_entropy(logits, target_P, reduction="none", label_smoothing=smoothing)
    positive = (nll_P * weight_P.clamp(min=0)).sum()
    disliked = weight_P < 0
    if not disliked.any():
        return positive
    # -log(1 - p) as a difference of two log-sums: its gradient lives on where p is 1 in float32.
    shown, target_P = logits[disliked], target_P[disliked]
    others = shown.scatter(1, target_P[:, None], _NO_SCORE)
    unlike_P = torch.logsumexp(shown, 1) - torch.logsumexp(others, 1)
    return positive + (unlike_P * -weight_P[disliked]).sum()


def sampled_softmax_loss(
    q_PD: torch.Tensor,
    v_ID: torch.Tensor,
    target_P: torch.Tensor,
    weight_P: torch.Tensor,
    negatives_N: torch.Tensor,
    log_expected_N: torch.Tensor,
) -> torch.Tensor:
    """Sum of weighted cross-entropies over the target and N shared negatives.

    Scores of negatives are corrected by the log of their expected count in the sample (Bengio and
    Senécal 2008); the target is there for certain and so is not corrected (arXiv 2507.09331).
    A negative that is a position's own target is left out at that position.
    """
    own_P = (q_PD * v_ID[target_P]).sum(-1, keepdim=True).float()
    logits_PN = (q_PD @ v_ID[negatives_N].T).float() - log_expected_N
    logits_PN = logits_PN.masked_fill(negatives_N[None, :] == target_P[:, None], float("-inf"))
    logits = torch.cat([own_P, logits_PN], 1)
    return _cross_entropy(logits, torch.zeros_like(target_P), weight_P, 0.0)


def bce_loss(
    q_PD: torch.Tensor, v_ID: torch.Tensor, target_P: torch.Tensor, weight_P: torch.Tensor, negatives_N: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy of the target against N shared uniform negatives, the negatives' mean weighing
    as much as the target; negative weight makes the target itself a negative example."""
    own_P = (q_PD * v_ID[target_P]).sum(-1).float()
    label_P = (weight_P > 0).float()
    positive = F.binary_cross_entropy_with_logits(own_P, label_P, reduction="none")
    logits_PN = (q_PD @ v_ID[negatives_N].T).float()
    valid_PN = (negatives_N[None, :] != target_P[:, None]).float()
    negative_PN = F.binary_cross_entropy_with_logits(logits_PN, torch.zeros_like(logits_PN), reduction="none")
    negative = (negative_PN * valid_PN).sum(1) / valid_PN.sum(1).clamp(min=1)
    return ((positive + negative * label_P) * weight_P.abs()).sum()
