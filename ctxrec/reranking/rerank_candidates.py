"""What the second stage learns from and is measured on: requests, with the candidates of a retriever.

Training events come with candidates of a retriever that has not seen them (`ctxrec.reranking.held_out`), validation
requests with those of the run's own as it was before it saw them (`ctxrec.retrieval.pre_validation`). The bundle itself
cannot be used: its towers were refitted on the validation events, so it ranks these events higher than it will rank
future ones. Only the weights of its blend, two numbers a source, are those fitted on the validation events; that favours
the retriever in the comparison, not the second stage.

Legend: N requests, D candidates of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ctxrec.data.requests import Requests
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.index.topk import NO_ITEM, top_k
from ctxrec.memory.scoring import Scorer, score_all
from ctxrec.retrieval.cross_encoder import Found, of_top

_BATCH = 64  # requests ranked at once


@dataclass(frozen=True)
class Examples:
    """Requests with what the retriever found for them."""

    requests: Requests
    found: Found
    hits: list[np.ndarray]  # of each request: bool, which candidates are targets

    def __len__(self) -> int:
        return len(self.found)

    def take(self, which: np.ndarray) -> Examples:
        """Some of them, by their rows."""
        return Examples(self.requests.take(which), [self.found[n] for n in which], [self.hits[n] for n in which])

    def with_hit(self) -> np.ndarray:
        """Rows whose order matters, those with a target among the candidates: int64 [such rows]."""
        return np.flatnonzero([hit.any() for hit in self.hits])


def find_candidates(scorer: Scorer, requests: Requests, num: int, *, repeats: bool) -> Examples:
    """The best `num` items of a retriever for each request, as it would recommend them."""
    found: Found = []
    for start in range(0, len(requests), _BATCH):
        part = requests.take(np.arange(start, min(start + _BATCH, len(requests))))
        scores = score_all(scorer, part)
        found += of_top(top_k(scores, num, None if repeats else part.seen()), scores)
    hits = [np.isin(items, requests.targets(n)) for n, (items, _) in enumerate(found)]
    return Examples(requests, found, hits)


@dataclass(frozen=True)
class TrainingPairs:
    """Requests with a target among their candidates, as every worker reads them."""

    asked: Tokens  # what each request says [N]
    items: Tokens  # texts of the catalogue
    found_ND: np.ndarray  # int64, positions of the candidates, best first; NO_ITEM behind them
    scores_ND: np.ndarray  # float32, of the retriever
    target_N: np.ndarray  # int64, place of the target among the candidates

    def __len__(self) -> int:
        return len(self.target_N)

    @staticmethod
    def of(examples: Examples, asked: Tokens, items: Tokens) -> TrainingPairs:
        """The pairs of examples of which each has a target among its candidates (its best one counts)."""
        width = max((len(found) for found, _ in examples.found), default=0)
        found_ND = np.full((len(examples), width), NO_ITEM, np.int64)
        scores_ND = np.zeros((len(examples), width), np.float32)
        for n, (found, scores) in enumerate(examples.found):
            found_ND[n, : len(found)], scores_ND[n, : len(found)] = found, scores
        target_N = np.array([int(np.argmax(hit)) for hit in examples.hits], np.int64)
        return TrainingPairs(asked, items, found_ND, scores_ND, target_N)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, for a file; each of its own shape."""
        arrays = {"found": self.found_ND, "scores": self.scores_ND, "target": self.target_N}
        for name, tokens in (("asked", self.asked), ("items", self.items)):
            arrays |= {f"{name}_ids": tokens.ids, f"{name}_offsets": tokens.offsets}
            arrays[f"{name}_pad"] = np.array([tokens.pad_id])
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor]) -> TrainingPairs:
        """What `tensors` gave."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        asked, items = (
            Tokens(ids=arrays[f"{n}_ids"], offsets=arrays[f"{n}_offsets"], pad_id=int(arrays[f"{n}_pad"][0]))
            for n in ("asked", "items")
        )
        return TrainingPairs(asked, items, arrays["found"], arrays["scores"], arrays["target"])
