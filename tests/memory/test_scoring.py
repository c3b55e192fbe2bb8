"""One scoring interface: what calibration, evaluation, the retriever and the explanation see are the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blends import blend_of

from ctxrec.core.config import IndexConfig
from ctxrec.index.builder import build_index
from ctxrec.memory.scoring import BlendScorer, in_parts, score_all, score_items
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import Retriever

LATER = 1_700_000_000.0


@pytest.mark.parametrize("blend", [None, blend_of])
def test_all_ways_to_a_score_agree(make_world, blend):
    world = make_world(lengths=(9, 0, 5, 3))
    config = world.config()
    recommender = world.recommender(config, blend=blend)
    requests, _ = recommender.make_requests([RawRequest(f"u{n}", LATER + 40_000 * n) for n in (0, 1, 2, 3, 9)])
    towers, items = world.towers(config)
    batcher = world.batcher(config)

    def ask(part):
        batch = batcher.requests(part)
        with torch.inference_mode():
            vectors = torch.from_numpy(np.ascontiguousarray(recommender.item_vectors))
            return towers(items, None, batch, item_vectors=vectors, last=True)[1].numpy()

    item_vectors = recommender.item_vectors
    made = None if blend is None else blend(item_vectors, towers.widths)
    in_training = BlendScorer(lambda r: in_parts(r, 2, ask, width=sum(towers.widths)), item_vectors, made)
    scores = recommender.scores(requests)
    np.testing.assert_allclose(score_all(in_training, requests), scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(score_all(recommender, requests), scores)
    some = np.array([4, 0, 11])
    np.testing.assert_allclose(score_items(recommender, requests, some), scores[:, some], rtol=1e-5, atol=1e-5)
    ivf = build_index(recommender.vectors, IndexConfig(kind="hnsw", use_gpu="no"))
    for index in (None, ivf):
        for n, (positions, found) in enumerate(Retriever(recommender, index).top_k(requests, 5)):
            np.testing.assert_allclose(found, scores[n, positions], rtol=1e-5, atol=1e-5)


def test_requests_in_parts_by_hand(make_world):
    world = make_world(lengths=(2, 3, 1))
    requests, _ = world.recommender(world.config()).make_requests([RawRequest(f"u{n}", LATER + n) for n in range(3)])
    asked = []

    def ask(part):
        asked.append(len(part))
        return part.times[:, None].astype(np.float32)

    whole = in_parts(requests, 9, ask, width=1)
    np.testing.assert_array_equal(in_parts(requests, 2, ask, width=1), whole)
    assert asked == [3, 2, 1]
    assert in_parts(requests.take(np.zeros(0, np.int64)), 2, ask, width=4).shape == (0, 4)
