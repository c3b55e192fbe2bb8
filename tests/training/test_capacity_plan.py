"""The planner's model of memory against what real networks hold, and its advice."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from commands import assert_users_mistake, call
from transformers import BertConfig, BertModel

from ctxrec.core.config import EncoderConfig, load_config
from ctxrec.core.errors import UserError
from ctxrec.encoder.encode_plan import Tokens, plan_encoding
from ctxrec.encoder.text_encoder import TextEncoder, attach
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import EncodeInputs, LossInputs, Network
from ctxrec.model.two_tower import Towers
from ctxrec.training.capacity_plan import Hardware, Work, plan, report
from ctxrec.training.memory_model import FP32, TUNES, Encoder, Load, catalogue_bytes, per_gpu, tower_weights


def bert(tune: str, *, layers: int, hidden: int, heads: int, top_layers: int = 0):
    """A BERT-like encoder in training, and the planner's idea of it."""
    config = BertConfig(
        vocab_size=100, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,  # as `encoder.load_backbone` has it
    )  # fmt: skip
    model = BertModel(config)
    model.pooler = None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attached = attach(model, EncoderConfig(tune=tune, top_layers=top_layers))
    return attached.train(), Encoder(layers, hidden, 100, heads=heads, inner=4 * hidden, positions=128)


def kept_bytes(compute, weights) -> int:
    """Bytes of all that autograd keeps for the backward pass of `compute()`, weights left out."""
    known = {p.untyped_storage().data_ptr() for p in weights}
    kept, alive = {}, []

    def pack(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in known:
            kept[place.data_ptr()] = place.nbytes()
            alive.append(tensor)  # else another tensor could take its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(kept.values())


@pytest.mark.parametrize("tune", TUNES)
def test_weights_are_counted(tune):
    model, sizes = bert(tune, layers=3, hidden=64, heads=4, top_layers=2)
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.trainable(tune, rank=8, top_layers=2) == pytest.approx(learns, rel=0.02)
    frozen = sum(p.numel() for p in bert("freeze", layers=3, hidden=64, heads=4)[0].parameters())
    assert sizes.parameters == pytest.approx(frozen, rel=0.01)


@pytest.mark.parametrize("tune", [tune for tune in TUNES if tune != "freeze"])
@pytest.mark.parametrize(
    ("hidden", "heads", "texts", "length", "top"), [(64, 4, 16, 16, 0), (128, 4, 8, 64, 0), (64, 2, 8, 32, 1)]
)
def test_activations_are_as_measured(tune, hidden, heads, texts, length, top):
    model, sizes = bert(tune, layers=3, hidden=hidden, heads=heads, top_layers=top)
    ids = torch.randint(1, 99, (texts, length))
    mask = torch.ones_like(ids)
    measured = kept_bytes(lambda: model(input_ids=ids, attention_mask=mask).last_hidden_state.sum(), model.parameters())
    expected = sizes.activations(tune, tokens=texts * length, rank=8, top_layers=top, checkpointing=False)
    assert expected == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("width", "dim", "content"), [(96, 32, 32), (48, 64, 16)])
def test_catalogue_is_as_measured(make_world, width, dim, content):
    """What one more item costs a step of the towers: of a real network, by two catalogues of different size."""

    def held(num_items: int) -> int:
        world = make_world(rich=False, num_items=num_items)
        config = load_config(None, [f"model.dim={dim}", f"model.content_dim={content}", "model.history=6"])
        shape = ModelShape.of(config.model, world.features, num_items=num_items, text_width=width)
        items = ItemTensors.of(world.catalogue, shape)
        network = Network(Towers(config.model, shape, temperature=0.07).train(), None)
        table = TextTable(torch.randn(num_items, width), torch.ones(num_items), torch.zeros(width), torch.ones(width))
        inputs = LossInputs(items, table, _batch(world, config), "softmax")
        steady = [*vars(table).values(), items.id_rows_I, items.trained_I, items.place_I]

        def step():
            network(inputs)

        return sum(t.nbytes for t in steady) + kept_bytes(step, [*network.parameters(), *steady])

    load = Load(items=1000, id_rows=0, dim=dim, content=content, fresh_tokens=0, positions=0, scores=0)
    measured = held(1500) - held(500)
    assert catalogue_bytes(load, width, tuned=False) == pytest.approx(measured, rel=0.15)
    # The gradient of the text vectors is the backward pass's own: one more number for each.
    more = catalogue_bytes(load, width, tuned=True) - catalogue_bytes(load, width, tuned=False)
    assert more == 1000 * width * 4


def peak_bytes(step) -> int:
    """The most that `step()` holds at a time beyond what was there before, by the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as traced:
        step()
    events = [event for event in traced.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("tune", "checkpointing", "layers", "hidden", "texts", "length", "num_items"),
    [
        ("lora", False, 3, 64, 16, 32, 400),
        ("lora", False, 4, 192, 8, 16, 400),  # weights are the most of it
        ("full", False, 3, 128, 32, 64, 2000),
        ("full", True, 6, 64, 32, 32, 400),
    ],
)
def test_the_peak_of_a_whole_step_is_as_measured(
    make_world, tmp_path, tune, checkpointing, layers, hidden, texts, length, num_items
):
    """Weights, gradients, AdamW's moments, activations and catalogue together: forward, backward and update."""
    heads, dim, content = 4, 32, 32
    plain, sizes = bert("freeze", layers=layers, hidden=hidden, heads=heads)
    plain.save_pretrained(tmp_path)
    options = EncoderConfig(name=str(tmp_path), tune=tune, top_layers=0, gradient_checkpointing=checkpointing)
    options = dataclasses.replace(options, token_budget=texts * length)
    world = make_world(rich=False, num_items=num_items)
    config = load_config(None, [f"model.dim={dim}", f"model.content_dim={content}", "model.history=6"])
    shape = ModelShape.of(config.model, world.features, num_items=num_items, text_width=hidden)
    items, batch = ItemTensors.of(world.catalogue, shape), _batch(world, config)
    encoder = TextEncoder(options, str(tmp_path), tune=True)
    network = Network(Towers(config.model, shape, temperature=0.07), encoder).train()
    table = TextTable(torch.randn(num_items, hidden), torch.ones(num_items), torch.zeros(hidden), torch.ones(hidden))
    tokens = Tokens(np.ones(texts * length, np.int32), np.arange(texts + 1) * length, pad_id=0)
    division = plan_encoding(np.arange(texts), tokens.lengths, budget=options.token_budget, world=1)
    fresh = EncodeInputs(tokens, division, rank=0, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], foreach=False)

    def step() -> None:
        optimizer.zero_grad()
        network(LossInputs(items, table, batch, "softmax", fresh=fresh)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the moments are made in the first one
    moments = [value for state in optimizer.state.values() for value in state.values()]
    steady = [*vars(table).values(), items.id_rows_I, items.trained_I, items.place_I]
    measured = sum(t.nbytes for t in (*network.parameters(), *moments, *steady)) + peak_bytes(step)
    load = Load(
        items=num_items, id_rows=num_items, dim=dim, content=content, fresh_tokens=texts * length,
        positions=batch.targets_BS.numel(), scores=num_items,
    )  # fmt: skip
    parts = per_gpu(sizes, load, tune=tune, stage=0, gpus=1, checkpointing=checkpointing, weight_bytes=FP32)
    assert sum(parts.values()) == pytest.approx(measured, rel=0.15), parts


def _batch(world, config):
    from ctxrec.data.batching import make_windows

    offsets = world.histories.events.offsets
    return world.batcher(config).training(
        world.histories, make_windows(offsets[:-1], offsets[1:], config.model.history)
    )


def test_zero_divides_what_it_says():
    encoder = Encoder.of("4,256,1000")
    load = Load(items=1000, id_rows=1000, dim=64, content=64, fresh_tokens=100, positions=64, scores=8)
    stages = [per_gpu(encoder, load, tune="full", stage=stage, gpus=4) for stage in range(4)]
    assert stages[1]["optimizer"] * 4 == pytest.approx(stages[0]["optimizer"], abs=8)
    assert stages[2]["gradients"] * 4 == pytest.approx(stages[0]["gradients"], abs=8)
    assert stages[3]["weights"] * 4 == pytest.approx(stages[0]["weights"], abs=8)
    assert stages[1]["weights"] == stages[0]["weights"] and stages[1]["gradients"] == stages[0]["gradients"]
    learns = encoder.parameters + tower_weights(load, 256)
    assert stages[0]["optimizer"] == 12 * learns  # two moments and the master copy


def test_recommendations_follow_the_memory():
    config = load_config(None, ["encoder.tune=full"])
    work = Work(events=10**8, items=10**5, users=10**6)
    encoder = Encoder.of("24,1024,30522")
    sizes = {memory: plan(work, encoder, Hardware(gpus=8, gpu_memory_gb=memory), config) for memory in (80, 8, 5, 1)}
    stage = [sizes[memory]["recommended"]["set"].get("train.zero_stage") for memory in (80, 8)]
    assert stage[0] == 0 and stage[1] > 0
    assert not sizes[1]["recommended"]["fits"] and "items fit" in sizes[1]["recommended"]["reason"]
    for made in sizes.values():
        assert report(made) and json.dumps(made)
        assert all(
            row["total"] == sum(row[k] for k in ("weights", "gradients", "optimizer", "activations", "catalogue"))
            for row in made["memory"]
        )


def test_command_and_its_mistakes(tmp_path):
    sizes = ["--events", "1e8", "--items", "1e6", "--users", "1e7", "--gpus", "8"]
    done = call("ctxrec.plan", *sizes, "--encoder", "6,384,30522", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["recommended"]["fits"] and load_config(
        None, [f"{k}={str(v).lower()}" for k, v in made["recommended"]["set"].items()]
    )
    assert_users_mistake(call("ctxrec.plan", *sizes, "--encoder", "6,384"), "layers,hidden,vocab")
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10, "num_attention_heads": 4}'
    )
    assert Encoder.of(str(tmp_path)) == Encoder(2, 64, 10, heads=4, inner=256)
    with pytest.raises(UserError, match="more than 0"):
        plan(Work(0, 1, 1), Encoder.of("1,2,3"), Hardware(), load_config())
