"""A catalogue divided over workers has the loss and the gradients of one worker that computes all of it.

`python test_catalogue_shares.py RANK WORLD FOLDER` is one of WORLD processes: it compares its part of each case with the
same step computed alone, and writes the losses to FOLDER/WORLD-RANK.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from paths import REPO, TESTS
from ranks import run_ranks
from worlds import random_world

from ctxrec.data.batching import make_windows
from ctxrec.encoder.text_table import make_text_table
from ctxrec.model import losses, network
from ctxrec.model.catalogue_shares import CatalogueShare, DividedStep
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import LossInputs, Network
from ctxrec.model.two_tower import Towers

NUM_ITEMS = 41
CASES = {
    "plain": {},
    "rich": {"rich": True},
    "rich with texts": {"rich": True, "text": True},
    "texts and items without events": {"text": True, "all_trained": False},
    "negative feedback": {"rich": True, "text": True, "disliked": True},
    "fewer windows than workers": {"text": True, "num_windows": 1},
    "no target": {"text": True, "num_windows": 1, "no_target": True},
    "bfloat16": {"rich": True, "text": True, "dtype": torch.bfloat16},
}
# What sums in another order may differ by: absolute, as gradients are of the order of 1.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}


def make_step(rank: int, world: int, *, rich: bool = False, text: bool = False, all_trained: bool = True,
              disliked: bool = False, num_windows: int = 99, no_target: bool = False,
              dtype: torch.dtype = torch.float32):  # fmt: skip
    """A network, and the inputs of this worker and of a worker that is alone."""
    torch.manual_seed(0)
    made = random_world(rich=rich, num_items=NUM_ITEMS)
    config = made.config("model.dropout=0", "model.id_dropout=0", "model.text_dropout=0")
    histories, rng = made.histories, np.random.default_rng(1)
    weights = rng.random(len(histories.events.items)).astype(np.float32) + 0.1
    weights[::4] *= -1 if disliked else 1
    weights[1::6] = 0
    histories = dataclasses.replace(histories, weights=weights * (not no_target))
    table = None
    if text:
        table = make_text_table(rng.normal(size=(NUM_ITEMS, 12)).astype(np.float32), np.arange(NUM_ITEMS) % 5 > 0)
    shape = ModelShape.of(config.model, made.features, num_items=NUM_ITEMS, text_width=12 if text else 0)
    trained = np.ones(NUM_ITEMS, bool) if all_trained else np.isin(np.arange(NUM_ITEMS), histories.events.items)
    assert all_trained or 0 < trained.sum() < NUM_ITEMS
    items = ItemTensors.of(made.catalogue, shape, trained=trained)
    net = Network(Towers(config.model, shape, temperature=0.3), None).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    offsets = histories.events.offsets
    windows = make_windows(offsets[:-1], offsets[1:], config.model.history)
    windows = windows.take(np.arange(min(num_windows, len(windows))))
    batcher = made.batcher(config)
    # As `TrainStream` divides a micro-batch: rows of no weight fill up the workers that have fewer.
    mine = np.arange(len(windows))[rank::world]
    padding = max(-(-len(windows) // world), 1) - len(mine)
    batch = batcher.training(histories, windows.take(np.concatenate([mine, np.zeros(padding, np.int64)])))
    batch.weights_BS[len(mine) :] = 0
    spans = zip(windows.start.tolist(), windows.stop.tolist(), strict=True)
    distinct = np.unique(np.concatenate([histories.events.items[a:b] for a, b in spans]))
    share = CatalogueShare.of(items, table, rank=rank, world=world)
    step = DividedStep.of(share, distinct, batcher.asked(histories, windows))
    whole = LossInputs(items, table, batcher.training(histories, windows), "softmax")
    return net, LossInputs(items, table, batch, "softmax", divided=step), whole


def compare(rank: int, world: int, **case) -> float:
    """The loss of a case, whose gradients are those of one worker."""
    net, divided, whole = make_step(rank, world, **case)
    tolerance = TOLERANCE[case.get("dtype", torch.float32)]
    found = []
    for inputs in (divided, whole):
        net.zero_grad()
        loss = net(inputs)
        loss.backward()
        grads = {name: p.grad.float() for name, p in net.named_parameters()}
        found.append([loss.detach().clone(), grads])
    loss, grads = found[0]
    dist.all_reduce(loss)
    for grad in grads.values():
        dist.all_reduce(grad)
    torch.testing.assert_close(loss, found[1][0], atol=tolerance, rtol=tolerance)
    largest = max(float(grad.abs().max()) for grad in found[1][1].values())
    assert largest > 0.1 or case.get("no_target"), "there is something to compare"
    for name, expected in found[1][1].items():
        atol = tolerance * max(largest, 1)
        torch.testing.assert_close(grads[name], expected, atol=atol, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    return float(loss)


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    losses.CHUNKS = losses.ChunkParams(scores=1, rows=5)  # several chunks
    network.CONTENT_POSITIONS = 8  # so that the content head leaves some positions out
    found = {name: compare(rank, world, **case) for name, case in CASES.items()}
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.system  # several processes
@pytest.mark.parametrize("world", [2, 3])
def test_workers_that_divide_the_items_have_the_gradients_of_one(tmp_path, world):
    env = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{TESTS}"}
    found = run_ranks(__file__, tmp_path, world, env=env, timeout_s=300)
    assert set(found) == set(CASES) and all(loss > 0 for name, loss in found.items() if name != "no target")


def test_shares_are_all_items_that_compete_once():
    _, inputs, _ = make_step(0, 1, text=True, all_trained=False)
    items = inputs.items
    shares = [CatalogueShare.of(items, inputs.text, rank=rank, world=3) for rank in range(3)]
    sizes = [len(share.items.id_rows_I) for share in shares]
    assert sum(sizes) == len(items.pool) and max(sizes) - min(sizes) <= 1 and max(sizes) == shares[0].divided.most
    for rank, share in enumerate(shares):
        rows = share.rows_of(items.pool)
        mine = rows >= 0
        assert rows[mine].tolist() == list(range(sizes[rank])) and mine.tolist() == [
            n % 3 == rank for n in range(len(mine))
        ]
        torch.testing.assert_close(share.text.vectors_IH, inputs.text.vectors_IH[items.pool[mine]])


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
