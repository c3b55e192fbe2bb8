"""A copy of a bundle whose item memory knows all events of the data, also those that were held out to judge the bundle.

What has a closed form is fitted again: pairs of items, what follows what, popularity, and which items are new. The towers,
the texts and all weights stay as they are.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from ctxrec.bundle.format import BUNDLE, blend_arrays, check_bundle, load_blend
from ctxrec.bundle.history_file import write_histories
from ctxrec.bundle.item_order import DIGEST
from ctxrec.core import schema, storage
from ctxrec.core.config import load_config
from ctxrec.core.manifest import hash_files, version_of, write_manifest
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.log_statistics import BucketEvents
from ctxrec.data.prepared import PreparedData
from ctxrec.index.builder import build_index
from ctxrec.memory.item_memory import fit_memory

_TOWERS_UNTIL = "towers_until_us"  # in the manifest, where the memory knows later events than the towers


def with_all_events(bundle: str, data: PreparedData, out: str, *, queries: np.ndarray | None = None) -> str:
    """Write the copy; returns its version, or "" where the bundle has no memory, or no event was held out.

    Args:
        bundle: path or URI.
        data: what it was trained on.
        out: path or URI of the copy.
        queries: float32 [N, D] of some requests, by which the index's recall is measured.

    Raises:
        UserError: the bundle is damaged.
    """
    folder, manifest = check_bundle(bundle, scratch=storage.temporary_folder())
    blend = load_blend(folder)
    events = [BucketEvents.read(data, n) for n in range(len(data.bucket_paths))]
    if blend is None or not any((part.split == schema.TEST).any() for part in events):
        return ""
    parts = (part.before(schema.TEST + 1) for part in events)
    repeats = data.spec.split.repeats
    memory = fit_memory(parts, data.num_items, repeats=repeats, text_IC=blend.text_IC, kinds=data.kinds)
    made = dataclasses.replace(blend, memory=memory)

    def make(copy: str) -> None:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        paths = BundlePaths(copy)
        header = {DIGEST: manifest[DIGEST]}
        save_file(blend_arrays(made), paths.blend, metadata=header)
        write_histories(paths.histories, data, trained=True)
        vectors = made.vectors(load_file(paths.vectors)["items"])
        build_index(vectors, load_config(base=paths.config).index, queries=queries).save(paths.index)
        files = hash_files(copy)
        own = ("format_version", "files", "sha256", "model_version")
        facts = {name: value for name, value in manifest.items() if name not in own}
        facts |= {"model_version": version_of(files), _TOWERS_UNTIL: towers_until(folder, manifest)}
        write_manifest(copy, BUNDLE, files=files, **facts)

    storage.write_dir(out, make, scratch=storage.temporary_folder())
    return str(storage.read_json_object(BundlePaths(out).manifest)["model_version"])


def towers_until(folder: str, manifest: dict[str, object]) -> int:
    """Time of the last event that the towers of a bundle were trained on, microseconds; -1 without events.

    Args:
        folder: a checked local bundle.
        manifest: its manifest.
    """
    known = manifest.get(_TOWERS_UNTIL)
    if isinstance(known, int):
        return known
    with pa.memory_map(BundlePaths(folder).histories) as source:
        table = pa.ipc.open_file(source).read_all().select([schema.EVENT_TIMES, schema.EVENT_SPLIT]).combine_chunks()
    times, split = (table.column(name).combine_chunks().flatten().to_numpy() for name in table.column_names)
    return int(times[split != schema.TEST].max(initial=-1))
