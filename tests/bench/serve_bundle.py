"""A bundle of random weights for the speed benches: a catalogue of any size, users with full histories.

    python tests/bench/serve_bundle.py --items 100000 --dim 128 --out DIR

The cost of a request depends on sizes and not on the values of the weights. The last line is the path of the bundle.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ctxrec.bundle.format import BUNDLE, write_bundle
from ctxrec.core import ray_cluster
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.data.features import item_features
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.pipeline import prepare
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.two_tower import Towers

NUM_USERS, NUM_EVENTS = 2000, 60
FIRST_TIME, STEP_S = 1_690_000_000, 4_000
SPEC = """
name = "speed"
[events]
path = "events.parquet"
user = "user_id"
item = "item_id"
time = "timestamp"
[items]
path = "items.parquet"
id = "item_id"
categorical = ["category"]
[split]
strategy = "temporal"
valid = 0.0
test = 0.0
"""


def speed_bundle(num_items: int, dim: int, scratch: str) -> str:
    """A bundle of a two-layer tower over 50 events and `num_items` vectors of width `dim`; made once in `scratch`."""
    path = os.path.join(scratch, f"bundle-{num_items}x{dim}-v{BUNDLE.format_version}")
    if os.path.exists(path):
        return path
    data = _data(num_items, os.path.join(scratch, f"data-{num_items}"))
    # The last column of a vector is the item's own score, hence dim - 4 (a multiple of the heads) and no other head.
    options = [f"model.dim={dim}", "model.heads=4", "model.layers=2", "model.history=50"]
    config = load_config(None, [*options, 'model.sources=["media", "id", "features", "context", "user"]'])
    shape = ModelShape.of(config.model, data.features, num_items=data.num_items, text_width=0)
    torch.manual_seed(0)
    towers = Towers(config.model, shape, temperature=config.train.temperature).eval()
    with torch.inference_mode():
        for parameter in towers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        vectors, _ = towers(ItemTensors.of(item_features(data.items, data.features), shape), None)
    weights = {name: value.contiguous() for name, value in towers.state_dict().items()}
    write_bundle(
        path,
        config=config,
        data=data,
        shape=shape,
        towers=weights,
        item_vectors=vectors.numpy(),
        text_scale={},
        encoder=None,
        scratch=tempfile.gettempdir(),
    )
    return path


def _data(num_items: int, folder: str) -> PreparedData:
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(0)
    ids = [f"item-{n:07d}" for n in range(num_items)]
    items = {"item_id": ids, "category": [f"c{n % 20}" for n in range(num_items)]}
    pq.write_table(pa.table(items), os.path.join(folder, "items.parquet"))
    users = np.repeat(np.arange(NUM_USERS), NUM_EVENTS)
    events = {
        "user_id": [f"user-{user:05d}" for user in users],
        "item_id": [ids[item] for item in rng.integers(0, num_items, len(users))],
        "timestamp": FIRST_TIME + np.tile(np.arange(NUM_EVENTS), NUM_USERS) * STEP_S,
    }
    pq.write_table(pa.table(events), os.path.join(folder, "events.parquet"))
    with open(os.path.join(folder, "spec.toml"), "w", encoding="utf-8") as stream:
        stream.write(SPEC)
    return prepare(load_spec(os.path.join(folder, "spec.toml")), os.path.join(folder, "prepared"), load_config())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    parser.add_argument("--dim", type=int, default=128, help="width of the tower; vectors have one number more")
    parser.add_argument("--out", required=True, help="folder for the log and the bundle")
    args = parser.parse_args()
    ray_cluster.connect()
    print(speed_bundle(args.items, args.dim, args.out))


if __name__ == "__main__":
    main()
