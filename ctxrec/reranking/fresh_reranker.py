"""A second stage before its training: it gives the retriever's order, and has an adapter to train."""

from __future__ import annotations

from collections.abc import Sequence

from ctxrec.core import storage
from ctxrec.core.config import Config, EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.reranking.rerank_params import RERANK_TRAINING
from ctxrec.retrieval.cross_encoder import CrossEncoder, Reranker
from ctxrec.retrieval.pair_reader import PairReader


def encoder_path(config: Config) -> str:
    """The local folder of the encoder that the options name.

    Raises:
        UserError: none is named, or it is not to be had.
    """
    name = config.rerank.encoder or config.encoder.name
    if not name:
        raise UserError("neither rerank.encoder nor encoder.name is set; expected an encoder that reads the texts")
    option = "rerank.encoder" if config.rerank.encoder else "encoder.name"
    return resolve_encoder(name, storage.cache_dir(), option=option)


def make_network(path: str, config: Config) -> CrossEncoder:
    """A cross-encoder with a LoRA adapter on the encoder in a local folder, whose head gives the retriever's score."""
    options = config.rerank
    encoder_config = EncoderConfig(
        name=path,
        rank=options.rank,
        alpha=2.0 * options.rank,
        top_layers=0,
        max_tokens=options.max_tokens,
        token_budget=max(config.encoder.token_budget, options.max_tokens),
    )
    network = CrossEncoder(TextEncoder(encoder_config, path, tune=True), token_budget=encoder_config.token_budget)
    # The loss compares candidates of one request, so a bias has no gradient, and AdamW would make steps of its rounding.
    network.head.bias.requires_grad_(False)
    return network


def make_reranker(path: str, texts: Sequence[str], config: Config, *, model_version: str) -> Reranker:
    """A second stage that gives the retriever's order.

    Args:
        path: local folder of the encoder.
        texts: of the catalogue.
        config: all options.
        model_version: of the bundle that it will stand behind.
    """
    reader = PairReader(path, max_tokens=config.rerank.max_tokens)
    return Reranker(
        network=make_network(path, config),
        reader=reader,
        items=reader.plain(texts, min(RERANK_TRAINING.item_tokens, config.rerank.max_tokens // 2)),
        weight=1.0,
        candidates=config.rerank.candidates,
        history_items=RERANK_TRAINING.history_items,
        model_version=model_version,
        gain={},
    )
