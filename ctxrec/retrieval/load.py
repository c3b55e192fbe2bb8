"""Loads a bundle as a recommender."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from ctxrec.bundle import content_check
from ctxrec.bundle import format as bundle_format
from ctxrec.bundle.history_file import read_histories
from ctxrec.core import schema, storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.model.inputs import ModelShape
from ctxrec.model.two_tower import NoTowers, Towers, make_towers
from ctxrec.retrieval.bundle_texts import BundleTexts
from ctxrec.retrieval.recommender import Recommender


def load_recommender(bundle: str) -> Recommender:
    """Load a bundle (path or URI) after checking its hashes; executes no code from it.

    Raises:
        UserError: it is missing, incomplete or damaged, or has content that cannot be used (`ctxrec.bundle.content_check`).
    """
    folder, manifest = bundle_format.check_bundle(bundle, scratch=storage.temporary_folder())
    with bundle_format.damage_named(bundle):
        content_check.check_finite(folder, list(manifest["files"]))
        return _load(bundle, folder, manifest["model_version"])


def _load(bundle: str, folder: str, model_version: str) -> Recommender:
    config, spec, shape, towers = _load_towers(folder)
    damaged = f"the bundle at {bundle} is damaged"
    items = schema.widen_item_numbers(pq.read_table(BundlePaths(folder).items))
    kept = [column for column in schema.items_schema(spec) if column.name != schema.ITEM_TEXT]
    schema.check_schema(items, pa.schema(kept), source=f"{damaged}: items.parquet")
    arrays = load_arrays(BundlePaths(folder).vectors)
    vectors = arrays["items"]
    content_check.check_items(items)
    if shape.num_items != len(vectors):
        raise UserError(
            f"{damaged}: data.json says {shape.num_items} items and vectors.safetensors has "
            f"{len(vectors)}. Restore it or train again"
        )
    histories = read_histories(
        BundlePaths(folder).histories,
        spec,
        shape.features,
        num_items=len(vectors),
        source=f"{damaged}: histories.arrow",
    )
    blend = bundle_format.load_blend(folder)
    content_check.check_sizes(vectors, towers.widths, blend, num_codes=len(shape.features.actions) + 1)
    content_check.check_text_axes(arrays, shape.text_width, blend)
    return Recommender(
        config=config,
        spec=spec,
        features=shape.features,
        towers=towers,
        items=items,
        item_vectors=vectors,
        histories=histories,
        model_version=model_version,
        blend=blend,
        texts=BundleTexts(folder, config, arrays) if shape.text_width else None,
        live_weights=bundle_format.load_live_weights(folder, blend),
        calibration=bundle_format.load_calibrations(folder, len(vectors)),
    )


def trained_items(bundle: str) -> np.ndarray:
    """The items whose IDs the model of a bundle reads, because they have training events: bool [I]."""
    folder, _ = bundle_format.check_bundle(bundle, scratch=storage.temporary_folder())
    return load_arrays(BundlePaths(folder).vectors)["trained"] > 0


def _load_towers(folder: str) -> tuple[Config, DatasetSpec, ModelShape, Towers | NoTowers]:
    """Options, data set, sizes and towers, ready to score, of a checked local bundle."""
    config = load_config(base=BundlePaths(folder).config)
    about = bundle_format.read_about(folder)
    shape = about.model_shape
    towers = make_towers(bundle_format.with_bundled_model(config, folder), shape)
    towers.load_state_dict(load_file(BundlePaths(folder).towers))
    return config, about.spec, shape, towers.eval()
