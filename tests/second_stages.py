"""Fixtures of a second stage: a world, one request a user, and a cross-encoder that has learnt nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ctxrec.core import schema
from ctxrec.data.requests import split_requests
from ctxrec.reranking.fresh_reranker import make_reranker

NUM_ITEMS, NUM_CANDIDATES = 60, 12
OPTIONS = ["candidates=12", "max_tokens=32", "epochs=6", "batch_size=8", "lr=5e-3"]


@pytest.fixture(scope="module")
def world(make_world):
    return make_world(lengths=(3, 4, 2, 5) * 60, num_items=NUM_ITEMS)


@pytest.fixture(scope="module")
def requests(world):
    """One request a user, made at the last event."""
    events = world.histories.events
    split = np.zeros(len(events.items), np.int8)
    split[events.offsets[1:] - 1] = schema.VALID
    return split_requests(dataclasses.replace(world.histories, split=split), schema.VALID, repeats=True)


@pytest.fixture
def fresh(world, tiny_encoder, config):
    """A second stage that has learnt nothing."""
    torch.manual_seed(0)
    return make_reranker(tiny_encoder, world.catalogue.texts, config, model_version="0" * 12)


def titles(world) -> list[str]:
    return world.table.column(schema.ITEM_TITLE).to_pylist()
