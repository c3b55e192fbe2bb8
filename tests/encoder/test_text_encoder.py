"""The text encoder: pooling by hand, and what is tuned."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.encode_plan import Tokens, tokenise
from ctxrec.encoder.text_encoder import TextEncoder

TEXTS = ["red shoe", "a", "small soft green coat with a large hat", "", "blue lamp", "red shoe"]
CPU = torch.device("cpu")


@pytest.fixture(params=["bert", "gpt2"])
def path(request, tiny_encoder, tiny_gpt2) -> str:
    return tiny_encoder if request.param == "bert" else tiny_gpt2


def vectors_of(encoder: TextEncoder, tokens: Tokens, which: list[int], *, extra: int = 0) -> torch.Tensor:
    ids, mask = tokens.padded(np.array(which), int(tokens.lengths[which].max()) + extra)
    with torch.inference_mode():
        return encoder(ids, mask)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_by_hand(path, pooling):
    """Each text alone through the plain model, without any padding, is what the batch gives."""
    config = EncoderConfig(name=path, pooling=pooling)
    encoder = TextEncoder(config, path, tune=False).eval()
    plain, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    tokens = tokenise(path, TEXTS, max_tokens=16)
    which = [0, 1, 2, 4, 5]
    together = vectors_of(encoder, tokens, which, extra=3)
    assert encoder.width == 32 and together.dtype == torch.float32
    for row, text in zip(together, which, strict=True):
        ids = tokenizer(TEXTS[text], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = plain(input_ids=ids).last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[0], together[4], atol=1e-6, rtol=0)


def test_weights_that_are_cut_off_are_a_users_mistake(tiny_encoder, tmp_path):
    broken = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"the encoder at {broken} cannot be loaded"):
        TextEncoder(EncoderConfig(name=str(broken)), str(broken), tune=False)


def test_pooling_follows_the_checkpoint_then_the_architecture(tiny_encoder, tiny_gpt2, tmp_path):
    def auto(path: str) -> str:
        return TextEncoder(EncoderConfig(name=path), path, tune=False).pooling

    assert auto(tiny_encoder) == "mean" and auto(tiny_gpt2) == "last"
    for mode, name in (("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")):
        folder = tmp_path / name
        shutil.copytree(tiny_gpt2 if name == "mean" else tiny_encoder, folder)
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
        assert auto(str(folder)) == name
    assert TextEncoder(EncoderConfig(pooling="cls"), tiny_gpt2, tune=False).pooling == "cls"


def trained_names(
    path: str, tune: str, *, top_layers: int = 1, checkpointing: bool = False
) -> tuple[TextEncoder, set[str]]:
    config = EncoderConfig(name=path, tune=tune, rank=2, top_layers=top_layers, gradient_checkpointing=checkpointing)
    encoder = TextEncoder(config, path, tune=True)
    return encoder, {name for name, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("tune", "mark"), [("lora", "lora_"), ("dora", "lora_"), ("ia3", "ia3_")])
def test_adapters_alone_are_trained_and_start_as_the_plain_encoder(path, tune, mark):
    encoder, names = trained_names(path, tune)
    assert names and all(mark in name for name in names)
    assert any("magnitude" in name for name in names) == (tune == "dora")
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) < 0.5 * sum(
        p.numel() for p in encoder.parameters()
    )
    tokens = tokenise(path, TEXTS, max_tokens=16)
    plain = TextEncoder(EncoderConfig(name=path), path, tune=False).eval()
    which = [0, 1, 2, 4]
    torch.testing.assert_close(
        vectors_of(encoder.eval(), tokens, which), vectors_of(plain, tokens, which), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("tune", ["lora", "dora", "ia3"])
def test_an_adapter_reaches_the_top_layers_and_with_none_named_all(path, tune):
    for top_layers, expected in ((1, {".1."}), (0, {".0.", ".1."}), (2, {".0.", ".1."})):
        _, names = trained_names(path, tune, top_layers=top_layers)
        assert {part for name in names for part in (".0.", ".1.") if part in name} == expected


def test_full_top_and_freeze(path):
    encoder, names = trained_names(path, "full")
    assert names == {name for name, _ in encoder.named_parameters()}
    _, top = trained_names(path, "top")
    assert top and all(".1." in name for name in top)
    _, both = trained_names(path, "top", top_layers=9)
    assert top < both and {part for n in both for part in (".0.", ".1.") if part in n} == {".0.", ".1."}
    assert trained_names(path, "freeze")[1] == set()


@pytest.mark.parametrize("tune", ["lora", "full", "top"])
def test_gradient_checkpointing_gives_the_same_gradients(path, tune):
    tokens = tokenise(path, TEXTS, max_tokens=16)
    ids, mask = tokens.padded(np.arange(3), 12)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder, names = trained_names(path, tune, checkpointing=checkpointing)
        encoder.train()(ids, mask).square().sum().backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if n in names}
        assert not [n for n, g in gradients.items() if g is None and "wpe" not in n]
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-4, msg=name)
