"""The network that is trained: encoder and towers in one module, so that one engine owns all parameters.

Legend: B rows, S query slots, W width of all heads' vectors, D width of one head's, I items, n fresh items of a step,
H encoder width, P positions with a target or pairs of items, N negatives, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn as nn

from ctxrec.core.config import TrainConfig
from ctxrec.core.tracing import section
from ctxrec.data.batching import Batch
from ctxrec.encoder.encode_plan import EncodePlan, Tokens, encode_share
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.catalogue_shares import DividedStep, gather_ranks
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.losses import bce_loss, sampled_softmax_loss, softmax_loss
from ctxrec.model.two_tower import Towers

CONTENT_POSITIONS = 512  # positions of a micro-batch that train the content head, at most
# `train.loss = auto` takes the full softmax up to so many items. No measurement supports the number: it bounds memory and time.
FULL_SOFTMAX_ITEMS = 50_000
LOSSES = ("softmax", "sampled_softmax", "bce")  # what `choose_loss` may choose
# Of the cosines of pairs of items (`PairInputs`), a usual value (SimCSE, arXiv 2104.08821). No measurement of ours supports others.
PAIR_TEMPERATURE = 0.05


def gather_encoded(share_nH: torch.Tensor, plan: EncodePlan) -> torch.Tensor:
    """The vectors of all texts of a plan from each rank's share, in the plan's order: [num_texts, H]."""
    if plan.world == 1:
        return share_nH[: plan.num_texts]
    ranks = gather_ranks(share_nH).view(plan.world, -1, share_nH.shape[-1])
    return ranks.transpose(0, 1).reshape(-1, share_nH.shape[-1])[: plan.num_texts]


@dataclass(frozen=True, eq=False)
class EncodeInputs:
    """Asks a `Network` for the vectors of a plan's texts, of which each worker encodes its share.

    tokens: of the whole catalogue. plan: which of its texts are read, and how they are divided over workers and passes.
    rank: this worker's. device: where the encoder is.
    """

    tokens: Tokens
    plan: EncodePlan
    rank: int
    device: torch.device


@dataclass(frozen=True, eq=False)
class RankInputs:
    """Asks a `Network` for item vectors and for the queries of requests.

    batch: the requests; without it there are no queries. item_vectors_IW: saves computing them again.
    """

    items: ItemTensors
    text: TextTable | None
    batch: Batch | None = None
    item_vectors_IW: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Asks a `Network` for the loss of a batch of training windows.

    loss: "softmax", "sampled_softmax" or "bce" (`choose_loss`).
    negatives_N: int64, drawn uniformly with replacement from `items.pool` (from all items where that is None); None for
        the full softmax.
    fresh: the texts that the encoder reads in this step, with gradient; `text` takes their vectors over. None outside of
        the encoder phase.
    divided: how workers divide the items of a full softmax; None: this one computes the vectors and scores of all.
    """

    items: ItemTensors
    text: TextTable | None
    batch: Batch
    loss: str
    negatives_N: torch.Tensor | None = None
    fresh: EncodeInputs | None = None
    divided: DividedStep | None = None


@dataclass(frozen=True, eq=False)
class PairInputs:
    """Asks a `Network` for the loss of pairs of items by their texts alone.

    table_IH: the latest vectors of the catalogue's texts; those of the fresh ones are written into it.
    centre_H: subtracted from vectors, which then have length 1.
    fresh: the texts that the encoder reads in this step, with gradient.
    before_P, after_P: int64, the items of each pair. candidates_C: int64, the items that `after_P` is told from.
    not_negative_PC: bool, the candidates that are left out of a pair's softmax.
    """

    table_IH: torch.Tensor
    centre_H: torch.Tensor
    fresh: EncodeInputs
    before_P: torch.Tensor
    after_P: torch.Tensor
    candidates_C: torch.Tensor
    not_negative_PC: torch.Tensor


class Network(nn.Module):
    """Towers and, in the encoder phase, the encoder; `forward` does all that needs parameters.

    ZeRO-3 gathers parameters around module calls, so every use of them goes through a call of this module. The type of
    what it is called with says what is asked for.
    """

    def __init__(self, towers: Towers, encoder: TextEncoder | None) -> None:
        super().__init__()
        self.towers = towers
        self.encoder = encoder

    def forward(
        self, inputs: LossInputs | RankInputs | EncodeInputs | PairInputs
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """Compute what the type of `inputs` asks for.

        With weights in bfloat16 (DeepSpeed keeps a copy of them in float32) matrix products are computed in bfloat16, and
        norms, vectors of items and queries, and losses in float32.

        Returns:
            For `LossInputs` the sum of weighted losses over the batch's positions, a scalar: divide it by the total
            weight of the step. For `PairInputs` the sum over the pairs. For `EncodeInputs` the vectors of the plan's texts
            in its order, [num_texts, H]. For `RankInputs` the item vectors [I, W] and the query of each request [B, W], or None without requests.
        """
        weight = next(self.parameters())
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            match inputs:
                case LossInputs():
                    return self._loss(inputs) if inputs.divided is None else self._divided_loss(inputs, inputs.divided)
                case RankInputs(items, text, batch, item_vectors_IW):
                    return self.towers(items, text, batch, item_vectors=item_vectors_IW, last=True)
                case EncodeInputs():
                    return self._encode(inputs)
                case PairInputs():
                    return self._pair_loss(inputs)
        raise TypeError(f"a network is called with one of its four types of inputs, not {type(inputs).__name__}")

    def _encode(self, inputs: EncodeInputs) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):  # the encoder chooses its own precision
            assert self.encoder is not None
            share_nH = encode_share(self.encoder, inputs.tokens, inputs.plan, inputs.rank, inputs.device)
            return gather_encoded(share_nH, inputs.plan)

    def _encode_into(self, table_IH: torch.Tensor, fresh: EncodeInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The items of a plan [n] and their vectors with gradient [n, H], which the table takes over without it."""
        with section("encode"):
            fresh_nH = self._encode(fresh)
        which_n = torch.from_numpy(fresh.plan.order[: fresh.plan.num_texts]).to(fresh_nH.device)
        fresh_nH = fresh_nH.to(table_IH.dtype)
        table_IH[which_n] = fresh_nH.detach()
        return which_n, fresh_nH

    def _pair_loss(self, inputs: PairInputs) -> torch.Tensor:
        """Sum over the pairs of -log softmax(cos(before, candidate) / PAIR_TEMPERATURE)[after]."""
        table_IH = inputs.table_IH
        which_n, fresh_nH = self._encode_into(table_IH, inputs.fresh)
        with torch.autocast(table_IH.device.type, enabled=False):
            vectors_IH = table_IH.index_copy(0, which_n, fresh_nH)
            before_PH = nn.functional.normalize(vectors_IH[inputs.before_P] - inputs.centre_H, dim=1)
            candidates_CH = nn.functional.normalize(vectors_IH[inputs.candidates_C] - inputs.centre_H, dim=1)
            logits_PC = before_PH @ candidates_CH.T / PAIR_TEMPERATURE
            logits_PC = logits_PC.masked_fill(inputs.not_negative_PC, float("-inf"))
            place_P = torch.searchsorted(inputs.candidates_C, inputs.after_P)
            return nn.functional.cross_entropy(logits_PC, place_P, reduction="sum")

    def _loss(self, inputs: LossInputs) -> torch.Tensor:
        """The loss of a step; fresh vectors replace those of the table, so that the table follows the encoder.

        The items of the table give the encoder no gradient, so it learns more of what a step's items have that is wanted
        than of what the others lack. That ranks better than the gradient of all items, which weights for the fresh ones
        would give on average (measured: `tests/bench/RESULTS.md`).
        """
        items, text, batch, negatives_N = inputs.items, inputs.text, inputs.batch, inputs.negatives_N
        which_n = fresh_nH = None
        if inputs.fresh is not None:
            assert text is not None
            which_n, fresh_nH = self._encode_into(text.vectors_IH, inputs.fresh)
        num_candidates = len(items.id_rows_I) if items.pool is None else len(items.pool)
        if negatives_N is not None:  # a large catalogue: read no more of it than the step needs
            negatives_N = negatives_N if items.pool is None else items.pool[negatives_N]
            items, text, batch, negatives_N, which_n = narrowed(items, text, batch, negatives_N, which_n)
        if fresh_nH is not None:
            assert text is not None and which_n is not None
            text = replace(text, vectors_IH=text.vectors_IH.index_copy(0, which_n, fresh_nH))
        with section("towers"):
            vectors_IW, queries_BSW = self.towers(items, text, batch)
        if items.pool is not None:
            vectors_IW = vectors_IW.index_select(0, items.pool)
        expected = 0.0 if negatives_N is None else len(negatives_N) / num_candidates
        asked = torch.nonzero(batch.weights_BS != 0, as_tuple=True)
        loss = partial(_head_loss, loss=inputs.loss, negatives_N=negatives_N, expected=expected)
        target_P, weight_P = items.place_I[batch.targets_BS[asked]], batch.weights_BS[asked]
        return self._head_losses(queries_BSW[asked], vectors_IW, target_P, weight_P, loss)

    def _divided_loss(self, inputs: LossInputs, step: DividedStep) -> torch.Tensor:
        """The loss of a step whose items the workers divide."""
        share, batch = step.share, inputs.batch
        with section("towers"):
            own_IW, _ = self.towers(share.items, share.text)
            vectors_nW = share.hand_out(own_IW.float(), step.items_n)
            _, queries_BSW = self.towers(share.items, share.text, step.narrowed(batch), item_vectors=vectors_nW)
        queries_PW = step.queries(queries_BSW[batch.weights_BS != 0].float())
        loss = partial(softmax_loss, divided=share.divided)
        return self._head_losses(queries_PW, own_IW, share.rows_of(step.targets_P), step.weights_P, loss)

    def _head_losses(
        self,
        queries_PW: torch.Tensor,
        vectors_IW: torch.Tensor,
        target_P: torch.Tensor,
        weight_P: torch.Tensor,
        loss: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """The sum of both heads' losses, in float32."""
        total = vectors_IW.new_zeros((), dtype=torch.float32)
        with torch.autocast(vectors_IW.device.type, enabled=False):
            heads = (both.float().split(self.towers.widths, -1) for both in (queries_PW, vectors_IW))
            # Each head has a loss of its own: trained as a sum, the sequence head memorises what the content head explains.
            for number, (query_PD, vectors_ID) in enumerate(zip(*heads, strict=True)):
                # The content head has few weights to learn, so it reads fewer positions, at even distances.
                kept = slice(None, None, 1 if number == 0 else max(-(-len(target_P) // CONTENT_POSITIONS), 1))
                share = weight_P.abs().sum() / weight_P[kept].abs().sum().clamp(min=1e-9)
                total = total + share * loss(query_PD[kept], vectors_ID, target_P[kept], weight_P[kept])
        return total


def narrowed(
    items: ItemTensors, text: TextTable | None, batch: Batch, negatives_N: torch.Tensor, fresh_n: torch.Tensor | None
) -> tuple[ItemTensors, TextTable | None, Batch, torch.Tensor, torch.Tensor | None]:
    """The same step on a small catalogue: the items of its histories, targets, negatives and fresh texts alone.

    Returns:
        The small catalogue and its texts, the batch and the negatives [N] with positions in it, and those of the fresh texts [n].
    """
    parts = [batch.items_BL.flatten(), batch.targets_BS.flatten(), negatives_N]
    needed = torch.unique(torch.cat(parts if fresh_n is None else [*parts, fresh_n]))

    def place(which: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(needed, which.contiguous())

    batch = replace(batch, items_BL=place(batch.items_BL), targets_BS=place(batch.targets_BS))
    text = None if text is None else text.take(needed)
    return items.take(needed), text, batch, place(negatives_N), None if fresh_n is None else place(fresh_n)


def _head_loss(
    q_PD: torch.Tensor,
    v_ID: torch.Tensor,
    target_P: torch.Tensor,
    weight_P: torch.Tensor,
    loss: str,
    negatives_N: torch.Tensor | None,
    expected: float,
) -> torch.Tensor:
    """The loss of one head by its name: a scalar, float32.

    `expected`: how often an item is expected among the negatives, drawn uniformly with replacement.

    Raises:
        ValueError: no loss has the name.
    """
    if loss not in LOSSES:  # `train.loss` is checked where options are read, so this is a mistake of the code
        raise ValueError(f"no loss is called {loss!r}; expected one of {', '.join(LOSSES)}")
    if loss == "softmax":
        return softmax_loss(q_PD, v_ID, target_P, weight_P)
    assert negatives_N is not None
    if loss == "bce":
        return bce_loss(q_PD, v_ID, target_P, weight_P, negatives_N)
    log_expected = torch.full((), np.log(expected), device=q_PD.device)
    return sampled_softmax_loss(q_PD, v_ID, target_P, weight_P, negatives_N, log_expected)


def choose_loss(config: TrainConfig, num_items: int) -> str:
    """The loss that `train.loss` names; "auto" is the full softmax for catalogues up to `FULL_SOFTMAX_ITEMS`."""
    if config.loss != "auto":
        return config.loss
    return "softmax" if num_items <= FULL_SOFTMAX_ITEMS else "sampled_softmax"
