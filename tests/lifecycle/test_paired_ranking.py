"""Both versions are ranked as the service would rank them: at the time of each event, with live counts and posted items."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctxrec.data.posted_rows import file_table
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.offline import eligible_items
from ctxrec.evaluation.stream import NO_LIVE, item_counts_before, rank_stream
from ctxrec.evaluation.systems import MODEL
from ctxrec.lifecycle.gates import cost_gates
from ctxrec.lifecycle.other_version import item_map
from ctxrec.lifecycle.paired_ranking import K, rank_both
from ctxrec.lifecycle.posted_items import put_posted
from ctxrec.memory.live_counts import LIVE_COUNTS
from ctxrec.memory.live_sources import LiveWeights
from ctxrec.retrieval.load import load_recommender


def loaded(run: str, *, live: bool):
    found = load_recommender(f"{run}/bundle")
    if live:
        weights = np.array([[1.0], [0.0]], np.float32).repeat(len(LIVE_COUNTS.half_lives_s), 1)
        found.live_weights = LiveWeights(LIVE_COUNTS.half_lives_s, found.blend.weights_2K, weights)
    return found


@pytest.fixture(scope="module")
def data(tiny_data) -> PreparedData:
    return PreparedData.open(tiny_data)


def test_they_are_ranked_as_a_stream_with_the_live_counts_that_each_has(data, tiny_run):
    ranked = rank_both(data, loaded(tiny_run, live=True), loaded(tiny_run, live=False), most=10**6)
    assert ranked is not None and ranked.left_out == 0
    eligible = eligible_items(data, item_counts_before(data, "test"))
    lists, requests, _, _ = rank_stream(data, "test", loaded(tiny_run, live=True), eligible=eligible, k=K)

    def by_request(asked, tops: np.ndarray) -> dict[tuple[str, int], list[int]]:
        return {
            key: top.tolist() for key, top in zip(zip(asked.users.ids, asked.times, strict=True), tops, strict=True)
        }

    for name, found in ((MODEL, ranked.candidate), (NO_LIVE, ranked.served)):
        assert by_request(ranked.requests, found) == by_request(requests, lists.tops[name]), name
    assert (ranked.candidate != ranked.served).any(), "the counts change lists"
    assert (np.diff(ranked.requests.times) >= 0).all()


def test_a_version_counts_in_its_own_positions(data, tiny_run):
    """The same model with live counts on both sides; the data of the events names the items in another order."""
    models = [loaded(tiny_run, live=True) for _ in range(2)]
    plain = rank_both(data, *models, most=400)
    turned = TurnedRound(data.path, data.meta)
    other = rank_both(turned, *(loaded(tiny_run, live=True) for _ in range(2)), most=400)
    assert plain is not None and other is not None
    np.testing.assert_array_equal(plain.candidate, plain.served)
    last = data.num_items - 1
    np.testing.assert_array_equal(np.where(other.candidate < 0, -1, last - other.candidate), plain.candidate)


class TurnedRound(PreparedData):
    """The same data, whose items are in the reverse order."""

    @property
    def items(self) -> pa.Table:
        return super().items.take(np.arange(self.num_items)[::-1])

    def read_bucket(self, *args, **kwargs) -> pa.Table:
        table = super().read_bucket(*args, **kwargs)
        column = table.column("items").combine_chunks()
        turned = (self.num_items - 1 - column.flatten().to_numpy()).astype(np.int32)
        made = pa.ListArray.from_arrays(column.offsets, pa.array(turned))
        return table.set_column(table.column_names.index("items"), "items", pa.chunked_array([made]))


def test_posted_items_are_ranked_too(data, tiny_run, tmp_path):
    bundle, model = f"{tiny_run}/bundle", loaded(tiny_run, live=False)
    known = model.item_ids[0]
    assert put_posted(model, bundle, "") == 0 and put_posted(model, bundle, str(tmp_path)) == 0
    (tmp_path / "items").mkdir()
    title = model.spec.items.text[0]
    rows = [{"item_id": "posted", title: "a posted item"}, {"item_id": known, title: "another text"}]
    table = file_table(rows, model.spec.items).append_column("of another version", pa.array(["x", "y"]))
    pq.write_table(table, tmp_path / "items" / "0-live-1.parquet")
    before = model.vectors.copy()
    assert put_posted(model, bundle, str(tmp_path)) == 1, "a known item stays as it is"
    assert item_map(["posted", known], model).tolist() == [len(before), 0]
    np.testing.assert_array_equal(model.vectors[: len(before)], before)
    assert put_posted(model, bundle, str(tmp_path)) == 0, "it is there"
    assert np.isfinite(model.vectors[-1]).all()


@pytest.mark.parametrize(("seconds", "verdict"), [(0.010, "passed"), (0.0159, "passed"), (0.0161, "failed")])
def test_a_slow_candidate_fails(data, tiny_run, seconds, verdict):
    """Ten milliseconds may become half as many more, and one."""
    model, bundle = loaded(tiny_run, live=False), f"{tiny_run}/bundle"
    ranked = rank_both(data, model, model, most=20)
    assert ranked is not None and set(ranked.seconds) == {"candidate", "served"}
    timed = dataclasses.replace(ranked, seconds={"candidate": seconds, "served": 0.010})
    gates = {gate.name: gate.verdict for gate in cost_gates(timed, model, model, (bundle, bundle))}
    assert gates == {"size": "passed", "time of a request": verdict}
