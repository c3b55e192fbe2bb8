"""An optional second stage: a cross-encoder scores one candidate of a request at a time.

It reads what the request says (user attributes, time and context, the titles of the latest items) together with
the text of a candidate, so that words of both sides meet in the encoder's attention, which the towers' product
cannot do. Its head also sees what the retriever thinks of the candidate, and starts as the retriever's order.

Legend: N requests, P pairs of a request and a candidate, H encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn as nn
import torch.nn.functional as F

from ctxrec.core import schema
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.encoder.encode_plan import Tokens, encode_share, plan_encoding
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.index.topk import top_k
from ctxrec.retrieval.pair_reader import PairReader
from ctxrec.retrieval.request_texts import request_texts

_FEATURES = 2  # what the head sees of the retriever: the score and the rank

Found = list[tuple[np.ndarray, np.ndarray]]  # of each request: item positions, best first, and their scores


class CrossEncoder(nn.Module):
    """The encoder, and a linear head that reads its pooled state and the retriever's score and rank of the
    candidate."""

    def __init__(self, encoder: TextEncoder, *, token_budget: int):
        super().__init__()
        self.encoder, self.token_budget = encoder, token_budget
        self.head = nn.Linear(encoder.width + _FEATURES, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():  # so that training starts from the retriever's order
            self.head.weight[0, encoder.width] = 1.0

    def forward(self, pairs: Tokens, retrieved_PF: np.ndarray) -> torch.Tensor:
        """For each pair the logit that the user takes the candidate: float32 [P]."""
        device = self.head.weight.device
        plan = plan_encoding(np.arange(len(pairs.lengths)), pairs.lengths, budget=self.token_budget, world=1)
        states_PH = encode_share(self.encoder, pairs, plan, 0, device)
        states_PH = states_PH[torch.from_numpy(np.argsort(plan.order)).to(device)]
        states_PH = F.layer_norm(states_PH, states_PH.shape[-1:])
        features = torch.from_numpy(retrieved_PF).to(device)
        both = torch.cat([states_PH, features], 1).to(self.head.weight.dtype)
        return self.head(both).squeeze(1).float()


def retrieved_features(scores: np.ndarray, num: int) -> np.ndarray:
    """The retriever's features of a request's candidates, best first, which the head reads: float32 [P, 2].

    The score in standard deviations of the best `num` (deeper ones continue the same scale), and 1 / log2(1 + rank).
    """
    best = scores[:num]
    spread = best.std() if len(best) else 0.0
    z = (scores - best.mean()) / spread if spread > 1e-9 else np.zeros(len(scores))
    return np.stack([z, 1 / np.log2(np.arange(len(scores)) + 2)], 1).astype(np.float32)


@dataclass
class Reranker:
    """A trained second stage. Load it with `load_reranker`.

    weight: how much its logits count beside the retriever's standardised scores; 0 leaves the retriever's order.
    candidates: the best of the retriever that it puts in a new order.
    items: tokens of the catalogue's texts; later items have none.
    gain: what it added on validation requests kept apart from all choices (`ctxrec.reranking.rerank_outcome`).
    """

    network: CrossEncoder
    reader: PairReader
    items: Tokens
    weight: float
    candidates: int
    history_items: int
    model_version: str
    gain: dict[str, Any]

    def set_precision(self, precision: str) -> None:
        """Read pairs in "bf16", which is for CPUs that multiply it in hardware; "fp32" is the precision of its files."""
        if precision == "bf16":
            self.network.encoder.to(torch.bfloat16)

    def rerank(
        self, requests: Requests, found: Found, k: int, *, features: FeatureMeta, titles: Sequence[str | None]
    ) -> Found:
        """The best k of each request after its first `candidates` are put in a new order.

        Scores are the retriever's own, reassigned in the new order, so that they keep their scale and never increase;
        what lies behind the candidates stays where it is, as does a later item, whose text is unknown.

        Args:
            requests: N requests.
            found: what the retriever found for each, at least `candidates` where so many are eligible.
            k: items to give.
            features: vocabularies of the requests' codes.
            titles: of the catalogue, for the histories.
        """
        if self.weight == 0 or not len(requests):
            return [(items[:k], scores[:k]) for items, scores in found]
        places = [np.flatnonzero(items[: self.candidates] < len(self.items.lengths)) for items, _ in found]
        seen = [(items[p], scores[p]) for (items, scores), p in zip(found, places, strict=True)]
        logits = self.logits(requests, seen, features=features, titles=titles)
        made = []
        for (items, scores), place, (known, own), logit in zip(found, places, seen, logits, strict=True):
            order = new_order(own, logit, self.weight, self.candidates)
            items = items.copy()
            items[place] = known[order]
            made.append((items[:k], scores[:k]))
        return made

    @torch.inference_mode()
    def logits(
        self, requests: Requests, found: Found, *, features: FeatureMeta, titles: Sequence[str | None]
    ) -> list[np.ndarray]:
        """Logits of each request's candidates: float32 [candidates of the request]."""
        lengths = np.array([len(items) for items, _ in found], np.int64)
        if not lengths.sum():
            return [np.zeros(0, np.float32) for _ in found]
        self.network.eval()
        texts = request_texts(requests, features, titles, history_items=self.history_items)
        pairs = self.reader.pairs(
            self.reader.plain(texts, self.reader.max_tokens),
            self.items,
            np.repeat(np.arange(len(found)), lengths),
            np.concatenate([items for items, _ in found]),
        )
        retrieved = np.concatenate([retrieved_features(scores, self.candidates) for _, scores in found])
        logits = self.network(pairs, retrieved).float().cpu().numpy()
        return np.split(logits, np.cumsum(lengths)[:-1])


def new_order(scores: np.ndarray, logits: np.ndarray, weight: float, num: int) -> np.ndarray:
    """Places of a request's candidates, best first, by the standardised score plus `weight` times the logit: int64
    [candidates]."""
    return np.argsort(-(retrieved_features(scores, num)[:, 0] + weight * logits), kind="stable")


class RerankedRecommender:
    """A recommender whose best candidates the second stage puts in a new order; ranks as any recommender does."""

    def __init__(self, recommender: Any, reranker: Reranker):
        self._recommender, self._reranker = recommender, reranker
        self._titles = titles_of(recommender.items)

    def scores(self, requests: Requests) -> np.ndarray:
        """Scores of all items: float32 [N, I], those of the candidates reassigned in their new order."""
        scores = self._recommender.scores(requests)
        seen = None if self._recommender.repeats else requests.seen()
        found = of_top(top_k(scores, self._reranker.candidates, seen), scores)
        again = self._reranker.rerank(
            requests, found, self._reranker.candidates, features=self._recommender.features, titles=self._titles
        )
        for row, (items, values) in zip(scores, again, strict=True):
            row[items] = values
        return scores


def titles_of(items: pa.Table) -> list[str | None]:
    """Titles of an item table."""
    return items.column(schema.ITEM_TITLE).to_pylist()


def of_top(top_NK: np.ndarray, scores_NI: np.ndarray) -> Found:
    """Lists of positions that -1 fills up, with their scores."""
    lists = [row[row >= 0] for row in top_NK]
    return [(items, scores[items]) for items, scores in zip(lists, scores_NI, strict=True)]


def merge_adapter(network: CrossEncoder) -> None:
    """Merge an adapter into the weights of the encoder, so that it runs as fast as an encoder without one."""
    backbone = network.encoder.backbone
    if hasattr(backbone, "merge_and_unload"):
        network.encoder.backbone = backbone.merge_and_unload()
