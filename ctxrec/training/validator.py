"""Validation inside training: NDCG@10 over the whole catalogue; the workers divide the requests."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.data.batching import Batcher
from ctxrec.data.requests import Requests
from ctxrec.encoder.text_table import TextTable
from ctxrec.index.topk import top_k
from ctxrec.metrics.ranking import request_metrics
from ctxrec.model.inputs import ItemTensors
from ctxrec.model.network import Network, RankInputs

METRIC_K = 10
BATCH_SIZE = 128


class Validator:
    """Ranks this worker's share of the validation requests and averages over all workers."""

    def __init__(
        self, requests: Requests, batcher: Batcher, *, repeats: bool, rank: int, world: int, device: torch.device
    ) -> None:
        self.batcher, self.repeats, self.device = batcher, repeats, device
        # Every worker ranks the same number of requests, as ZeRO-3 demands; those that only fill up do not count.
        share = np.arange(rank, -(-len(requests) // world) * world, world)
        self.counts = share < len(requests)
        self.requests = requests.take(np.minimum(share, len(requests) - 1))

    @torch.no_grad()
    def ndcg(self, network: Network, items: ItemTensors, text: TextTable | None) -> float:
        """Mean NDCG@10 over the requests of all workers; every worker must call it.

        Args:
            network: the module itself, with or without an engine around it.
            items: features of the catalogue.
            text: its text vectors; None without text encoder.
        """
        network.eval()
        item_vectors_IW, _ = network(RankInputs(items, text))
        values = []
        for start in range(0, len(self.requests), BATCH_SIZE):
            part = self.requests.take(np.arange(start, min(start + BATCH_SIZE, len(self.requests))))
            batch = self.batcher.requests(part).to(self.device)
            _, queries_BW = network(RankInputs(items, text, batch, item_vectors_IW))
            scores = (queries_BW.float() @ item_vectors_IW.float().T).cpu().numpy()
            seen = None if self.repeats else part.seen()
            top = top_k(scores, METRIC_K, seen)
            assert part.target_offsets is not None and part.target_items is not None
            found = request_metrics(top, part.target_offsets, part.target_items, [METRIC_K])
            values.append(found[f"ndcg@{METRIC_K}"])
        network.train()
        sums = torch.tensor([float((np.concatenate(values) * self.counts).sum()), float(self.counts.sum())])
        sums = sums.to(self.device)
        if dist.is_initialized():
            dist.all_reduce(sums)
        return float(sums[0] / sums[1])
