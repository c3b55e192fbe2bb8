"""A second stage for tests: beside a bundle, with random weights, so that it changes every order."""

from __future__ import annotations

import torch

from ctxrec.core.config import Config, load_config
from ctxrec.core.run_paths import reranker_beside
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.reranking.fresh_reranker import make_reranker
from ctxrec.retrieval.cross_encoder import Reranker, merge_adapter, titles_of
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.reranker_files import save_reranker


def put_second_stage(bundle: str, *, weight: float = 10.0, model_version: str | None = None) -> Reranker:
    """Write a second stage of 10 candidates beside a bundle; it prefers what the retriever found last, and pairs at random."""
    recommender = load_recommender(bundle)
    options = ["rerank.candidates=10", "rerank.max_tokens=32"]
    config: Config = load_config(None, options, base=f"{bundle}/config.toml")
    torch.manual_seed(0)
    texts = [title or "" for title in titles_of(recommender.items)]
    path = resolve_encoder(config.encoder.name, "")
    second = make_reranker(path, texts, config, model_version=model_version or recommender.model_version)
    torch.nn.init.normal_(second.network.head.weight)
    with torch.no_grad():
        second.network.head.weight[:, -2:] = -1.0  # of the retriever's features
    merge_adapter(second.network)
    second.weight = weight
    save_reranker(reranker_beside(bundle), second)
    return second
