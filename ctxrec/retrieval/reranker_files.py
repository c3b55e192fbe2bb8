"""The files of a second stage: safetensors and JSON under hashes, and the encoder whole, so that loading needs no other one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from ctxrec.bundle.content_check import check_finite, check_parts
from ctxrec.bundle.format import damage_named
from ctxrec.bundle.reranker_folder import SECOND_STAGE, check_reranker, usable_reranker
from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.manifest import hash_files, write_manifest
from ctxrec.core.run_paths import reranker_beside
from ctxrec.encoder.encode_plan import Tokens
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.retrieval.cross_encoder import CrossEncoder, Reranker
from ctxrec.retrieval.pair_reader import PairReader

ABOUT, HEAD, ITEMS, ENCODER = "about.json", "head.safetensors", "items.safetensors", "encoder"


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


def second_stage_of(bundle: str, model_version: str, *, required: bool) -> Reranker | None:
    """The second stage beside a bundle; None where it was found to add nothing, or where there is none that fits.

    Args:
        bundle: path or URI.
        model_version: of the bundle.
        required: whether there must be one.

    Raises:
        UserError: one is required, and it is missing, damaged, or was trained for another bundle.
    """
    if not required and usable_reranker(bundle, model_version) is None:
        return None
    second = load_reranker(reranker_beside(bundle), model_version=model_version)
    return second if second.weight > 0 else None


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


def _in(folder: str, name: str) -> str:
    return os.path.join(folder, name)


def _write_json(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False)
