"""The self-supervised start of the item tower, by hand and against what it is defined by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctxrec.core.config import ModelConfig
from ctxrec.data.features import ItemFeatures
from ctxrec.data.log_statistics import TrainingEvents
from ctxrec.data.prepared import FeatureMeta
from ctxrec.encoder.text_table import TextTable
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.item_tower import ItemTower
from ctxrec.training.warm_start import WINDOW, company, company_vectors, start_warm

NUM_ITEMS, DIM, WIDTH = 12, 4, 6


def histories(*rows: list[int]) -> TrainingEvents:
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return TrainingEvents(offsets=offsets, items=items, times=np.arange(len(items), dtype=np.int64))


def two_circles() -> list[TrainingEvents]:
    """Histories that stay in items 0 to 4 or in items 5 to 9; 10 comes once and alone, 11 never."""
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(5) + 5 * (n % 2)).tolist() for n in range(40)]
    return [histories(*rows[:20]), histories(*rows[20:], [10])]


def test_company_counts_steps_and_stays_inside_a_history():
    found = company([histories([0, 1, 2], [2, 3])], 4).toarray()
    expected = np.zeros((4, 4), np.float32)
    for a, b, weight in ((0, 1, 1), (1, 2, 1), (0, 2, 1 / 2), (2, 3, 1)):
        expected[a, b] = expected[b, a] = weight
    np.testing.assert_allclose(found, expected)


def test_company_ends_with_the_window_and_an_item_is_no_company_to_itself():
    row = [0, *([1] * WINDOW), 2]
    found = company([histories(row)], 3).toarray()
    assert (
        found[0, 2] == 0 and found[1, 1] == 0 and found[0, 1] == pytest.approx(sum(1 / s for s in range(1, WINDOW + 1)))
    )


def test_items_in_company_are_near_and_others_far():
    vectors = company_vectors(company(two_circles(), NUM_ITEMS), DIM, seed=0)
    cosine = vectors @ vectors.T
    inside = cosine[:5, :5][~np.eye(5, dtype=bool)]
    assert inside.min() > 0.5 and abs(cosine[:5, 5:10]).max() < 0.1
    assert not vectors[10:].any()


def test_without_company_or_with_more_width_than_items_vectors_are_defined():
    assert not company_vectors(company([histories([0], [1])], 2), 8, seed=0).any()
    found = company_vectors(company([histories([0, 1])], 2), 8, seed=0)
    assert np.isfinite(found).all() and found.shape == (2, 8)


def tower_and_inputs(*, use_text: bool) -> tuple[ItemTower, ItemTensors, TextTable | None]:
    torch.manual_seed(0)
    features = FeatureMeta(
        item_categories={}, item_numbers={}, user_categories={}, user_numbers={}, context_categories={},
        context_numbers={}, context_texts=[], actions=[],
    )  # fmt: skip
    config = ModelConfig(dim=DIM, use_text=use_text)
    shape = ModelShape.of(config, features, num_items=NUM_ITEMS, text_width=WIDTH if use_text else 0)
    none = np.zeros((NUM_ITEMS, 0), np.float32)
    catalogue = ItemFeatures(
        ids=[f"i{n}" for n in range(NUM_ITEMS)], texts=["x"] * NUM_ITEMS, cat={}, num=none, num_present=none
    )
    items = ItemTensors.of(catalogue, shape, trained=np.arange(NUM_ITEMS) < 11)
    text = None
    if use_text:
        # The first number of a text says in which circle an item is, also of the one without events.
        vectors = torch.randn(NUM_ITEMS, WIDTH) * 0.1
        vectors[:, 0] = torch.tensor([1.0] * 5 + [-1.0] * 5 + [0.0, 1.0])
        text = TextTable(vectors, torch.ones(NUM_ITEMS), torch.zeros(WIDTH), torch.ones(WIDTH))
    return ItemTower(config, shape).eval(), items, text


@pytest.mark.parametrize("use_text", [False, True])
def test_a_tower_starts_with_the_likeness_of_the_vectors(use_text):
    tower, items, text = tower_and_inputs(use_text=use_text)
    start_warm(tower, items, text, company_vectors(company(two_circles(), NUM_ITEMS), DIM, seed=0))
    found, _ = tower(items, text)
    cosine = (found @ found.T).detach().numpy()
    assert cosine[:5, :5].min() > 0.8 and cosine[:5, 5:10].max() < cosine[:5, :5].min() - 0.5
    if use_text:  # an item without events begins in the circle of its text
        assert cosine[11, :5].min() > cosine[11, 5:10].max()
