"""Towers: every source may be absent, padding changes nothing, and every weight learns."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ctxrec.core.config import SOURCES, TrainConfig
from ctxrec.data.batching import Batch, make_windows
from ctxrec.data.features import item_features
from ctxrec.encoder.encode_plan import plan_encoding, tokenise
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import TextTable, encode_catalogue, has_text, make_text_table
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.layers import feature_name, module_name
from ctxrec.model.network import LOSSES, EncodeInputs, LossInputs, Network, RankInputs, choose_loss, narrowed
from ctxrec.model.two_tower import Towers

BACKBONES = ["transformer", "gru", "lstm", "hstu"]


def text_table(num_items: int, width: int = 12, missing: tuple[int, ...] = ()) -> TextTable:
    rng = np.random.default_rng(3)
    present = np.ones(num_items, bool)
    present[list(missing)] = False
    return make_text_table(rng.normal(size=(num_items, width)).astype(np.float32), present)


def training_batch(world, config) -> Batch:
    offsets = world.histories.events.offsets
    return world.batcher(config).training(
        world.histories, make_windows(offsets[:-1], offsets[1:], config.model.history)
    )


def outputs(world, config, text: TextTable | None = None, batch: Batch | None = None):
    towers, items = world.towers(config, text_width=0 if text is None else text.vectors_IH.shape[1])
    with torch.inference_mode():
        return towers(items, text, batch if batch is not None else training_batch(world, config))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize(
    "absent",
    [[], ["context"], ["user", "features"], ["id"]],
)
def test_any_source_may_be_absent(make_world, backbone, rich, with_text, absent):
    if absent == ["id"] and not (rich or with_text):
        pytest.skip("no source of item vectors is left")
    world = make_world(rich=rich)
    sources = [source for source in SOURCES if source not in absent]
    config = world.config(f"model.backbone={backbone}", f"model.sources={json.dumps(sources)}")
    vectors, queries = outputs(world, config, text_table(20, missing=(0, 5)) if with_text else None)
    width = 9 + (13 if with_text else 0)  # sequence and content head
    assert vectors.shape == (20, width) and queries.shape[-1] == width
    assert torch.isfinite(vectors).all() and torch.isfinite(queries).all()
    if width > 9:
        content = vectors[:, 9:-1].norm(dim=1)
        torch.testing.assert_close(content[[1, 2]], torch.ones(2), atol=1e-4, rtol=0)
        assert (content[[0, 5]] == 0).all()  # those without text
        assert (queries[..., -1] == 1).all()
    vectors, queries = vectors[:, :9], queries[..., :9]
    lengths = vectors[:, :-1].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(20), atol=1e-4, rtol=0)
    scale = queries[..., :-1].norm(dim=-1)
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale))
    assert (queries[..., -1] == 1).all()


def test_an_event_of_any_kind_speaks_for_its_own_text_in_the_content_head(make_world):
    """So a low rating alone raises what is like it there, as `ctxrec/TRAINING.md` says ("What values mean")."""
    world, text = make_world(), text_table(20)
    towers, items = world.towers(world.config(), text_width=text.vectors_IH.shape[1])
    with torch.no_grad():
        towers.content.log_action.weight[:, 0] = torch.tensor(
            [0.0, -3.0, 1.0]
        )  # as if one kind had been found to say little
    batch, queries = training_batch(world, world.config()), []
    for codes in ((1, 2), (2, 1)):  # of a row's first event and of all others
        batch.actions_BL = torch.full_like(batch.actions_BL, codes[1])
        batch.actions_BL[:, 0] = codes[0]
        with torch.inference_mode():
            vectors, found = towers(items, text, batch)
        queries.append(found[..., 9:-1])
    long = batch.lengths_B > 3
    assert long.any()
    torch.testing.assert_close(queries[0][long, 1], queries[1][long, 1], atol=1e-3, rtol=0)  # after one event alone
    assert ((queries[0][:, 1] * vectors[:, 9:-1][batch.items_BL[:, 0]]).sum(-1)[long] > 0).all()
    assert not torch.allclose(queries[0][long, 3], queries[1][long, 3], atol=0.1)


def test_some_items_alone_have_the_vectors_that_they_have_in_the_catalogue(make_world):
    """Those without a training event too, whose own score is the mean of all items that have one."""
    world, text = make_world(), text_table(20, missing=(0, 5))
    towers, _ = world.towers(world.config(), text_width=text.vectors_IH.shape[1])
    shape = ModelShape.of(world.config().model, world.features, num_items=20, text_width=text.vectors_IH.shape[1])
    trained = np.arange(20) % 3 > 0
    whole = ItemTensors.of(world.catalogue, shape, trained=trained)
    few = np.array([3, 4, 6, 0])
    alone = ItemTensors.of_rows(
        item_features(world.table.take(few), world.features),
        id_rows=few,
        trained=trained[few],
        media={},
        mean_rows=np.flatnonzero(trained),
    )
    part = TextTable(text.vectors_IH[few], text.present_I[few], text.mean_H, text.scale_H)
    with torch.inference_mode():
        vectors, found = towers(whole, text)[0], towers(alone, part)[0]
    torch.testing.assert_close(found, vectors[few], atol=1e-5, rtol=0)
    assert vectors[few, -1].unique().numel() == 2, "items 0, 3 and 6 share the mean, and item 4 has its own score"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_nothing(make_world, backbone):
    """Each row alone, in a wide batch, and with rubbish in its padded slots has the same queries."""
    world = make_world()
    config = world.config(f"model.backbone={backbone}")
    (towers, items), batch = world.towers(config), training_batch(world, config)
    rubbish = dataclasses.replace(batch)
    length = batch.lengths_B[:, None]
    slots = torch.arange(batch.targets_BS.shape[1])
    behind, behind_event = slots > length, slots[:-1] >= length
    rubbish.items_BL = torch.where(behind_event, 7, batch.items_BL)
    rubbish.actions_BL = torch.where(behind_event, 2, batch.actions_BL)
    rubbish.query_gaps_BS = torch.where(behind, 9, batch.query_gaps_BS)
    rubbish.times_BS = torch.where(behind, 5, batch.times_BS)
    rubbish.cat_BS = {n: torch.where(behind, 1, v) for n, v in batch.cat_BS.items()}
    rubbish.num_BSF = torch.where(behind[..., None], 3.0, batch.num_BSF)
    rubbish.words_BSW = {n: torch.where(behind[..., None], 11, v) for n, v in batch.words_BSW.items()}
    with torch.inference_mode():
        whole = towers(items, None, batch)[1]
        dirty = towers(items, None, rubbish)[1]
    torch.testing.assert_close(dirty[~behind], whole[~behind], atol=1e-5, rtol=0)
    for row, events in enumerate(batch.lengths_B.tolist()):

        def alone(value, keep_slots, row=row):
            if isinstance(value, dict):
                return {n: alone(v, keep_slots) for n, v in value.items()}
            return value[row : row + 1] if keep_slots is None else value[row : row + 1, :keep_slots]

        widths = {"items_BL": events, "actions_BL": events, "lengths_B": None}
        widths |= {name: None for name in vars(batch) if name.startswith("user_") or name == "asked_mix_BA"}
        one = Batch(**{name: alone(v, widths.get(name, events + 1)) for name, v in vars(batch).items()})
        with torch.inference_mode():
            single, last = towers(items, None, one)[1], towers(items, None, one, last=True)[1]
        torch.testing.assert_close(single[0], whole[row, : events + 1], atol=1e-4, rtol=0)
        torch.testing.assert_close(last[0], single[0, events], atol=1e-5, rtol=0)


def test_an_item_without_text_does_not_see_the_text_table(make_world):
    world = make_world()
    config, table = world.config(), text_table(20, missing=(4,))
    other = TextTable(**{**vars(table), "vectors_IH": table.vectors_IH.clone()})
    other.vectors_IH[4] += 5
    other.vectors_IH[6] += 5
    before, after = outputs(world, config, table)[0], outputs(world, config, other)[0]
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == [6]


def test_a_cold_item_without_id_gets_its_vector_from_text(make_world):
    """Same text, same vector; another text, another vector; all without an ID and without features."""
    world = make_world(rich=False)
    config, table = (
        world.config('model.sources=["text", "media", "features", "context", "user", "memory"]'),
        text_table(20),
    )
    table.vectors_IH[3] = table.vectors_IH[2]
    vectors = outputs(world, config, table)[0]
    torch.testing.assert_close(vectors[3], vectors[2])
    assert (vectors[4] - vectors[2]).abs().max() > 0.01


def test_hashed_ids_share_rows(make_world):
    world = make_world(rich=False)
    config = world.config("model.id_buckets=4")
    towers, items = world.towers(config)
    assert towers.item.id.num_embeddings == 4 and items.id_rows_I.max() < 4
    with torch.inference_mode():
        vectors, _ = towers(items, None)
    assert len(torch.unique(vectors, dim=0)) == len(torch.unique(items.id_rows_I))


def test_source_dropout_is_for_training_alone(make_world):
    world = make_world(rich=False)
    config = world.config("model.id_dropout=0.5", "model.text_dropout=0.5", "model.dropout=0.5")
    towers, items = world.towers(config, text_width=12)
    table, batch = text_table(20), training_batch(world, config)
    with torch.inference_mode():
        calm = [towers(items, table, batch) for _ in range(2)]
        wild = [towers.train()(items, table, batch) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*calm, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*wild, strict=True))


def test_feature_names_survive_as_module_names():
    for name in ("plain", "with.dot", "50%", "a%2Eb", "type", "forward", "Größe"):
        assert feature_name(module_name(name)) == name and "." not in module_name(name)


@pytest.fixture
def encoder_step(make_world, tiny_encoder):
    """A function: the network at its starting weights, and what its loss needs in a step of the encoder's phase."""

    def make(rich: bool, loss: str, *overrides: str) -> tuple[Network, LossInputs]:
        torch.manual_seed(0)
        world = make_world(rich=rich)
        config = world.config(f"encoder.name={tiny_encoder}", *overrides)
        encoder = TextEncoder(config.encoder, tiny_encoder, tune=True)
        frozen = TextEncoder(config.encoder, tiny_encoder, tune=False).eval()
        text = make_text_table(*encode_catalogue(frozen, tiny_encoder, world.catalogue.texts, config.encoder))
        shape = ModelShape.of(config.model, world.features, num_items=20, text_width=encoder.width)
        network = Network(Towers(config.model, shape, temperature=0.07), encoder)
        tokens = tokenise(tiny_encoder, world.catalogue.texts, max_tokens=16)
        present = np.flatnonzero(has_text(world.catalogue.texts))
        plan = plan_encoding(present, tokens.lengths, budget=4096, world=1)
        return network, LossInputs(
            items=ItemTensors.of(world.catalogue, shape),
            text=text,
            batch=training_batch(world, config),
            loss=loss,
            negatives_N=torch.arange(10),
            fresh=EncodeInputs(tokens, plan, rank=0, device=torch.device("cpu")),
        )

    return make


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_trained_weight_gets_a_gradient(encoder_step, rich, backbone, loss, dtype):
    """ZeRO waits for the gradient of each weight; one that is never used would hang or lag behind."""
    network, step = encoder_step(rich, loss, f"model.backbone={backbone}")
    text = step.text
    old = text.vectors_IH.clone()
    network.to(dtype)(step).backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    assert not without
    # FiLM's bias, LoRA's A and the bias vector start where B or the weight beside them is zero.
    still = [n for n, p in trained.items() if not p.grad.any() and "lora_A" not in n]
    assert not still, still
    assert any("lora_B" in n for n in trained)
    atol = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(text.vectors_IH, old, atol=atol, rtol=0)  # LoRA starts as the un-tuned encoder
    assert not text.vectors_IH.requires_grad


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("overrides", [[], ["model.action_heads=true"], ["encoder.gradient_caching=true"]])
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_bfloat16_has_the_loss_and_the_gradients_of_float32(encoder_step, backbone, overrides, loss):
    """As DeepSpeed trains on GPUs: weights in bfloat16. Only what is rounded differs, and that points no way."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        network, step = encoder_step(True, loss, f"model.backbone={backbone}", "model.dropout=0", *overrides)
        value = network.eval().to(dtype)(step)
        assert value.dtype == torch.float32
        value.backward()
        grads = [p.grad.float().flatten() for _, p in sorted(network.named_parameters()) if p.grad is not None]
        found[dtype] = float(value.detach()), torch.cat(grads)
    (exact, exact_grad), (rounded, rounded_grad) = found.values()
    assert rounded == pytest.approx(exact, rel=0.01)
    assert torch.cosine_similarity(rounded_grad, exact_grad, dim=0) > 0.99


@pytest.mark.parametrize("loss", ["sampled_softmax", "bce"])
@pytest.mark.parametrize("with_unknown", [False, True])
def test_a_step_reads_no_more_of_a_catalogue_than_it_needs(encoder_step, monkeypatch, loss, with_unknown):
    """Loss, gradients and the table of texts are those of a step on all items."""
    found = []
    for narrow in (True, False):
        network, step = encoder_step(True, loss, "model.dropout=0")
        if with_unknown:  # items without training event are in no loss
            seen = torch.zeros(20, dtype=torch.bool)
            seen[step.batch.items_BL.unique()] = seen[step.batch.targets_BS.unique()] = True
            pool = torch.nonzero(seen).squeeze(1)
            known = {"trained_I": seen.float(), "pool": pool, "place_I": (seen.cumsum(0) - 1).clamp(min=0)}
            items = dataclasses.replace(step.items, **known)
            step = dataclasses.replace(step, items=items, negatives_N=torch.arange(5) % len(pool))
        else:
            step = dataclasses.replace(step, negatives_N=torch.tensor([3, 3, 11, 7]))
        read = []

        def counted(items, text, batch, negatives, fresh, narrow=narrow, read=read):
            if not narrow:
                every = torch.arange(20)
                made = items.take(every), text.take(every), batch, negatives, fresh
            else:
                made = narrowed(items, text, batch, negatives, fresh)
            read.append(len(made[0].id_rows_I))
            return made

        plan = plan_encoding(np.array([1, 4]), step.fresh.tokens.lengths, budget=4096, world=1)
        step = dataclasses.replace(step, fresh=dataclasses.replace(step.fresh, plan=plan))
        monkeypatch.setattr("ctxrec.model.network.narrowed", counted)
        value = network.eval()(step)
        value.backward()
        grads = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        found.append((read[0], value.detach(), grads, step.text.vectors_IH))
    (few, *ours), (every, *theirs) = found
    assert few < every == 20
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_type_of_the_inputs_says_what_is_asked_for(encoder_step):
    network, step = encoder_step(True, "softmax")
    network.eval()
    with torch.inference_mode():
        vectors_IW, nothing = network(RankInputs(step.items, step.text))
        again_IW, queries_BW = network(RankInputs(step.items, step.text, step.batch, vectors_IW))
        expected_IW, expected_BW = network.towers(step.items, step.text, step.batch, last=True)
        fresh_nH = network(step.fresh)
    assert nothing is None and again_IW is vectors_IW
    torch.testing.assert_close(vectors_IW, expected_IW)
    torch.testing.assert_close(queries_BW, expected_BW)
    torch.testing.assert_close(fresh_nH, step.text.vectors_IH[step.fresh.plan.order], atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="not str"):
        network("loss")


def test_a_loss_of_an_unknown_name_is_an_error(encoder_step):
    network, step = encoder_step(True, "hinge")
    with pytest.raises(ValueError, match="'hinge'; expected one of softmax, sampled_softmax, bce"):
        network(step)


def test_losses_are_those_of_the_option():
    named = get_args(get_type_hints(TrainConfig)["loss"])
    assert set(named) == {"auto", *LOSSES}


def test_choice_of_loss():
    assert [choose_loss(TrainConfig(), n) for n in (50_000, 50_001)] == ["softmax", "sampled_softmax"]
    assert choose_loss(TrainConfig(loss="bce"), 3) == "bce"


def test_text_scale_is_that_of_items_with_text():
    vectors = np.array([[1.0, 0], [3.0, 4], [100.0, 100]], np.float32)
    table = make_text_table(vectors, np.array([True, True, False]))
    assert table.mean_H.tolist() == [2, 2] and table.present_I.tolist() == [1, 1, 0]
    np.testing.assert_allclose(table.scale_H, [1 * 2**0.5, 2 * 2**0.5], rtol=1e-6)
    empty = make_text_table(vectors, np.zeros(3, bool))
    assert torch.isfinite((empty.vectors_IH - empty.mean_H) / empty.scale_H).all()
