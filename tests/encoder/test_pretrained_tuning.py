"""A real pretrained encoder, the product's default, tuned for a few steps in this process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.encoder.encode_plan import encode_share, plan_encoding, tokenise
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.text_encoder import TextEncoder

# What the untuned encoder takes for near each other is apart here: a text's partner is about something else.
TEXTS = [
    "a quiet film about an old lighthouse keeper", "stainless steel bread knife, 20 cm",
    "loud space opera with robots", "hand-woven wool scarf in green",
    "documentary on deep sea fish", "garden hose with brass fittings",
    "courtroom drama set in the fifties", "wireless mouse for left hands",
]  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder() -> str:
    try:
        return resolve_encoder(EncoderConfig().name, storage.cache_dir())
    except UserError as error:
        pytest.skip(f"the default encoder cannot be had: {error}")


def test_the_default_encoder_is_tuned_by_its_adapter(folder):
    """Eight steps of a contrastive loss on one batch: the loss falls to less than half, every LoRA B leaves zero."""
    config = EncoderConfig(tune="lora", top_layers=2, max_tokens=24)
    torch.manual_seed(0)
    encoder = TextEncoder(config, folder, tune=True)
    assert encoder.width == 384
    tokens = tokenise(folder, TEXTS, max_tokens=config.max_tokens)
    plan = plan_encoding(np.arange(len(TEXTS)), tokens.lengths, budget=config.token_budget, world=1)
    back = torch.from_numpy(np.argsort(plan.order))
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    frozen = {name: p.detach().clone() for name, p in encoder.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3)
    losses = []
    for _ in range(8):
        vectors = encode_share(encoder, tokens, plan, 0, CPU)[back]
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        loss = torch.nn.functional.cross_entropy(vectors[0::2] @ vectors[1::2].T / 0.1, torch.arange(len(TEXTS) // 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    moved = {name: float(p.detach().abs().max()) for name, p in trained.items() if "lora_B" in name}
    assert len(moved) >= 2 * config.top_layers and min(moved.values()) > 1e-3, moved
    for name, value in encoder.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name]), f"{name} is frozen"
