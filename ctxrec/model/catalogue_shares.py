"""A catalogue that is divided over workers: each computes the vectors of its share of the items, and scores them alone.

Item vectors are the only part of a step whose work does not shrink with a worker's share of the batch. So every worker
computes those of its share of the items, and hands out the ones that histories of the step need. It gets the queries of all
workers, and scores its own items for all of them (`ctxrec.model.losses.softmax_loss`).

Legend: I items of the catalogue, n items of a step, P positions with a target over all workers, W width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ctxrec.data.batching import Asked, Batch
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.losses import Divided


def gather_ranks(rows_nW: torch.Tensor) -> torch.Tensor:
    """The rows of all workers, worker after worker, the same number from each: [world * n, W].

    The backward pass sums the gradients of all workers for a row.
    """
    return _GatherRanks.apply(rows_nW)


class _GatherRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd's own tensor must not change
        dist.all_reduce(grad)
        size = len(grad) // dist.get_world_size()
        return grad[dist.get_rank() * size :][:size]


@dataclass(frozen=True, eq=False)
class CatalogueShare:
    """This worker's share of the items that compete in the loss: every `world`-th of them, from number `rank` on.

    Attributes:
        rank, world: of this worker.
        num_items: items that compete, over all workers.
        place_I: int64, the place of each item of the catalogue among those that compete.
        items: features of this worker's share.
        text: its text vectors; None without text encoder.
    """

    rank: int
    world: int
    num_items: int
    place_I: torch.Tensor
    items: ItemTensors
    text: TextTable | None

    @staticmethod
    def of(items: ItemTensors, text: TextTable | None, *, rank: int, world: int) -> CatalogueShare:
        """The share of a catalogue, of which at least `world` items compete."""
        pool = torch.arange(len(items.id_rows_I), device=items.id_rows_I.device) if items.pool is None else items.pool
        mine = pool[rank::world]
        own_text = None if text is None else text.take(mine)
        return CatalogueShare(rank, world, len(pool), items.place_I, items.take(mine), own_text)

    @property
    def divided(self) -> Divided:
        """How the loss is divided."""
        return Divided(self.world, -(-self.num_items // self.world))

    def rows_of(self, items_n: torch.Tensor) -> torch.Tensor:
        """The rows of items in this worker's share, -1 where another worker has the item: int64 [n]."""
        place = self.place_I[items_n]
        return torch.where(place % self.world == self.rank, place // self.world, -1)

    def hand_out(self, own_IW: torch.Tensor, items_n: torch.Tensor) -> torch.Tensor:
        """Vectors of items of a step [n, W] from the workers that have them; every worker must call it with the same items.

        Args:
            own_IW: vectors of this worker's share.
            items_n: int64, numbers in the catalogue of items that compete.
        """
        place = self.place_I[items_n]
        return _gathered(own_IW[place[place % self.world == self.rank] // self.world], place % self.world, self.world)


def _gathered(own_nW: torch.Tensor, owner_n: torch.Tensor, world: int) -> torch.Tensor:
    """Rows of all workers in a common order [n, W].

    Args:
        own_nW: this worker's rows, in that order.
        owner_n: which worker has each row; the same on every worker.
        world: number of workers.
    """
    counts = torch.bincount(owner_n, minlength=world)
    most = max(int(counts.max()), 1)  # Gloo wants the same number of rows from each worker, and at least one
    padded = F.pad(own_nW, (0, 0, 0, most - len(own_nW)))
    order = torch.sort(owner_n, stable=True).indices
    first = torch.cumsum(counts, 0) - counts
    within = torch.empty_like(owner_n)
    within[order] = torch.arange(len(owner_n), device=owner_n.device) - first[owner_n[order]]
    return gather_ranks(padded).index_select(0, owner_n * most + within)


@dataclass(frozen=True, eq=False)
class DividedStep:
    """A micro-batch of all workers, of which each scores its share of the catalogue.

    Attributes:
        share: of this worker.
        items_n: int64, the items of all workers' histories, ascending.
        worker_P: int64, which worker reads the history of a position.
        targets_P: int64, numbers in the catalogue.
        weights_P: float32.
    """

    share: CatalogueShare
    items_n: torch.Tensor
    worker_P: torch.Tensor
    targets_P: torch.Tensor
    weights_P: torch.Tensor

    @staticmethod
    def of(share: CatalogueShare, items: np.ndarray, asked: Asked) -> DividedStep:
        """The micro-batch with these items, whose positions are `asked` on all workers together."""
        device = share.place_I.device
        values = (items.astype(np.int64), asked.rows_P % share.world, asked.targets_P, asked.weights_P)
        return DividedStep(share, *(torch.from_numpy(value).to(device) for value in values))

    def narrowed(self, batch: Batch) -> Batch:
        """This worker's batch, whose histories have the numbers that items have among `items_n`."""
        places = torch.searchsorted(self.items_n, batch.items_BL).clamp(max=len(self.items_n) - 1)
        return replace(batch, items_BL=places)  # where a row is padded, any item will do

    def queries(self, own_PW: torch.Tensor) -> torch.Tensor:
        """The queries of all workers [P, W] from those of this worker, which are in the same order."""
        return _gathered(own_PW, self.worker_P, self.share.world)
