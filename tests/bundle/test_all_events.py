"""A bundle whose memory learns the events by which it was judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ctxrec.bundle.all_events import towers_until, with_all_events
from ctxrec.bundle.format import check_bundle
from ctxrec.bundle.registry import find_bundle
from ctxrec.core import schema, storage
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import PreparedData
from ctxrec.lifecycle.completed import completed
from ctxrec.retrieval.load import load_recommender


@pytest.mark.parametrize("write", [with_all_events, completed])
def test_the_memory_knows_all_events_and_all_else_stays(tiny_run, tiny_data, tmp_path, write):
    first, out = find_bundle(tiny_run), str(tmp_path / "out")
    version = write(first, PreparedData.open(tiny_data), out)
    before, after = load_recommender(first), load_recommender(out)
    assert after.model_version == version != before.model_version
    events = after.histories.events
    np.testing.assert_array_equal(events.items, before.histories.events.items)
    held_out = before.histories.split == schema.TEST
    assert held_out.any() and (after.histories.split[held_out] == schema.VALID).all()
    np.testing.assert_array_equal(after.histories.split[~held_out], before.histories.split[~held_out])
    counts = np.bincount(events.items, minlength=len(after.item_ids))
    popular = np.log1p(counts)
    memory = after.blend.memory
    np.testing.assert_allclose(memory.popularity_I, (popular - popular.mean()) / popular.std(), atol=1e-5)
    np.testing.assert_array_equal(memory.known_I, counts > 0)
    assert np.abs(memory.popularity_I - before.blend.memory.popularity_I).max() > 1e-3
    np.testing.assert_array_equal(after.blend.weights_2K, before.blend.weights_2K)
    changed = {name for name, digest in _files(out).items() if digest != _files(first)[name]}
    assert (
        changed == {"blend.safetensors", "histories.arrow", "index.faiss"}
        and _files(out).keys() == _files(first).keys()
    )


def test_dislikes_stay_dislikes(tiny_run, tiny_data, tmp_path):
    """Where actions or values say what is liked, the memory of all events reads them as that of the training does."""
    first, out, data = find_bundle(tiny_run), str(tmp_path / "out"), PreparedData.open(tiny_data)
    weights = {**data.spec.events.actions, "view": -1.0}
    negative = 1 + data.features.actions.index("view")
    spec = dataclasses.replace(data.spec.events, actions=weights)
    vars(data)["kinds"] = EventKinds.of(spec, data.features.actions, data.features.graded)
    with_all_events(first, data, out)
    after = load_recommender(out)
    events, memory = after.histories.events, after.blend.memory
    liked = np.bincount(events.items[events.actions != negative], minlength=len(after.item_ids))
    assert memory.speaks_A is not None and memory.speaks_A[negative] < 0 < memory.speaks_A[0]
    popular, known = np.log1p(liked), memory.known_I
    expected = (popular - popular[known].mean()) / popular[known].std()
    np.testing.assert_allclose(memory.popularity_I[known], expected[known], atol=1e-5)


def test_a_warm_start_knows_until_when_the_towers_were_trained(tiny_run, tiny_data, tmp_path):
    """The next training must read the windows with the events that only the memory has seen."""
    first, out = find_bundle(tiny_run), str(tmp_path / "out")
    with_all_events(first, PreparedData.open(tiny_data), out)
    histories = load_recommender(first).histories
    trained = int(histories.events.times[histories.split != schema.TEST].max())
    assert int(histories.events.times.max()) > trained
    for bundle in (first, out):
        folder, manifest = check_bundle(bundle, scratch=str(tmp_path))
        assert towers_until(folder, manifest) == trained


def _files(bundle: str) -> dict[str, str]:
    return {p.name: storage.sha256_file(str(p)) for p in Path(bundle).glob("*.*") if p.name != "manifest.json"}
