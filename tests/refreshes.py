"""A shop with new events: what tests of refreshes share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from shop import make_dataset

from ctxrec.bundle.format import BUNDLE
from ctxrec.bundle.item_order import DIGEST, digest_of
from ctxrec.bundle.registry import publish
from ctxrec.core import manifest, storage
from ctxrec.core.config import Config, load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.ingest.pipeline import prepare
from ctxrec.training.driver import train

USERS = 800


def quick(encoder: str) -> Config:
    return load_config(None, ["train.preset=quick", f"encoder.name={encoder}", "prepare.buckets=2"])


def make_shop(folder: Path) -> Path:
    """A shop whose log is a file a period: events/0.parquet is there, 1.parquet and 2.parquet lie in later/."""
    make_dataset(folder, num_users=USERS, strategy="temporal")
    log = pq.read_table(folder / "events.parquet").sort_by("timestamp")
    for name in ("events", "later"):
        (folder / name).mkdir()
    cuts = [0, int(0.8 * len(log)), int(0.9 * len(log)), len(log)]
    for n, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        place = "events" if n == 0 else "later"
        pq.write_table(log.slice(start, stop - start), folder / place / f"{n}.parquet")
    (folder / "events.parquet").unlink()
    spec = folder / "dataset.toml"
    spec.write_text(spec.read_text().replace('"events.parquet"', '"events/*.parquet"'))
    return folder


def arrive(shop: Path, number: int, change: Callable[[pa.Table], pa.Table] = lambda log: log) -> None:
    """The events of a period arrive, after `change`."""
    log = pq.read_table(shop / "later" / f"{number}.parquet")
    pq.write_table(change(log), shop / "events" / f"{number}.parquet")


def serve_first(shop: Path, models: Path, config: Config) -> str:
    """Train on what is there and publish it; returns the bundle."""
    data = prepare(load_spec(str(shop / "dataset.toml")), str(models / "first-data"), config)
    run = train(data.path, str(models / "first-run"), config)
    publish(RunPaths(run).bundle, str(models))
    return RunPaths(run).bundle


def rewritten(bundle: str, out: Path, change: Callable[[Path], None]) -> str:
    """A copy of a bundle that `change` has spoilt, with the right hashes of what is in it now."""
    shutil.copytree(bundle, out)
    change(out)
    kept = storage.read_json(BundlePaths(str(out)).manifest)
    files = manifest.hash_files(str(out))
    facts = {key: value for key, value in kept.items() if key not in ("format_version", "files", "sha256")}
    manifest.write_manifest(str(out), BUNDLE, files=files, **facts | {"model_version": manifest.version_of(files)})
    return str(out)


def change_arrays(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """What changes the arrays of a file of a bundle, whose header stays."""

    def spoil(folder: Path) -> None:
        from safetensors import safe_open

        path = folder / file
        with safe_open(path, "numpy") as stream:
            header = stream.metadata()
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path, metadata=header)

    return spoil


def with_column(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.chunked_array([values]))


def permute_ids(folder: Path) -> None:
    """Each item of a bundle has the vectors of another one; all files agree on the order."""
    items = pq.read_table(folder / "items.parquet")
    ids = np.random.default_rng(0).permutation(items.column("item_id").to_numpy(zero_copy_only=False))
    items = with_column(items, "item_id", pa.array(ids, pa.string()))
    pq.write_table(items, folder / "items.parquet")
    digest = digest_of(items.column("item_id"))
    for path in (folder / "vectors.safetensors", folder / "blend.safetensors"):
        if path.exists():  # a bundle may have no blend
            save_file(load_file(path), path, metadata={DIGEST: digest})
    content = storage.read_json(str(folder / "manifest.json"))
    storage.write_json(str(folder / "manifest.json"), content | {DIGEST: digest})
