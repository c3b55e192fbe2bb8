"""History backbones: causal, blind to padding, aware of time where they say so; language models in a bundle."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ctxrec.bundle import format as bundle_format
from ctxrec.core.config import BACKBONES, EvaluateConfig, load_config
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths
from ctxrec.data.batching import make_windows
from ctxrec.evaluation.offline import evaluate_run
from ctxrec.model.backbones import check_backbone, make_backbone, store_pretrained
from ctxrec.model.backbones.hstu import NUM_TIME_BUCKETS, HstuLayer, time_buckets
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import LossInputs, Network
from ctxrec.model.two_tower import Towers
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.training.deepspeed_engine import OPTIMIZER, parameter_groups
from ctxrec.training.driver import train

WORDS = 30


def make_language_model(folder: Path, kind: str) -> str:
    """Write a random two-layer causal language model; returns its path."""
    from transformers import (
        AutoModel,
        BertConfig,
        GPT2Config,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        XLNetConfig,
    )

    torch.manual_seed(1)
    small = {"vocab_size": WORDS, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24}
    gpt2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 20, "bos_token_id": None}
    gpt2["eos_token_id"] = None
    made = {
        "gpt2": lambda: AutoModel.from_config(GPT2Config(**gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
        # With a head, as checkpoints have it, in half precision, and with a padding word.
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(**small, intermediate_size=48, num_key_value_heads=1, pad_token_id=3)
        ).bfloat16(),
        # Word vectors narrower than the hidden states.
        "opt": lambda: AutoModel.from_config(OPTConfig(**small, ffn_dim=48, word_embed_proj_dim=16)),
        "bert": lambda: AutoModel.from_config(BertConfig(**small, intermediate_size=48)),
        "xlnet": lambda: AutoModel.from_config(XLNetConfig(vocab_size=WORDS, d_model=32, n_layer=2, n_head=2)),
    }[kind]()
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def language_models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("language-models")
    return {kind: make_language_model(folder / kind, kind) for kind in ("gpt2", "llama", "opt")}


@pytest.fixture(params=[*BACKBONES, "gpt2", "llama", "opt"])
def config(request, make_world, language_models):
    name = language_models.get(request.param, request.param)
    return make_world().config(f"model.backbone={name}").model


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """`module` in evaluation mode, with every trained weight off its starting value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def slots(config, rows: int = 3, *, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    gaps = torch.randint(1, 200_000, (rows, count))
    return torch.randn(rows, count, config.dim), 1_600_000_000 + gaps.cumsum(1)


def test_a_later_slot_changes_nothing_before_it(config):
    backbone = moved(make_backbone(config))
    x, times = slots(config)
    with torch.inference_mode():
        whole = backbone(x, times)
        for cut in range(1, x.shape[1]):
            other, late = x.clone(), times.clone()
            other[:, cut:] = torch.randn_like(other[:, cut:])
            late[:, cut:] += 1_000_000
            changed = backbone(other, late)
            torch.testing.assert_close(changed[:, :cut], whole[:, :cut], atol=1e-6, rtol=1e-6)
            assert (changed[:, cut] - whole[:, cut]).abs().amax(-1).min() > 1e-3
            torch.testing.assert_close(backbone(x[:, :cut], times[:, :cut]), whole[:, :cut], atol=1e-5, rtol=1e-5)


def test_the_state_of_one_slot_is_that_of_the_whole_pass(config):
    backbone = moved(make_backbone(config))
    x, times = slots(config)
    last = torch.tensor([0, 3, 6])
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone(x, times, last), backbone(x, times)[torch.arange(3), last], atol=1e-5, rtol=1e-5
        )


def test_every_earlier_slot_counts(config):
    backbone = moved(make_backbone(config))
    x, times = slots(config)
    x.requires_grad_(True)
    backbone(x, times)[:, -1].square().sum().backward()
    assert (x.grad.abs().amax(-1) > 1e-7).all()


def test_only_hstu_reads_the_time(config):
    backbone = moved(make_backbone(config))
    x, times = slots(config)
    with torch.inference_mode():
        change = (backbone(x, times) - backbone(x, times * 2)).abs().amax((0, 2))
    assert change[0] == 0, "slot 0 has seen no event"
    assert (change[1:] > 1e-4).all() if config.backbone == "hstu" else not change.any()


def test_hstu_without_context_has_no_time(make_world):
    config = (
        make_world()
        .config("model.backbone=hstu", 'model.sources=["text", "media", "id", "features", "user", "memory"]')
        .model
    )
    backbone = moved(make_backbone(config))
    x, times = slots(config)
    assert not [name for name, _ in backbone.named_parameters() if "time" in name]
    with torch.inference_mode():
        assert torch.equal(backbone(x, times), backbone(x, times * 2))


def test_time_buckets():
    """Event j took place when slot j - 1 was asked: here at 100, 160 and 1000 s; e^0.301 s fill a bucket."""
    times = torch.tensor([[100, 160, 1000, 1000 + 2**33]])
    last = NUM_TIME_BUCKETS - 1
    assert time_buckets(times)[0].tolist() == [
        [0, 1, 1, 1],  # the future counts as now; attention never looks there
        [0, 1 + int(np.log(60) / 0.301), 1, 1],
        [0, 1 + int(np.log(900) / 0.301), 1 + int(np.log(840) / 0.301), 1],
        [0, last, last, last],
    ]
    assert last == 1 + int(np.log(2**31) / 0.301)


def test_hstu_layer_by_its_equations(make_world):
    """One head, worked slot by slot: U, V, Q, K = SiLU(f1(x)); A = SiLU(QK + biases) / n; f2(norm(AV) * U)."""
    config = make_world().config("model.backbone=hstu", "model.heads=1").model
    layer = moved(HstuLayer(config))
    x, times = slots(config, 1)
    buckets = time_buckets(times)
    with torch.inference_mode():
        found = layer(x, buckets)[0]
        u, v, q, k = F.silu(layer.uvqk(layer.norm(x[0]))).split(config.dim, 1)
        for at in range(x.shape[1]):
            attended = torch.zeros(config.dim)
            for event in range(at + 1):
                bias = layer.distance_bias.weight[at - event, 0] + layer.time_bias.weight[buckets[0, at, event], 0]
                attended += F.silu(q[at] @ k[event] + bias) / (config.history + 1) * v[event]
            normed = F.layer_norm(attended, (config.dim,), layer.norm_attended.weight, layer.norm_attended.bias, 1e-6)
            torch.testing.assert_close(found[at], x[0, at] + layer.out(normed * u[at]), atol=1e-5, rtol=1e-5)


def test_a_name_that_is_nothing_is_a_clear_error(tmp_path):
    expected = r"transformer, gru, lstm, hstu, or the folder or id \(owner/name\) of a causal language model"
    with pytest.raises(UserError, match=f"model.backbone is 'transfomer'; expected {expected}"):
        load_config(None, ["model.backbone=transfomer"])
    with pytest.raises(UserError, match=r"model\.backbone_rank"):
        load_config(None, ["model.backbone_rank=-1"])
    for name, found in (("nobody/no-such-model", "HF_HUB_OFFLINE"), (f"{tmp_path}/none", "no such folder")):
        with pytest.raises(UserError, match=rf"model\.backbone is '{name}'.*{found}"):
            check_backbone(load_config(None, [f"model.backbone={name}"]).model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.backbone is .*without config\.json"):
        check_backbone(load_config(None, [f"model.backbone={tmp_path}/empty"]).model)
    for name in BACKBONES:
        check_backbone(load_config(None, [f"model.backbone={name}"]).model)


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    """One that its configuration gives away, and one that only shows when it is run."""
    bert = make_language_model(tmp_path / "bert", "bert")
    with pytest.raises(UserError, match="of type bert, which does not read from left to right"):
        check_backbone(load_config(None, [f"model.backbone={bert}"]).model)
    xlnet = load_config(None, [f"model.backbone={make_language_model(tmp_path / 'xlnet', 'xlnet')}"]).model
    check_backbone(xlnet)
    with pytest.raises(UserError, match="of type xlnet, which does not read from left to right"):
        make_backbone(xlnet)


def test_a_history_longer_than_the_language_model(language_models):
    fits, longer = (
        load_config(None, [f"model.backbone={language_models['gpt2']}", f"model.history={n}"]).model for n in (19, 20)
    )
    check_backbone(fits)
    backbone = make_backbone(fits)
    assert backbone(*slots(fits, count=20)).shape == (3, 20, fits.dim)
    with pytest.raises(UserError, match=r"model\.history is 20; expected at most 19.*20 positions"):
        check_backbone(longer)


@pytest.mark.parametrize("rank", [0, 4])
def test_adapter_alone_is_trained(language_models, rank):
    config = load_config(None, [f"model.backbone={language_models['llama']}", f"model.backbone_rank={rank}"])
    backbone = make_backbone(config.model)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    ours = {f"{side}ward.{kind}" for side in ("in", "out") for kind in ("weight", "bias")}
    assert ours <= trained and bool(trained - ours) == bool(rank)
    assert all(".lora_" in name for name in trained - ours)
    assert all(p.shape[0] == rank for n, p in backbone.named_parameters() if "lora_A" in n)
    groups = parameter_groups(backbone, config.train, tower_lr=1.0, encoder_lr=0.75)
    own = 0.75 * OPTIMIZER.language_lr
    slow = {id(p) for group in groups if group["peak_lr"] == own for p in group["params"]}
    assert slow == {id(p) for n, p in backbone.named_parameters() if n in trained - ours}
    assert not any(group["weight_decay"] for group in groups if group["peak_lr"] == 0.125)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_language_model_trains_and_its_weights_are_enough(make_world, language_models, tmp_path, kind):
    """A few steps; then the trained weights and the stored model, and nothing else, give the same queries."""
    original = tmp_path / "original"
    shutil.copytree(language_models[kind], original)
    world = make_world()
    config = world.config(f"model.backbone={original}", "model.dropout=0", "model.id_dropout=0")
    shape = ModelShape.of(config.model, world.features, num_items=20, text_width=0)
    torch.manual_seed(0)
    towers, items = Towers(config.model, shape, temperature=0.07), ItemTensors.of(world.catalogue, shape)
    offsets = world.histories.events.offsets
    windows = make_windows(offsets[:-1], offsets[1:], config.model.history)
    batch = world.batcher(config).training(world.histories, windows)
    network = Network(towers, None)
    groups = parameter_groups(network, config.train, tower_lr=4e-3, encoder_lr=4e-3)
    optimizer = torch.optim.AdamW([{**group, "lr": group["peak_lr"]} for group in groups])
    step = LossInputs(items, None, batch, "softmax")
    losses = []
    for _ in range(12):
        loss = network(step)
        optimizer.zero_grad()
        loss.backward()
        assert not [name for name, p in towers.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    weights = {name: p.detach() for name, p in towers.named_parameters() if p.requires_grad}
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    with torch.inference_mode():
        expected = towers.eval()(items, None, batch)
        rounded = copy.deepcopy(network).bfloat16()(step)
        assert float(rounded) == pytest.approx(float(network(step)), rel=0.02)

    folder = tmp_path / "bundle"
    store_pretrained(config.model, BundlePaths(str(folder)).backbone)
    save_file(weights, folder / "towers.safetensors")
    shutil.rmtree(original)
    inside = bundle_format.with_bundled_model(config, str(folder)).model
    assert inside.backbone == BundlePaths(str(folder)).backbone
    torch.manual_seed(5)
    again = Towers(inside, shape, temperature=0.07)
    again.load_state_dict(load_file(folder / "towers.safetensors"))
    with torch.inference_mode():
        found = again.eval()(items, None, batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_a_missing_trained_weight_is_still_an_error(make_world, language_models):
    """Only what is frozen comes from the language model's files."""
    world = make_world()
    config = world.config(f"model.backbone={language_models['gpt2']}")
    towers, _ = world.towers(config)
    whole = {name: p.detach() for name, p in towers.named_parameters() if p.requires_grad}
    towers.load_state_dict(whole)
    for name in ("user.backbone.inward.weight", next(n for n in whole if "lora_B" in n), "log_scale"):
        with pytest.raises(RuntimeError, match=f"Missing.*\n?.*{name}"):
            towers.load_state_dict({n: w for n, w in whole.items() if n != name})


def test_the_stored_model_is_small_and_plain(language_models, tmp_path):
    """No table of words, the precision of the checkpoint, and no file that could run code."""
    config = load_config(None, [f"model.backbone={language_models['llama']}"]).model
    store_pretrained(config, str(tmp_path / "stored"))
    assert {path.suffix for path in (tmp_path / "stored").iterdir()} == {".json", ".safetensors"}
    tensors = load_file(tmp_path / "stored" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert WORDS not in {tensor.shape[0] for tensor in tensors.values()}
    store_pretrained(dataclasses.replace(config, backbone="gru"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def trained(ray_cluster, tiny_data, tiny_config, language_models, tmp_path_factory) -> str:
    """A run on two workers with ZeRO-3, whose language model was deleted after training."""
    folder = tmp_path_factory.mktemp("two-level")
    shutil.copytree(language_models["gpt2"], folder / "gpt2")
    model = dataclasses.replace(tiny_config.model, backbone=str(folder / "gpt2"))
    phases = {"tower_epochs": 2, "encoder_epochs": 0, "refit": False}
    options = dataclasses.replace(tiny_config.train, workers=2, zero_stage=3, **phases)
    run = train(tiny_data, str(folder / "run"), dataclasses.replace(tiny_config, model=model, train=options))
    shutil.rmtree(folder / "gpt2")
    return run


@pytest.mark.slow  # above, the same in this process without ZeRO
def test_training_with_a_language_model_under_zero3(trained):
    log = [json.loads(line) for line in (Path(trained) / "train_log.jsonl").read_text().splitlines()]
    assert [entry["phase"] for entry in log] == ["towers"] * 2
    assert log[1]["loss"] < 0.95 * log[0]["loss"], "the mean loss falls by 5% from one epoch to the next"
    towers = load_file(Path(trained) / "bundle" / "towers.safetensors")
    adapter = {name: weight for name, weight in towers.items() if ".lora_B." in name}
    assert adapter and all(weight.numel() for weight in towers.values()) and any(w.any() for w in adapter.values())
    frozen = [name for name in towers if ".wpe." in name or ".base_layer." in name]
    assert not frozen, "the pretrained weights lie in the bundle once, in their own folder"
    recommender = load_recommender(f"{trained}/bundle")
    given = [RawEvent("i4", "view", 1_699_990_000), RawEvent("i8", "buy", 1_699_995_000)]
    asked = [RawRequest(timestamp=1_700_000_000, history=history) for history in (given, given[::-1], given[1:])]
    queries = recommender.queries(recommender.make_requests([*asked, RawRequest(user_id="u1")])[0])
    assert np.isfinite(queries).all() and len(np.unique(queries, axis=0)) == 4


@pytest.mark.slow
def test_evaluation_of_a_run_with_a_language_model(trained, tiny_config):
    config = dataclasses.replace(tiny_config, evaluate=EvaluateConfig(bootstrap=20, actors=1))
    measured = evaluate_run(trained, config=config)
    model, popularity = measured["model"], measured["baselines"]["popularity"]
    assert model["ndcg@10"]["mean"] > popularity["ndcg@10"]["mean"]
