"""States below the trained layers: the same vectors and gradients without these layers, and each text computed once."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel

from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder import cache as encoder_cache
from ctxrec.encoder import layer_split
from ctxrec.encoder.cache import Place, vector_store, with_states
from ctxrec.encoder.encode_plan import encode_share, plan_encoding, tokenise
from ctxrec.encoder.state_store import RowStore, digest
from ctxrec.encoder.text_encoder import TextEncoder

TEXTS = ["red shoe", "a", "small soft green coat with a large hat", "", "blue lamp", "red shoe"]
PRESENT = np.array([True, True, True, False, True, True])
ALONE = Place(0, 1, 0, 1, torch.device("cpu"))
SMALL = {"vocab_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
# Of the layers' lists, what a layer returns, positions and masks, these differ in all that matters here.
MODELS = {
    "Bert": {},
    "MPNet": {},
    "DistilBert": {"n_layers": 3, "n_heads": 2, "dim": 32, "hidden_dim": 64},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 4},
    "GPT2": {"n_layer": 3, "n_head": 2, "n_embd": 32},
    "Llama": {"num_key_value_heads": 1},
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    encoder_cache.fingerprint.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(params=MODELS)
def path(request, tiny_encoder, tmp_path) -> str:
    """A random model of three layers with the tokenizer of the tiny encoder."""
    folder = tmp_path / request.param
    torch.manual_seed(0)
    size = SMALL if request.param not in ("GPT2", "DistilBert") else {"vocab_size": 48}
    config = getattr(transformers, f"{request.param}Config")(**size, **MODELS[request.param], pad_token_id=0)
    getattr(transformers, f"{request.param}Model")(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return str(folder)


def options(path: str, **changes) -> EncoderConfig:
    return EncoderConfig(**{"name": path, "tune": "lora", "rank": 2, "top_layers": 1, "max_tokens": 16} | changes)


def passed(path: str, config: EncoderConfig, tokens, *, cut: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Vectors of the catalogue by an encoder with a trained adapter, and its gradients."""
    torch.manual_seed(1)
    encoder = TextEncoder(config, path, tune=True, cut=cut).eval()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and config.tune != "top":
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    plan = plan_encoding(np.flatnonzero(PRESENT), tokens.lengths, budget=24, world=1)
    vectors = encode_share(encoder, tokens, plan, 0, torch.device("cpu"))
    (vectors.square() * torch.arange(32)).sum().backward()
    return vectors.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("tune", ["lora", "ia3", "top"])
def test_a_cut_encoder_gives_the_vectors_and_gradients_of_the_whole_one(path, tune, monkeypatch):
    monkeypatch.setattr(encoder_cache, "_STATE", np.float32)
    config = options(path, tune=tune)
    tokens = tokenise(path, TEXTS, max_tokens=16)
    given = with_states(tokens, PRESENT, path, config, ALONE)
    assert given.states is not None
    try:
        whole, gradients = passed(path, config, tokens, cut=False)
    except UserError as error:  # PEFT knows no IA3 for some architectures
        pytest.skip(str(error))
    short, short_gradients = passed(path, config, given, cut=True)
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-4)
    assert set(short_gradients) == set(gradients) and gradients
    assert all(".2." in name for name in gradients), "only the top layer is trained"
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(short_gradients[name], gradient, atol=1e-5 * scale, rtol=1e-4, msg=name)
    cut = TextEncoder(config, path, tune=True, cut=True)
    layers = layer_split.layer_list(cut.backbone)[1]
    assert not list(layers[0].parameters()) and not list(layers[1].parameters()) and list(layers[2].parameters())


def test_gradient_checkpointing_of_a_cut_encoder(tiny_encoder):
    tokens = tokenise(tiny_encoder, TEXTS, max_tokens=16)
    found = []
    for checkpointing in (False, True):
        config = options(tiny_encoder, gradient_checkpointing=checkpointing)
        given = with_states(tokens, PRESENT, tiny_encoder, config, ALONE)
        found.append(passed(tiny_encoder, config, given, cut=True)[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_lower_states_are_those_that_the_model_itself_reports(path):
    plain = AutoModel.from_pretrained(path).eval()
    ids, mask = tokenise(path, TEXTS, max_tokens=16).padded(np.array([0, 2]), 9)
    with torch.inference_mode():
        reported = plain(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    found = layer_split.lower_states(plain, 2, ids, mask)
    assert torch.equal(found * mask[..., None], reported * mask[..., None])


def test_each_text_is_computed_once(tiny_encoder, cache, monkeypatch):
    computed = []
    plain = layer_split.lower_states

    def counted(backbone, first, ids, mask):
        computed.extend(tuple(row[m.bool()].tolist()) for row, m in zip(ids, mask, strict=True))
        return plain(backbone, first, ids, mask)

    monkeypatch.setattr(encoder_cache, "lower_states", counted)
    tokens, config = tokenise(tiny_encoder, TEXTS, max_tokens=16), options(tiny_encoder)
    with_states(tokens, PRESENT, tiny_encoder, config, ALONE)
    assert len(computed) == len(set(computed)) == 4, "the two equal texts are one"
    with_states(tokens, PRESENT, tiny_encoder, config, ALONE)
    assert len(computed) == 4
    changed = tokenise(tiny_encoder, [*TEXTS[:4], "green lamp", TEXTS[5]], max_tokens=16)
    given = with_states(changed, PRESENT, tiny_encoder, config, ALONE)
    assert len(computed) == 5, "one text has changed"
    assert given.states.padded(np.array([4, 1]), 9).shape == (2, 9, 32)


def test_sixteen_bits_are_enough(tiny_encoder):
    """A vector from stored states differs by far less than one step of training changes."""
    config, tokens = options(tiny_encoder), tokenise(tiny_encoder, TEXTS, max_tokens=16)
    whole, _ = passed(tiny_encoder, config, tokens, cut=False)
    given = with_states(tokens, PRESENT, tiny_encoder, config, ALONE)
    short, _ = passed(tiny_encoder, config, given, cut=True)
    assert 0 < (short - whole).abs().max() < 2e-3 * whole.std()


@pytest.mark.parametrize(
    "changes", [{"tune": "freeze"}, {"tune": "full"}, {"top_layers": 0}, {"top_layers": 9}, {"cache_gb": 1e-7}]
)
def test_without_use_or_room_the_encoder_stays_whole(tiny_encoder, cache, changes):
    tokens = tokenise(tiny_encoder, TEXTS, max_tokens=16)
    assert with_states(tokens, PRESENT, tiny_encoder, options(tiny_encoder, **changes), ALONE).states is None
    assert not list(cache.rglob("*.npy"))


def test_a_full_disk_is_no_error(tiny_encoder, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowStore, "write", full)
    tokens = tokenise(tiny_encoder, TEXTS, max_tokens=16)
    with caplog.at_level("INFO"):
        assert with_states(tokens, PRESENT, tiny_encoder, options(tiny_encoder), ALONE).states is None
    assert "No space left" in caplog.text


def test_a_store_sees_what_others_write_and_no_half_of_it(tmp_path):
    mine, other = RowStore(str(tmp_path / "rows"), 3), RowStore(str(tmp_path / "rows"), 3)
    keys = [digest(bytes([n])) for n in range(3)]
    mine.write({keys[0]: np.ones((2, 3), np.float32), keys[1]: np.full((1, 3), 2, np.float32)})
    assert keys[0] not in other
    other.refresh()
    assert keys[1] in other and other.read(keys[0]).tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(KeyError):
        other.read(keys[2])
    with pytest.raises(ValueError):
        mine.write({keys[2]: np.ones((1, 4), np.float32)})
    assert not [name for name in os.listdir(tmp_path / "rows") if ".part" in name]
    assert len(os.listdir(tmp_path / "rows")) == 2, "a failed shard leaves nothing"
    assert RowStore(str(tmp_path / "rows"), 5).read.__self__._place == {}, "another width is another store"


def test_a_full_disk_is_an_error_and_does_not_kill_the_process(small_disk):
    """Whoever writes into a mapped file of a full disk gets SIGBUS."""
    store = RowStore(str(small_disk / "rows"), 1024)
    (small_disk / "filler").write_bytes(bytes((63 << 20) + (900 << 10)))
    child = os.fork()
    if not child:
        try:
            store.write({digest(b"x"): np.ones((1024, 1024), np.float32)})
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.ENOSPC
    assert os.listdir(small_disk / "rows") == []


def test_another_encoder_has_its_own_place(tiny_encoder, tiny_gpt2):
    stores = {vector_store(path, options(path), 32).folder for path in (tiny_encoder, tiny_gpt2)}
    assert len(stores) == 2
