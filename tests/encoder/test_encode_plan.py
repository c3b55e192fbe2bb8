"""How texts become tokens and passes: the same vectors and gradients in any division."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from paths import REPO, TESTS

from ctxrec.core.config import EncoderConfig
from ctxrec.encoder.encode_plan import Tokens, encode_share, plan_encoding, tokenise
from ctxrec.encoder.text_encoder import TextEncoder
from ctxrec.encoder.text_table import encode_catalogue
from ctxrec.model.network import gather_encoded

TEXTS = ["red shoe", "a", "small soft green coat with a large hat", "", "blue lamp", "red shoe"]
CPU = torch.device("cpu")


@pytest.fixture(params=["bert", "gpt2"])
def path(request, tiny_encoder, tiny_gpt2) -> str:
    return tiny_encoder if request.param == "bert" else tiny_gpt2


def test_a_text_is_cut_and_an_empty_one_has_a_token(path):
    tokens = tokenise(path, TEXTS, max_tokens=4)
    assert tokens.lengths.max() == 4 and tokens.lengths.min() >= 1
    assert tokens.offsets[-1] == len(tokens.ids) and len(tokens.lengths) == len(TEXTS)
    assert tokenise(path, [], max_tokens=4).offsets.tolist() == [0]


def test_padded_ids_by_hand():
    tokens = Tokens(ids=np.array([5, 6, 7, 8, 9, 10], np.int32), offsets=np.array([0, 3, 4, 6]), pad_id=1)
    ids, mask = tokens.padded(np.array([2, 0, 1]), 4)
    assert ids.tolist() == [[9, 10, 1, 1], [5, 6, 7, 1], [8, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]


def test_the_catalogue_is_the_same_in_any_division(path):
    texts = [f"{a} {b}" for a in ("red", "large soft green", "a") for b in ("hat", "shoe lamp chair table", "")] + [" "]
    tables = []
    for budget in (16, 64, 4096):
        config = EncoderConfig(name=path, max_tokens=16, token_budget=budget)
        encoder = TextEncoder(config, path, tune=False).eval()
        vectors, present = encode_catalogue(encoder, path, texts, config)
        tables.append(vectors)
    assert present.tolist() == [True] * 9 + [False] and not tables[0][9].any() and tables[0][:9].any(1).all()
    np.testing.assert_allclose(tables[1], tables[0], atol=1e-5)
    np.testing.assert_allclose(tables[2], tables[0], atol=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [64, 300, 100_000])
def test_a_plan_covers_every_text_once_within_the_budget(world, budget):
    rng = np.random.default_rng(world)
    lengths = rng.integers(1, 65, 500)
    which = rng.permutation(500)[:137]
    plan = plan_encoding(which, lengths, budget=budget, world=world)
    assert plan.num_texts == 137 and sorted(plan.order[:137].tolist()) == sorted(which.tolist())
    assert len(plan.order) % world == 0 and len(plan.order) - 137 < world
    assert plan.bounds[0] == 0 and plan.bounds[-1] == len(plan.order) // world and (np.diff(plan.bounds) > 0).all()
    assert len(plan.widths) == len(plan.bounds) - 1
    computed = useful = 0
    for rank in range(world):
        share = plan.share(rank)
        assert len(share) == plan.bounds[-1], "every rank has the same passes"
        for start, stop, width in zip(plan.bounds, plan.bounds[1:], plan.widths, strict=False):
            assert lengths[share[start:stop]].max() <= width, "no text is cut by its pass"
            assert (stop - start) * width <= budget or stop - start == 1
            computed += (stop - start) * width
            useful += lengths[share[start:stop]].sum()
    assert plan.padding == pytest.approx(1 - useful / computed)


def test_a_plan_by_hand():
    lengths = np.array([3, 9, 3, 9, 2])
    plan = plan_encoding(np.arange(5), lengths, budget=9, world=1)
    assert plan.order.tolist() == [4, 0, 2, 1, 3]
    assert plan.bounds.tolist() == [0, 3, 4, 5] and plan.widths.tolist() == [3, 9, 9]
    assert plan.padding == pytest.approx(1 - 26 / 27)


def fresh_loss(path: str, rank: int, world: int) -> dict[str, np.ndarray]:
    """Gradients of an encoder whose vectors a rank gathers and weighs with its own share of a loss."""
    torch.manual_seed(0)
    encoder = TextEncoder(EncoderConfig(name=path, tune="top", top_layers=1), path, tune=True)
    tokens = tokenise(path, TEXTS, max_tokens=16)
    which = np.array([4, 0, 2, 1, 5])  # five texts on two ranks: one is repeated to fill up
    plan = plan_encoding(which, tokens.lengths, budget=24, world=world)
    vectors = gather_encoded(encode_share(encoder, tokens, plan, rank, CPU), plan)
    assert vectors.shape == (5, 32)
    by_text = torch.zeros(len(TEXTS), 32).index_copy(0, torch.from_numpy(plan.order[:5]), vectors)
    factors = torch.randn(4, len(TEXTS), 32, generator=torch.Generator().manual_seed(1))[rank::world]
    loss = (factors * by_text.square()).sum() + by_text[2].sum() * len(factors)
    loss.backward()
    found = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
    if world > 1:
        for gradient in found.values():
            dist.all_reduce(gradient)
    return {"vectors": by_text.detach().numpy()} | {n: g.numpy() for n, g in found.items()}


def gather_worker(rank: int, path: str, folder: str) -> None:
    """One of two processes: `python test_encode_plan.py RANK ENCODER FOLDER`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    np.savez(f"{folder}/{rank}.npz", **fresh_loss(path, rank, 2))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.system  # two processes
def test_gathered_vectors_have_the_gradient_of_one_process(tiny_encoder, tmp_path):
    expected = fresh_loss(tiny_encoder, 0, 1)
    env = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{TESTS}"}
    commands = [[sys.executable, __file__, str(rank), tiny_encoder, str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(c, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-4, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_gradient_caching_gives_the_plain_gradients_and_keeps_no_graph(path, tune):
    """Over several passes of different widths, with a loss in which all texts meet."""
    texts = [f"{a} {b}" for a in ("red", "large soft green", "a") for b in ("hat", "shoe lamp chair table", "desk")]
    tokens = tokenise(path, texts, max_tokens=16)
    plan = plan_encoding(np.arange(len(texts)), tokens.lengths, budget=12, world=1)
    assert len(plan.widths) > 3
    losses, gradients, kept = [], [], []
    for caching in (False, True):
        config = EncoderConfig(name=path, tune=tune, top_layers=0, gradient_caching=caching, max_tokens=16)
        torch.manual_seed(1)
        encoder = TextEncoder(config, path, tune=True).train()
        with torch.no_grad():
            for parameter in encoder.parameters():  # an adapter's B starts at zero, and with it A's gradient
                parameter.add_(0.02 * torch.randn_like(parameter))
        saved = []
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t):
            vectors = encode_share(encoder, tokens, plan, 0, CPU)
        kept.append(sum(saved))
        loss = torch.logsumexp(vectors @ vectors.flip(0).T, 1).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.requires_grad})
    assert losses[0] == losses[1] and kept[1] < kept[0] / 20
    assert gradients[0].keys() == gradients[1].keys() and any(g.abs().max() > 0.01 for g in gradients[0].values())
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")


if __name__ == "__main__":
    gather_worker(int(sys.argv[1]), sys.argv[2], sys.argv[3])
