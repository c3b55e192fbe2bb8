"""Diversity and rules at the end of the pipeline, through `Retriever.top_k`: promises for every index and live items."""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np
import pytest
import scipy.sparse as sp
from tolerance import assert_same_scores

from ctxrec.core import schema
from ctxrec.core.config import DiversityConfig, IndexConfig
from ctxrec.core.errors import UserError
from ctxrec.index.builder import build_index
from ctxrec.retrieval.live_catalogue import EncodedItems
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.retriever import Retriever
from ctxrec.retrieval.slate.rules import load_rules

NOW = 1_700_000_000.0
KINDS = ["kind.of", "maker"]


@pytest.fixture(scope="module")
def world(make_world):
    made = make_world(num_items=60)
    columns = ("kind.of", "maker"), ("price", "size")
    spec = type(made.spec).from_dict(
        made.spec.to_dict() | {"items": {"path": "items.parquet", "categorical": columns[0], "numeric": columns[1]}}
    )
    return dataclasses.replace(made, spec=spec)


@pytest.fixture
def retriever(world, tmp_path):
    """Makes retrievers with options and the text of a rule file."""

    def make(rules: str = "", kind: str = "exact", **options) -> Retriever:
        recommender = world.recommender(world.config())
        index = None if kind == "exact" else build_index(recommender.vectors, IndexConfig(kind=kind, use_gpu="no"))
        (tmp_path / "rules.toml").write_text(rules)
        return Retriever(
            recommender,
            index,
            diversity=DiversityConfig(**options),
            rules=load_rules(str(tmp_path / "rules.toml")),
        )

    return make


def requests_of(retriever: Retriever, *users: str, at: float = NOW):
    return retriever.recommender.make_requests([RawRequest(user_id=u, timestamp=at) for u in users])[0]


def ids(retriever: Retriever, k: int = 10, user: str = "u1", at: float = NOW, **options) -> list[str]:
    found = retriever.top_k(requests_of(retriever, user, at=at), k, **options)
    assert (np.diff(found[0][1]) <= 0).all()
    assert len(set(found[0][0].tolist())) == len(found[0][0])
    return retriever.item_ids(found[0][0])


def test_off_changes_nothing_and_the_pool_has_no_say(retriever):
    plain, off = retriever(), retriever(pool=3)
    asked = requests_of(plain, "u0", "u1", "u2")
    for (items, scores), (others, other_scores) in zip(plain.top_k(asked, 9), off.top_k(asked, 9), strict=True):
        assert items.tolist() == others.tolist()
        assert_same_scores(scores, other_scores)


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_mmr_makes_lists_differ_and_keeps_every_promise(retriever, kind):
    made = retriever(kind=kind, pool=40)
    asked = requests_of(made, "u0", "u1", "u2", "nobody")
    by_strength = {s: made.top_k(asked, 10, diversity=[s] * 4) for s in (None, 0.0, 0.3, 0.9)}

    def apart(items: np.ndarray) -> float:
        """How far each item of a list is from the nearest one above it, which is what a step of MMR looks at."""
        vectors = made.recommender.content_vectors(items)
        return float(np.mean([1 - (vectors[n] @ vectors[:n].T).max() for n in range(1, len(vectors))]))

    spread = {s: np.mean([apart(items) for items, _ in found]) for s, found in by_strength.items()}
    assert spread[0.0] == spread[None] <= spread[0.3] < spread[0.9]  # what little diversity changes, weights decide
    for found in by_strength.values():
        for n, (items, scores) in enumerate(found):
            seen = set(asked.history.items[asked.history.row(n)].tolist())
            assert len(set(items.tolist())) == 10 and not seen & set(items.tolist())
            assert (np.diff(scores) <= 0).all() and scores.dtype == np.float32
            assert items[0] == by_strength[0.0][n][0][0], "the best one stays the first"


def test_a_list_does_not_depend_on_what_else_is_asked(retriever):
    made = retriever(pool=15, caps={"kind.of": 2})
    asked = requests_of(made, "u0", "u1", "u2")
    together = made.top_k(asked, [3, 40, 7], diversity=[0.5, None, 1.0])
    for n, (k, strength) in enumerate(((3, 0.5), (40, None), (7, 1.0))):
        alone = made.top_k(asked.take(np.array([n])), k, diversity=[strength])[0]
        assert alone[0].tolist() == together[n][0].tolist()


def test_caps_hold_beyond_the_candidates_and_give_way_at_last(retriever):
    made = retriever(pool=4, caps={"kind.of": 2})
    kinds = dict(zip(made.recommender.item_ids, made.recommender.items.column("cat_kind.of").to_pylist(), strict=True))

    def most(listed: list[str]) -> int:
        values = [value for item in listed for value in kinds[item] or []]
        return max(values.count(value) for value in set(values))

    # Kinds are [a, c], [b], none, none and "new" (which is a value as any other): 2 of each, and any of no kind.
    assert most(ids(retriever(), 12)) > 2
    assert most(ids(made, 12)) == 2
    everything = ids(made, 100)
    assert sorted(everything) == sorted(ids(retriever(), 100)), "caps never cost an item that is asked for"
    allowed = made.compile_filter({"kind.of": ["b"]})
    assert len(ids(made, 5, allowed=allowed)) == 5
    with pytest.raises(UserError, match=r"diversity\.caps: unknown column 'colour'.*kind\.of, maker"):
        retriever(caps={"colour": 1})


def test_blocked_items_are_replaced_while_they_are_blocked(retriever):
    best = ids(retriever(), 10)
    rules = f"""
    [[block]]
    items = ["{best[0]}", "{best[3]}"]
    until = 2023-11-14T22:13:20Z  # NOW
    [[block]]
    column = "price"
    min = 30
    since = 2023-11-14T22:13:20Z
    """
    made = retriever(rules)
    before = ids(made, 10, at=NOW - 1)
    assert len(before) == 10 and not {best[0], best[3]} & set(before)
    after = ids(made, 10)
    assert len(after) == 10 and all(int(item[1:]) < 30 or int(item[1:]) % 4 == 0 for item in after)
    both = made.recommender.make_requests([RawRequest(user_id="u1", timestamp=NOW - t) for t in (1, 0)])[0]
    assert [made.item_ids(items) for items, _ in made.top_k(both, 10)] == [before, after]
    only = made.compile_filter(None, allow=[best[0], best[1]])
    assert ids(made, 5, at=NOW - 1, allowed=only) == [best[1]], "a filter and a block both hold"


def test_boosts_lift_and_lower_also_beyond_the_candidates(retriever):
    ranked = ids(retriever(), 60)
    last, first = ranked[-1], ranked[0]
    found = ids(retriever(f'[[boost]]\nitems = ["{last}"]\nby = 10\n[[boost]]\nitems = ["{first}"]\nby = -10', pool=8))
    assert found[0] == last and found[1:8] == ranked[1:8] and first not in found[:7]
    assert ids(retriever(f'[[boost]]\nitems = ["{ranked[1]}"]\nby = 0.0001')) == ranked[:10], "too little"


def test_pins_come_to_their_places_but_only_where_they_are_eligible(retriever):
    ranked = ids(retriever(), 60)
    pins = f'[[pin]]\nitems = ["{ranked[40]}", "{ranked[30]}"]\nplace = 2\n[[pin]]\nitems = ["{ranked[0]}"]\nplace = 4'
    found = ids(retriever(pins, pool=5), 6)
    assert found == [ranked[1], ranked[30], ranked[2], ranked[0], ranked[3], ranked[4]]
    made = retriever(pins)
    assert ids(made, 2) == [ranked[1], ranked[30]] and ids(made, 1) == [ranked[1]]
    assert ranked[30] not in ids(made, exclude=[made.positions([ranked[30]])])
    seen = made.recommender.item_ids[int(requests_of(made, "u1").history.items[0])]
    assert ids(retriever(f'[[pin]]\nitems = ["{seen}"]')) == ranked[:10]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ('[[block]]\nitems = ["i0", "i999"]', "a block rule names the item 'i999'; the catalogue has no such item"),
        ('[[boost]]\ncolumn = "colour"\nany = ["red"]\nby = 1', "a boost rule does not fit .*unknown column 'colour'"),
        ('[[pin]]\ncolumn = "price"\nany = ["3"]', "a pin rule does not fit .*'price' is numeric"),
    ],
)
def test_rules_that_do_not_fit_the_catalogue_are_refused_and_the_old_ones_stay(retriever, tmp_path, rules, says):
    with pytest.raises(UserError, match=says):
        retriever(rules)
    best = ids(retriever(), 1)[0]
    made = retriever(f'[[block]]\nitems = ["{best}"]')
    (tmp_path / "other.toml").write_text(rules + f'\n[[block]]\nitems = ["{ids(made, 1)[0]}"]')
    other = load_rules(str(tmp_path / "other.toml"))
    with pytest.raises(UserError, match=says):
        made.slate_builder.use_rules(other)
    second = ids(made, 1)[0]
    assert best not in ids(made, 60)
    assert len(made.slate_builder.use_rules(other, lenient=True)) == 1
    assert best in ids(made, 60) and second not in ids(made, 60), "what fits holds"


def test_fresh_items_come_first_by_their_first_event_or_a_date(retriever, world):
    events = world.histories.events
    first = {n: int(events.times[events.items == n].min()) for n in set(events.items.tolist())}
    made = retriever(freshness=1000, half_life_days=5, pool=60)
    at = float(np.median(list(first.values()))) / 1e6
    known = {f"i{n}" for n, time in first.items() if time < at * 1e6}
    found = [item for item in ids(made, 60, user="nobody", at=at) if item in known]
    newest = sorted(known, key=lambda item: -first[int(item[1:])])
    assert found[:5] == newest[:5] and found != [i for i in ids(retriever(), 60, "nobody", at) if i in known]
    # As years: prices are the numbers of items, but for every fourth, which has none.
    by_date = retriever(freshness=1000, half_life_days=365 * 1000, date_column="price", pool=60)
    assert ids(by_date, 5, user="nobody") == ["i59", "i58", "i57", "i55", "i54"]
    with pytest.raises(UserError, match=r"unknown column 'maker'; valid numeric columns are price, size"):
        retriever(freshness=1, date_column="maker")


def live(retriever: Retriever, item: str, kind: list[str], like: int) -> None:
    """Put in an item with the vector of another."""
    recommender = retriever.recommender
    row = recommender.items.slice(like, 1).to_pylist()[0] | {schema.ITEM_ID: item, "cat_kind.of": kind}
    table = type(recommender.items).from_pylist([row], schema=recommender.items.schema)
    nobody = sp.csr_array((1, recommender.items.num_rows), dtype=np.float32)
    retriever.update(EncodedItems(table, recommender.vectors[like : like + 1].copy(), nobody))


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_live_items_are_capped_blocked_lifted_pinned_and_fresh(retriever, kind):
    best = ids(retriever(), 1)[0]
    place = int(best[1:])
    made = retriever('[[block]]\ncolumn = "kind.of"\nany = ["banned"]', kind=kind, caps={"kind.of": 1}, pool=5)
    live(made, "good", ["quite new"], place)
    live(made, "bad", ["banned", "b"], place)
    live(made, "second", ["quite new"], place)
    found = ids(made, 10)
    assert len(found) == 10 and "bad" not in found and len({"good", "second"} & set(found)) == 1
    live(made, "good", ["banned"], place)  # it changes
    found = ids(made, 10)
    assert "good" not in found and "second" in found
    rules = '[[pin]]\nitems = ["later"]\nplace = 3'
    with pytest.raises(UserError, match="'later'"):
        retriever(rules, kind=kind)
    made = retriever(kind=kind, freshness=3)
    live(made, "later", ["b"], place)
    assert ids(made, 1) == ["later"], "quite new"
    made.slate_builder.use_rules(load_rules_of(rules, made))
    assert ids(made, 10)[2] == "later"
    made.update(None, ["later"])
    assert "later" not in ids(made, 10)


def load_rules_of(text: str, retriever: Retriever):
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        return load_rules(file.name)


def test_scores_are_the_models_where_the_order_is(retriever):
    made = retriever('[[pin]]\nitems = ["i1"]\nplace = 3', pool=20)
    asked = requests_of(made, "nobody")
    (items, scores), (plain, plain_scores) = made.top_k(asked, 8)[0], retriever().top_k(asked, 8)[0]
    assert_same_scores(scores[:2], plain_scores[:2])
    after = items.tolist().index(made.recommender.item_position["i1"]) + 1
    assert scores[after - 1] == scores[after], "a lifted item takes the score of the best below it"
    assert datetime.datetime.fromtimestamp(NOW, datetime.UTC).isoformat() == "2023-11-14T22:13:20+00:00"
    assert plain.tolist()[:2] == items.tolist()[:2]
