"""The bundle: all that serving needs and nothing else. `manifest.json` has the sha256 of every file.

manifest.json  config.toml  data.json     versions and hashes; options; spec, features, sizes
items.parquet  histories.arrow            catalogue; stored histories of known users, by user id
towers.safetensors  adapter/              weights; PEFT adapter (or encoder weights) of the encoder
vectors.safetensors  index.faiss          item vectors and the scale of text vectors; the index
backbone/                                 a language model that reads histories, where `model.backbone` names one
media.safetensors                         vectors of images and sounds, where the model reads them
blend.safetensors                         item memory and the weights of all sources, where there are any
live.safetensors                          weights of the live sources, where they gain something
probability.safetensors                   what makes a score a probability, where enough outcomes were known
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from ctxrec.bundle.content_check import Unsound
from ctxrec.bundle.history_file import write_histories
from ctxrec.bundle.item_order import DIGEST, check_item_order, digest_of
from ctxrec.core import schema, storage
from ctxrec.core.config import Config, to_toml
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import FolderKind, hash_files, read_checked, version_of, write_manifest
from ctxrec.core.run_paths import BundlePaths
from ctxrec.core.toml import build_dataclass
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.index.builder import Fill, add_here, build_index
from ctxrec.memory.blend import EARLIER_WORDS_22, Blend
from ctxrec.memory.calibration import Calibrations
from ctxrec.memory.item_memory import from_arrays, to_arrays
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.memory.request_words import WORDS
from ctxrec.model.backbones import store_pretrained
from ctxrec.model.inputs import ModelShape

BUNDLE = FolderKind(
    noun="bundle",
    format_version=4,
    when_missing="train a model with ctxrec train first",
    when_damaged="restore it or train again",
    when_outdated="Train again with this version of ctxrec",
)


USER_MEAN, USER_SCALE = "user_mean", "user_scale"  # of the vectors of users' texts, where these are read
_WORDS = "words"  # weights of `ctxrec.memory.request_words.WORDS`; bundles of earlier versions have none


def write_bundle(
    path: str,
    *,
    config: Config,
    data: PreparedData,
    shape: ModelShape,
    towers: dict[str, torch.Tensor],
    item_vectors: np.ndarray,
    text_scale: dict[str, np.ndarray],
    encoder: TextEncoder | None,
    scratch: str,
    trained: np.ndarray | None = None,
    media: dict[str, np.ndarray] | None = None,
    blend: Blend | None = None,
    live: LiveWeights | None = None,
    probability: Calibrations | None = None,
    queries: np.ndarray | None = None,
    fill: Fill = add_here,
) -> str:
    """Write a complete bundle at `path` (a path or URI); returns its model version.

    Args:
        towers: weights by name; empty where the model has no towers.
        item_vectors: float32 [I, W] of the towers.
        trained: bool [I], items whose ID has been trained; None = all.
        media: vectors of images and sounds by kind, float16 [I, V].
        blend: None ranks by the towers alone.
        live: weights of the live sources; None: they have none.
        probability: what makes a score a probability; None: the model tells none.
        text_scale: "mean" and "scale" of text vectors, float32 [H] each, and where the blend has a text head its
            "centre" [H] and "axes" [H, C] (`ctxrec.memory.text_similarity`); `USER_MEAN` and `USER_SCALE` [H] of users'
            texts where these are read; empty without encoder.
        encoder: the fine-tuned encoder, or None where it was not tuned.
        queries: float32 [N, D] of some requests, by which the index's recall is measured.
        fill: how the lists of an index are filled.
    """

    def make(folder: str) -> None:
        paths = BundlePaths(folder)
        _write_text(paths.config, to_toml(config))
        about = {
            "spec": data.spec.to_dict(),
            "features": dataclasses.asdict(data.features),
            "shape": {k: v for k, v in dataclasses.asdict(shape).items() if k != "features"},
        }
        _write_text(paths.data, json.dumps(about, ensure_ascii=False))
        kept = [name for name in data.items.column_names if name != schema.ITEM_TEXT]
        pq.write_table(data.items.select(kept), paths.items)
        write_histories(paths.histories, data)
        save_file(towers, paths.towers)
        if towers:
            store_pretrained(config.model, paths.backbone)
        known = np.ones(len(item_vectors), bool) if trained is None else trained
        digest = digest_of(data.items.column(schema.ITEM_ID))
        header = {DIGEST: digest}
        vectors = {"items": item_vectors, "trained": known.astype(np.uint8), **text_scale}
        save_arrays(vectors, paths.vectors, metadata=header)
        if media:
            save_arrays(media, paths.media, metadata=header)
        if blend is not None:
            save_arrays(blend_arrays(blend), paths.blend, metadata=header)
        if live is not None:
            save_arrays(live.to_arrays(), paths.live)
        if probability is not None:
            save_arrays(probability.to_arrays(), paths.probability)
        if encoder is not None:
            save_encoder(encoder, paths.adapter)
        searched = item_vectors if blend is None else blend.vectors(item_vectors)
        build_index(searched, config.index, queries=queries, fill=fill).save(paths.index)
        files = hash_files(folder)
        encoder_name = config.encoder.name if shape.text_width else ""
        facts = {"model_version": version_of(files), "encoder": encoder_name, "data_fingerprint": data.fingerprint}
        write_manifest(folder, BUNDLE, files=files, **facts, **header)

    storage.write_dir(path, make, scratch=scratch)
    return str(storage.read_json(BundlePaths(path).manifest)["model_version"])


def blend_arrays(blend: Blend) -> dict[str, np.ndarray]:
    """What `blend.safetensors` holds by name, and `load_blend` reads: "weights" [2, K], heads [I, C], the memory's arrays."""
    of_words = np.isin(blend.sources, WORDS)
    arrays: dict[str, np.ndarray] = {
        "weights": np.ascontiguousarray(blend.weights_2K[:, ~of_words], np.float32),
        _WORDS: np.ascontiguousarray(blend.weights_2K[:, of_words], np.float32),
        "widths": np.array(blend.widths, np.int64),
    }
    arrays |= {f"covariance.{h}": matrix for h, matrix in enumerate(blend.covariances)}
    arrays |= {} if blend.text_IC is None else {"text": blend.text_IC}
    return arrays | to_arrays(blend.memory)


def with_bundled_model(config: Config, folder: str) -> Config:
    """`config` with the language model of a local bundle as its backbone, where the bundle has one."""
    path = BundlePaths(folder).backbone
    if not os.path.isdir(path):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=path))


def load_blend(folder: str) -> Blend | None:
    """The blend of a checked local bundle, or None where it has none."""
    path = BundlePaths(folder).blend
    if not os.path.exists(path):
        return None
    arrays = load_arrays(path)
    widths = tuple(arrays["widths"].tolist())
    text = arrays.get("text")
    covariances = tuple(arrays[f"covariance.{h}"] for h in range(len(widths) + (text is not None)))
    memory, weights = from_arrays(arrays), arrays["weights"]
    if text is not None:
        place = len(covariances)
        own = arrays.get(_WORDS, EARLIER_WORDS_22)
        weights = np.concatenate([weights[:, :place], own, weights[:, place:]], 1)
    return Blend(memory, text, widths, covariances, weights)


def load_live_weights(folder: str, blend: Blend | None) -> LiveWeights | None:
    """The weights of a blend with live sources of a checked local bundle, or None where it has none.

    Raises:
        ValueError: the arrays do not fit together.
    """
    path = BundlePaths(folder).live
    if blend is None or not os.path.exists(path):
        return None
    return LiveWeights.of_arrays(load_arrays(path), len(blend.sources))


def load_calibrations(folder: str, num_items: int) -> Calibrations | None:
    """What makes a score of a checked local bundle a probability, or None where the bundle has nothing of the kind.

    Args:
        folder: of the bundle.
        num_items: items of its catalogue.

    Raises:
        ValueError: the arrays do not fit together or to the catalogue.
    """
    path = BundlePaths(folder).probability
    return Calibrations.of_arrays(load_arrays(path), num_items) if os.path.exists(path) else None


def load_media(folder: str) -> dict[str, np.ndarray]:
    """Vectors of images and sounds of a checked local bundle by kind, float16 [I, V]; empty where it has none."""
    path = BundlePaths(folder).media
    return load_arrays(path) if os.path.exists(path) else {}


def save_encoder(encoder: TextEncoder, folder: str) -> None:
    """Write what was tuned: a PEFT adapter, or the trained weights for top and full tuning.

    Raises:
        RuntimeError: a weight is empty, as an ungathered ZeRO-3 shard would be.
    """
    os.makedirs(folder, exist_ok=True)
    weights = {n: p.detach().float().contiguous() for n, p in encoder.named_parameters() if p.requires_grad}
    empty = [name for name, value in weights.items() if value.numel() == 0]
    if empty or not weights:
        raise RuntimeError(f"the adapter has no weights to save ({', '.join(empty) or 'none is trainable'})")
    if encoder.config.tune in ("lora", "dora", "ia3"):
        encoder.backbone.save_pretrained(folder, safe_serialization=True)
        readme = os.path.join(folder, "README.md")  # PEFT's model card template
        if os.path.exists(readme):
            os.remove(readme)
        return
    save_file(weights, os.path.join(folder, "weights.safetensors"))


def load_encoder(config: Config, encoder_path: str, adapter: str) -> TextEncoder:
    """The fine-tuned encoder of a bundle: the pretrained one at `encoder_path` with the weights of `adapter`.

    Raises:
        UserError: the adapter is of other layers than the options name.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from safetensors.torch import load_file

    encoder = TextEncoder(config.encoder, encoder_path, tune=True)
    if config.encoder.tune in ("lora", "dora", "ia3"):
        found = set_peft_model_state_dict(encoder.backbone, load_peft_weights(adapter, device="cpu"))
        lost = [n for n, p in encoder.backbone.named_parameters() if p.requires_grad and n in found.missing_keys]
        if lost or found.unexpected_keys:
            raise UserError(
                f"the adapter in {adapter} is of other layers than encoder.top_layers = {config.encoder.top_layers} "
                f"names ({(lost or found.unexpected_keys)[0]}); train again with this version of ctxrec"
            )
    else:
        encoder.load_state_dict(load_file(os.path.join(adapter, "weights.safetensors")), strict=False)
    return encoder.eval()


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


def check_bundle(path: str, *, scratch: str) -> tuple[str, dict[str, Any]]:
    """A local folder with the bundle, after checking every file's hash and the order of its items, and its manifest.

    Raises:
        UserError: the bundle is missing, of another format, incomplete or damaged; names the file.
    """
    folder, manifest = read_checked(path, BUNDLE, scratch=scratch)
    with damage_named(path):
        check_item_order(folder, manifest, where=path)
    return folder, manifest


@dataclass(frozen=True)
class About:
    """The content of `data.json`."""

    spec: DatasetSpec
    features: FeatureMeta
    shape: dict[str, Any]

    @property
    def model_shape(self) -> ModelShape:
        """The sizes of the towers.

        Raises:
            UserError: a size is missing or of another type.
        """
        shape = {**self.shape, "features": dataclasses.asdict(self.features)}
        made: ModelShape = build_dataclass(ModelShape, shape, source="data.json", prefix="shape.")
        return made


def read_about(folder: str) -> About:
    """What `data.json` of a checked local bundle says.

    Raises:
        UserError: a key is missing or of another type, or a scale or a vocabulary is not sound.
    """
    path = BundlePaths(folder).data
    content = storage.read_json_object(path)
    try:
        about: About = build_dataclass(About, content, source=path)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}. Restore the bundle or train again") from error
    return about


@contextlib.contextmanager
def damage_named(path: str, *, noun: str = "bundle") -> Iterator[None]:
    """Files whose hashes fit, and which still cannot be read, are damage in one line.

    Args:
        path: path or URI of what is read.
        noun: what it is, for the message.

    Raises:
        UserError: whatever is raised inside by a file of another content.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:  # of the machine, and not of the content
            raise
        raise _damaged(f"the {noun} at {path}", error) from error
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        pa.ArrowException,
    ) as error:
        raise _damaged(f"the {noun} at {path}", error) from error


def _damaged(what: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:300]
    if isinstance(error, Unsound):
        return UserError(f"{what} is damaged: {said}. Restore it or train again")
    return UserError(
        f"{what} is damaged, or of another version: {type(error).__name__}: {said}. Restore it or train again"
    )
