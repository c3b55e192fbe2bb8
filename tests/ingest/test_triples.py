"""Triples of a knowledge graph: which pairs an item gets, and that a model learns from them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import DatasetSpec, GraphSpec, load_spec
from ctxrec.data import item_rows
from ctxrec.data.features import MAX_TRIPLES, item_features
from ctxrec.data.posted_rows import posted_table
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.ingest import readers, triples
from ctxrec.retrieval.item_encoder import ItemEncoder
from ctxrec.retrieval.raw_request import RawEvent, RawRequest
from ctxrec.retrieval.retriever import load_retriever

HEADER = "head\trelation\ttail\n"


def read(folder: Path, *texts: str) -> triples.Triples:
    for number, text in enumerate(texts):
        (folder / f"{number}.tsv").write_text(HEADER + text)
    spec = GraphSpec(path=str(folder / "*.tsv"))
    files = readers.inspect(spec.path, [spec.head, spec.relation, spec.tail], section="graph")
    return triples.read_triples(files, spec, rejects=str(folder / "rejects"))


def test_an_item_has_the_shared_pairs_whose_head_it_is_in_the_order_of_the_files(tmp_path):
    facts = read(
        tmp_path,
        "b\tby\tann\na\tin\tfrench\na\tby\tann\nx\tin\tfrench\n",
        "a\tby\tann\nb\tin\tfrench\na\tby\tbob\n\tby\tann\nb\tby\t\nc\tof\ta\nonly one\n",
    )
    assert len(facts) == 8
    assert facts.rejects == {"graph: incomplete triple": 2, "graph: malformed row": 1}
    pairs = triples.pairs_of(facts, pa.array(["a", "none", "b", "c"]))
    # "by: bob" and "of: a" are of one item alone, and x is no item.
    assert pairs.to_pylist() == [["in: french", "by: ann"], [], ["by: ann", "in: french"], []]


def test_a_graph_without_triples_says_nothing(tmp_path):
    facts = read(tmp_path, "")
    assert len(facts) == 0 and facts.rejects == {}
    assert triples.pairs_of(facts, pa.array(["a", "b"])).to_pylist() == [[], []]


def test_an_item_keeps_more_triples_than_values_of_a_column():
    spec = DatasetSpec.from_dict({"name": "t", "events": {"path": "e.csv"}, "graph": {"path": "kg.tsv"}})
    pairs = pa.array([[f"p{n}" for n in range(99)], []], pa.list_(pa.string()))
    table = item_rows.items_table(spec, item_rows.NO_ENTITIES, pa.array(["a", "b"]), np.zeros(2, np.int64), pairs=pairs)
    assert table.schema == schema.items_schema(spec)
    features = FeatureMeta({schema.GRAPH: [f"p{n}" for n in range(99)]}, {}, {}, {}, {}, {}, [], [])
    codes = item_features(table, features).cat[schema.GRAPH]
    assert codes[0].tolist() == list(range(schema.FIRST_CODE, schema.FIRST_CODE + MAX_TRIPLES)) and not codes[1].any()


GROUPS, SIZE = 4, 10


@pytest.fixture(scope="module")
def run(ray_cluster, tmp_path_factory) -> str:
    """A model without IDs, texts and memory, on a log whose users stay with one director; i0 to i3 are never taken."""
    from ctxrec.ingest.pipeline import prepare
    from ctxrec.training.driver import train

    folder = tmp_path_factory.mktemp("graph")
    rng = random.Random(0)
    log = ["user_id,item_id,timestamp"]
    for user in range(80):
        items = [n for n in range(GROUPS, GROUPS * SIZE) if n % GROUPS == user % GROUPS]
        log += [f"u{user},i{n},{1_600_000_000 + 60 * k}" for k, n in enumerate(rng.sample(items, 6))]
    (folder / "events.csv").write_text("\n".join(log) + "\n")
    triples = [f"i{n}\tdirected by\td{n % GROUPS}\ni{n}\tshot in\tplace\n" for n in range(GROUPS * SIZE)]
    (folder / "kg.tsv").write_text(HEADER + "".join(triples))
    (folder / "items.csv").write_text("item_id\n" + "".join(f"i{n}\n" for n in range(GROUPS * SIZE)))
    (folder / "dataset.toml").write_text(
        'name = "directors"\n[events]\npath = "events.csv"\n[items]\npath = "items.csv"\n'
        '[graph]\npath = "kg.tsv"\n[split]\nstrategy = "last"\n'
    )
    config = load_config(
        None,
        ["encoder.name=", 'model.sources=["text", "media", "features", "context", "user"]', "model.dim=16", "model.history=6",
         "train.workers=0", "train.global_batch_size=16", "train.tower_epochs=12", "train.max_failures=0"],
    )  # fmt: skip
    prepare(load_spec(str(folder / "dataset.toml")), str(folder / "data"), config)
    return train(str(folder / "data"), str(folder / "run"), config)


def test_a_model_learns_from_triples_where_nothing_else_tells_items_apart(run):
    assert (
        PreparedData.open(str(Path(run).parent / "data")).features.item_categories[schema.GRAPH][0] == "shot in: place"
    )
    retriever = load_retriever(run)
    asked = [RawRequest(history=[RawEvent(f"i{group + GROUPS * k}") for k in range(1, 4)]) for group in range(GROUPS)]
    requests, _ = retriever.recommender.make_requests(asked)
    for group, (found, _) in enumerate(retriever.top_k(requests, SIZE - 3)):
        # All seven others of the director come first, the one that nobody has had among them.
        assert {int(item[1:]) for item in retriever.item_ids(found)} == {
            n for n in range(group, GROUPS * SIZE, GROUPS) if n not in {group + GROUPS * k for k in range(1, 4)}
        }


def test_an_item_that_is_put_again_keeps_its_triples_and_a_new_one_has_none(run):
    retriever = load_retriever(run)
    recommender = retriever.recommender
    encoder = ItemEncoder(f"{run}/bundle", recommender)
    made = encoder.encode(posted_table([{"item_id": "i5"}, {"item_id": "new"}], recommender.spec))
    np.testing.assert_allclose(made.vectors[0], recommender.vectors[5], atol=1e-6)
    column = made.table.column(schema.category_column(schema.GRAPH)).to_pylist()
    assert column[0] == ["directed by: d1", "shot in: place"] and not column[1]
    retriever.update(made)
    assert retriever.catalogue.cards([5])[0]["item_id"] == "i5" and retriever.has_item("new")
