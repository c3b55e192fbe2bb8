"""Towers that are trained on: an earlier model gives the same scores in the places of new data, and learns from new events."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ctxrec.core import schema
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.batching import Batcher
from ctxrec.data.features import item_features
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.two_tower import make_towers
from ctxrec.retrieval.load import load_recommender
from ctxrec.training import worker
from ctxrec.training.driver import train
from ctxrec.training.warm_start import Earlier, read_earlier, rescaled, warm_weights, why_not
from ctxrec.training.window_sampler import NewEvents, TrainStream


def earlier_of(config, world, towers, items: list[str]) -> Earlier:
    shape = ModelShape.of(config.model, world.features, num_items=len(items), text_width=0)
    return Earlier(
        config=config,
        shape=shape,
        item_ids=items,
        towers=towers.state_dict(),
        text_scale={},
        encoder=None,
        blend=None,
        version="earlier",
        trained_until_us=0,
    )


def test_the_same_items_have_the_same_vectors_in_other_places(make_world):
    """Another order of the catalogue and of each vocabulary, other scales, a new item and a new value."""
    world = make_world()
    config = world.config()
    towers, before = world.towers(config)
    ids = world.table.column(schema.ITEM_ID).to_pylist()
    features = dataclasses.replace(
        world.features,
        item_categories={"kind.of": ["z", "c", "a", "b"], "maker": ["y", "x"]},
        item_numbers={"price": {"mean": 0.9, "std": 0.7}, "size": {"mean": 0.1, "std": 1.3}},
        actions=["buy", "like", "view"],
    )
    order = np.random.default_rng(1).permutation(len(ids))
    table = world.table.take(order)
    new_item = table.slice(0, 1).set_column(0, schema.ITEM_ID, [["brand new"]])
    table = pa.concat_tables([new_item.cast(table.schema), table])
    catalogue = item_features(table, features)
    shape = ModelShape.of(config.model, features, num_items=len(table), text_width=0)
    made = make_towers(config, shape).eval()
    new_ids = table.column(schema.ITEM_ID).to_pylist()
    made.load_state_dict(warm_weights(made.state_dict(), earlier_of(config, world, towers, ids), shape, new_ids))
    with torch.inference_mode():
        was, _ = towers(before, None)
        now, _ = made(ItemTensors.of(catalogue, shape), None)
    uncut = order < 15  # the logarithm of a price above lies more than five deviations from the mean, and is cut
    np.testing.assert_allclose(now.numpy()[1:][uncut], was.numpy()[order][uncut], atol=1e-5)
    actions = made.user.action.weight
    assert torch.equal(actions[[0, 3, 1]], towers.user.action.weight), "no action, view, buy"


def test_a_layer_for_another_scale_gives_the_same():
    weight = torch.tensor([[2.0, -1.0, 0.5, 3.0]])
    before, now = (
        [{"mean": 1.0, "std": 2.0}, {"mean": 0.0, "std": 1.0}],
        [{"mean": 3.0, "std": 4.0}, {"mean": -1.0, "std": 0.5}],
    )

    def seen(x: list[float], scales) -> torch.Tensor:
        return torch.tensor([*((v - s["mean"]) / s["std"] for v, s in zip(x, scales, strict=True)), 1.0, 1.0])

    x = [7.0, 2.0]
    torch.testing.assert_close(weight @ seen(x, before), rescaled(weight, before, now) @ seen(x, now))


@pytest.mark.parametrize("replay", [0.0, 0.5, 100.0])
def test_windows_with_new_events_are_all_read_and_others_by_their_share(tiny_data, replay):
    data = PreparedData.open(tiny_data)
    batcher = Batcher(data.features, history=4, kinds=data.kinds)
    scan = scan_log(data, history=4, keep_events=True)
    times = np.concatenate([part.times for part in scan.events])
    since = int(np.quantile(times, 0.8))
    options = {"global_batch_size": 8, "micro_batch_size": 0, "seed": 0, "rank": 0, "world": 1}
    stream = TrainStream(data, scan, batcher, last_split=schema.VALID, new=NewEvents(since, replay), **options)
    steps = [list(stream.epoch(epoch)) for epoch in range(2)]
    assert [len(s) for s in steps] == [stream.steps_per_epoch] * 2
    everything = TrainStream(data, scan, batcher, last_split=schema.VALID, **options)
    read = [sum(len(b.lengths_B) for step in s for b in step.micro_batches) for s in steps]
    newest = [
        int(b.times_BS.max(1).values.gt(since // 1_000_000).sum())
        for s in steps
        for step in s
        for b in step.micro_batches
    ]
    num_new = sum(newest) // 2
    assert num_new > 5 and sum(newest) == 2 * num_new, "each epoch reads all of them"
    whole = sum(everything.bucket_windows)
    assert read[0] == read[1] == whole if replay == 100 else abs(read[0] - num_new * (1 + replay)) <= 2


def test_a_training_goes_on_from_an_earlier_one(tiny_data, tiny_run, tiny_config, tmp_path, monkeypatch):
    """The tiny run tuned its encoder: the new one keeps the adapter, the blend and the options, and takes few steps."""
    bundle = RunPaths(tiny_run).bundle
    data = PreparedData.open(tiny_data)
    times = np.concatenate([part.times for part in scan_log(data, history=4, keep_events=True).events])
    since = int(np.quantile(times, 0.8))

    def as_if_a_fifth_were_new(*given, **options) -> Earlier:
        return dataclasses.replace(read_earlier(*given, **options), trained_until_us=since)

    monkeypatch.setattr(worker, "read_earlier", as_if_a_fifth_were_new)
    assert why_not(bundle, data, tiny_config) == ""
    run = train(tiny_data, str(tmp_path / "run"), tiny_config, warm=bundle)
    before, now = load_recommender(bundle), load_recommender(RunPaths(run).bundle)
    assert now.item_ids == before.item_ids and np.isfinite(now.vectors).all()
    np.testing.assert_array_equal(now.blend.weights_2K, before.blend.weights_2K)
    assert now.config.train.tower_epochs == before.config.train.tower_epochs == 2
    lines = [json.loads(line) for line in (Path(run) / "train_log.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"refit"}
    adapter = Path("adapter", "adapter_model.safetensors")
    assert (Path(RunPaths(run).bundle) / adapter).read_bytes() == (Path(bundle) / adapter).read_bytes()
    cosines = (now.item_vectors * before.item_vectors).sum(1) / (
        np.linalg.norm(now.item_vectors, axis=1) * np.linalg.norm(before.item_vectors, axis=1)
    )
    assert cosines.min() > 0.9, "it is still the same model"
    assert cosines.min() < 0.9999, "and it has learnt"
    assert train(tiny_data, str(tmp_path / "run"), tiny_config, warm=bundle) == run
    monkeypatch.undo()
    same = train(tiny_data, str(tmp_path / "same"), tiny_config, warm=bundle)
    np.testing.assert_allclose(load_recommender(RunPaths(same).bundle).item_vectors, before.item_vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"preset": "quick"}, "a quick model has no towers"),
        ({"dim": 32}, "model.dim was 16 and is 32"),
        ({"backbone": "gru"}, "model.backbone was 'transformer' and is 'gru'"),
        ({"rank": 4}, "encoder.rank was 8 and is 4"),
    ],
)
def test_other_models_are_trained_anew(tiny_data, tiny_run, tiny_config, option, says):
    for section in ("train", "model", "encoder"):
        part = getattr(tiny_config, section)
        if set(option) <= {field.name for field in dataclasses.fields(part)}:
            changed = dataclasses.replace(tiny_config, **{section: dataclasses.replace(part, **option)})
            assert says in why_not(RunPaths(tiny_run).bundle, PreparedData.open(tiny_data), changed)


def test_other_features_are_trained_anew(tiny_data, tiny_run, tiny_config, tmp_path):
    changed = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    meta = json.loads((changed / "meta.json").read_text())
    meta["features"]["context_numbers"] = {}
    (changed / "meta.json").write_text(json.dumps(meta))
    said = why_not(RunPaths(tiny_run).bundle, PreparedData.open(str(changed)), tiny_config)
    assert said == "the context numbers were basket_value and are none"
