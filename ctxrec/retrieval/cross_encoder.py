"""An optional second stage: a cross-encoder scores one candidate of a request at a time.

It reads what the request says (user attributes, time and context, the titles of the latest items) together with
the text of a candidate, so that words of both sides meet in the encoder's attention, which the towers' product
cannot do. Its head also sees what the retriever thinks of the candidate, and starts as the retriever's order.

Legend: N requests, P pairs of a request and a candidate, H encoder width.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from ctxrec.bundle.content_check import check_finite, check_parts
from ctxrec.bundle.format import damage_named
from ctxrec.core import schema, storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import FolderKind, hash_files, read_checked, write_manifest
from ctxrec.data.events import DAYS, MONTHS
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.encoder.encode_plan import Tokens, encode_share, plan_encoding
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.index.topk import top_k

ABOUT, HEAD, ITEMS, ENCODER = "about.json", "head.safetensors", "items.safetensors", "encoder"
SECOND_STAGE = FolderKind(
    noun="reranker",
    format_version=1,
    when_missing="train one with python -m ctxrec.rerank first",
    when_damaged="restore it or run python -m ctxrec.rerank again",
    when_outdated="Run python -m ctxrec.rerank again",
)

_DAYTIMES = ("night", "morning", "afternoon", "evening")  # a quarter of the day each, from midnight on
_CHARACTERS = 16  # of a title that count for each token of the budget, so that no text is cut for nothing
_FEATURES = 2  # what the head sees of the retriever: the score and the rank

Found = list[tuple[np.ndarray, np.ndarray]]  # of each request: item positions, best first, and their scores


def request_texts(
    requests: Requests, features: FeatureMeta, titles: Sequence[str | None], *, history_items: int
) -> list[str]:
    """What each request says in words: attributes, context, time, then titles of the latest items, newest first."""
    users, context = requests.users, requests.context
    parts: list[list[str]] = [[] for _ in range(len(requests))]
    for codes, vocabularies in ((users.cat, features.user_categories), (context.cat, features.context_categories)):
        for name, vocabulary in vocabularies.items():
            for said, code in zip(parts, codes[name], strict=True):
                if code >= schema.FIRST_CODE:
                    said.append(f"{name}: {vocabulary[code - schema.FIRST_CODE]}")
    for values, names in ((users.num, features.user_numbers), (context.num, features.context_numbers)):
        for name in names:
            for said, value in zip(parts, values[name], strict=True):
                if np.isfinite(value):
                    said.append(f"{name}: {value:.4g}")
    for name in features.context_texts:
        for said, text in zip(parts, context.text[name], strict=True):
            if text:
                said.append(f"{name}: {text}")
    for n, said in enumerate(parts):
        said.append(_time_in_words(requests, n))
        latest = requests.history.items[requests.history.row(n)][::-1][:history_items]
        said += [title for item in latest.tolist() if item < len(titles) and (title := titles[item])]
    return ["; ".join(said) for said in parts]


def _time_in_words(requests: Requests, n: int) -> str:
    """As "Friday evening, April", in the zone of the request or of the log."""
    hour, weekday, month = (int(requests.context.cat[name][n]) - schema.FIRST_CODE for name in schema.TIME_CONTEXT)
    return f"{DAYS[weekday]} {_DAYTIMES[hour // 6]}, {MONTHS[month - 1]}"


class PairReader:
    """Turns requests and candidates into tokens of their pairs: request first, candidate last.

    Args:
        encoder_path: folder with the encoder's tokenizer.
        max_tokens: of a pair, with the special tokens.
    """

    def __init__(self, encoder_path: str, *, max_tokens: int):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(encoder_path, trust_remote_code=False)
        self.max_tokens = max_tokens
        self._before, self._between, self._behind = self._special_tokens()
        pad = self._tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else self._tokenizer.eos_token_id or 0)

    def plain(self, texts: Sequence[str], limit: int) -> Tokens:
        """Tokens of texts without special ones, at most `limit` each."""
        cut = [text[: limit * _CHARACTERS] for text in texts]
        options: dict[str, Any] = {"add_special_tokens": False, "truncation": True, "max_length": limit}
        rows = self._tokenizer(cut, padding=False, **options)["input_ids"] if cut else []
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        ids = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
        return Tokens(ids=ids, offsets=offsets, pad_id=self._pad_id)

    def pairs(self, asked: Tokens, items: Tokens, row_P: np.ndarray, item_P: np.ndarray) -> Tokens:
        """Tokens of pairs (request row_P[p], item item_P[p]); the request's are cut where both are too long."""
        room = self.max_tokens - len(self._before) - len(self._between) - len(self._behind)
        parts, lengths = [], np.zeros(len(row_P), np.int64)
        for p, (row, item) in enumerate(zip(row_P.tolist(), item_P.tolist(), strict=True)):
            candidate = items.ids[items.offsets[item] : items.offsets[item + 1]][: max(room, 0)]
            request = asked.ids[asked.offsets[row] : asked.offsets[row + 1]][: max(room - len(candidate), 0)]
            pair = [self._before, request, self._between, candidate, self._behind]
            parts += pair
            lengths[p] = sum(map(len, pair))
        return Tokens(
            ids=np.concatenate(parts) if parts else np.zeros(0, np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pad_id=self._pad_id,
        )

    def save(self, folder: str) -> None:
        self._tokenizer.save_pretrained(folder)

    def _special_tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the tokenizer puts before, between and behind two texts; between, at least one separator."""
        probe = self._tokenizer("a", add_special_tokens=False, padding=False)["input_ids"]
        whole = self._tokenizer("a", "a", padding=False)["input_ids"]
        first = whole.index(probe[0])
        last = len(whole) - whole[::-1].index(probe[-1]) - len(probe)
        separator = self._tokenizer.sep_token_id or self._tokenizer.eos_token_id
        between = whole[first + len(probe) : last] or ([] if separator is None else [separator])
        parts = whole[:first], between, whole[last + len(probe) :]
        before, middle, behind = (np.array(part, np.int32) for part in parts)
        return before, middle, behind


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
        return self.head(torch.cat([states_PH, features], 1)).squeeze(1)


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
    gain: what it added on validation requests kept apart from all choices (`ctxrec.retrieval.cross_encoder_training`).
    """

    network: CrossEncoder
    reader: PairReader
    items: Tokens
    weight: float
    candidates: int
    history_items: int
    model_version: str
    gain: dict[str, Any]

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


def save_reranker(path: str, reranker: Reranker) -> None:
    """Write a reranker at `path` (a path or URI) as one complete folder: safetensors and JSON under hashes.

    The encoder (no adapter on it any more, see `merge_adapter`) lies in it whole, so that loading needs no other one.
    """

    def fill(folder: str) -> None:
        network = reranker.network
        network.encoder.backbone.save_pretrained(_in(folder, ENCODER), safe_serialization=True)
        reranker.reader.save(_in(folder, ENCODER))
        save_file({n: w.detach().cpu().contiguous() for n, w in network.head.state_dict().items()}, _in(folder, HEAD))
        save_arrays({"ids": reranker.items.ids, "offsets": reranker.items.offsets}, _in(folder, ITEMS))
        about = {
            "pooling": network.encoder.pooling,
            "token_budget": network.token_budget,
            "max_tokens": reranker.reader.max_tokens,
            "pad_id": reranker.items.pad_id,
            **{key: getattr(reranker, key) for key in ("weight", "candidates", "history_items", "gain")},
        }
        _write_json(_in(folder, ABOUT), about)
        write_manifest(folder, SECOND_STAGE, files=hash_files(folder), model_version=reranker.model_version)

    with tempfile.TemporaryDirectory() as scratch:
        storage.write_dir(path, fill, scratch=scratch)


def load_reranker(path: str, *, model_version: str) -> Reranker:
    """Load what `save_reranker` wrote, after a check of all hashes; executes no code from it.

    Args:
        path: path or URI.
        model_version: of the bundle that it is to stand behind.

    Raises:
        UserError: it is missing, damaged, or was trained for another bundle.
    """
    folder = check_reranker(path, model_version)
    with damage_named(path, noun=SECOND_STAGE.noun):
        check_finite(folder, storage.local_files(folder))
        return _load(folder, model_version)


def _load(folder: str, model_version: str) -> Reranker:
    arrays = load_arrays(_in(folder, ITEMS))
    check_parts(arrays["offsets"], len(arrays["ids"]), ITEMS)
    about = storage.read_json(_in(folder, ABOUT))
    inside = _in(folder, ENCODER)
    with _quiet():
        encoder = TextEncoder(EncoderConfig(name=inside, pooling=about["pooling"]), inside, tune=False)
    network = CrossEncoder(encoder, token_budget=about["token_budget"]).eval()
    network.head.load_state_dict(load_file(_in(folder, HEAD)))
    return Reranker(
        network=network,
        reader=PairReader(inside, max_tokens=about["max_tokens"]),
        items=Tokens(ids=arrays["ids"], offsets=arrays["offsets"], pad_id=about["pad_id"]),
        model_version=model_version,
        **{key: about[key] for key in ("weight", "candidates", "history_items", "gain")},
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warning that the encoder has no pooling layer: `TextEncoder` removes that layer on purpose."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def check_reranker(path: str, model_version: str) -> str:
    """A local folder with the reranker, after a check of its manifest, its model version and every hash.

    Raises:
        UserError: a file is missing or damaged, or the second stage belongs to another model.
    """
    folder, manifest = read_checked(path, SECOND_STAGE, scratch=storage.temporary_folder())
    if manifest["model_version"] != model_version:
        found = f"was trained for model {manifest['model_version']}; the bundle is model {model_version}"
        raise UserError(f"the reranker at {path} {found}. {SECOND_STAGE.when_outdated}")
    return folder


def _in(folder: str, name: str) -> str:
    return os.path.join(folder, name)


def _write_json(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False)
