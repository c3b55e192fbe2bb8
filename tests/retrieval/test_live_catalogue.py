"""A catalogue changes as one: no reader sees ids, vectors, columns and birth times of two different states."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from catalogues import catalogue_of, encoded

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.data.events import US
from ctxrec.retrieval.live_catalogue import EncodedItems, LiveCatalogue
from ctxrec.retrieval.read_write_lock import ReadWriteLock

SPEC = DatasetSpec.from_dict(
    {
        "name": "shop",
        "events": {"path": "e"},
        "items": {"path": "i", "id": "id", "text": ["title"], "categorical": ["kind"], "numeric": ["year"]},
    }
)
NUM = 5


def table_of(ids: list[str], state: int) -> pa.Table:
    rows = [
        {"item_id": i, "title": f"{i} {state}", "train_events": 0, "cat_kind": [f"kind{state}"], "num_year": 1970.0 + state}
        for i in ids
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.items_schema(SPEC))


def make() -> LiveCatalogue:
    return catalogue_of(table_of([f"i{n}" for n in range(NUM)], 0), SPEC.items, width=3)


def rows(ids: list[str], state: int) -> EncodedItems:
    return encoded(table_of(ids, state), NUM, value=state, width=3)


def test_cards_show_the_numbers_of_the_file():
    catalogue, row = make(), table_of(["i1", "new"], 0).to_pylist()
    prices = pa.Table.from_pylist([r | {"num_year": 19.99} for r in row], schema.items_schema(SPEC))
    catalogue.put(encoded(prices, NUM, value=1, width=3))
    shown = [str(card["year"]) for card in catalogue.cards([1, NUM, 0])]
    assert shown == ["19.99", "19.99", "1970.0"]


def test_the_float32_numbers_of_an_earlier_item_table_are_read_as_the_file_had_them():
    old = pa.table({"num_price": pa.array([19.99, 16777216, None, -0.1], pa.float32()), "item_id": list("abcd")})
    assert schema.widen_item_numbers(old).to_pydict() == {
        "num_price": [19.99, 16777216.0, None, -0.1],
        "item_id": list("abcd"),
    }


def test_added_changed_and_removed_items_by_hand():
    catalogue = make()
    kinds, births = catalogue.codes("kind", option="x"), catalogue.births("year")
    bundled = catalogue.vectors
    assert catalogue.put(rows(["new", "i1", "new"], 7)).tolist() == [5, 1, 5]
    assert catalogue.ids == ["i0", "i1", "i2", "i3", "i4", "new"] and catalogue.position["new"] == 5
    assert catalogue.vectors[:, 0].tolist() == [0, 7, 0, 0, 0, 7] and not bundled.any(), "the bundle's matrix stays"
    assert catalogue.vectors_by_column[:, 2].tolist() == [0, 7, 0, 0, 0, 7]
    assert catalogue.proxy_weights.toarray().tolist() == [[7] * 5]
    assert kinds.codes_IM[:, 0].tolist() == [0, 1, 0, 0, 0, 1]
    age = births.days(np.arange(6)[None], np.array([10 * 365 * 86_400 * US]))[0]
    assert (age[[1, 5]] < age[0]).all()
    assert catalogue.codes("kind", option="x") is kinds and catalogue.births("year") is births
    assert catalogue.cards([1, 0]) == [
        {"item_id": "i1", "title": "i1 7", "kind": ["kind7"], "year": 1977.0},
        {"item_id": "i0", "title": "i0 0", "kind": ["kind0"], "year": 1970.0},
    ]
    assert (catalogue.fresh.tolist(), catalogue.stale.tolist(), catalogue.num_alive) == ([1, 5], [1], 6)
    before = catalogue.version
    catalogue.remove(["i1", "i2", "no such item"])
    assert (catalogue.fresh.tolist(), catalogue.stale.tolist(), catalogue.num_alive) == ([5], [1, 2], 4)
    assert not catalogue.has("i1") and catalogue.has("new") and not catalogue.has("?") and catalogue.version > before
    assert catalogue.alive_among(None).tolist() == [True, False, False, True, True, True]
    catalogue.update(rows(["i1", "late"], 9), removed=["new"])
    assert (
        catalogue.has("i1") and not catalogue.has("new") and catalogue.vectors[:, 1].tolist() == [0, 9, 0, 0, 0, 7, 9]
    )


def test_attributes_that_are_asked_for_late_know_the_rows_put_before():
    early, late = make(), make()
    codes, births = early.codes("kind", option="x"), early.births("")
    for catalogue in (early, late):
        catalogue.put(rows(["a", "b"], 3))
        catalogue.put(rows(["b", "i2"], 4))
    np.testing.assert_array_equal(late.codes("kind", option="x").codes_IM, codes.codes_IM)
    asked = np.arange(7)[None], np.array([0])
    np.testing.assert_array_equal(late.births("").days(*asked), births.days(*asked))


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"diversity\.caps: unknown column 'size'; valid categorical columns are kind"):
        make().codes("size", option="diversity.caps")
    with pytest.raises(UserError, match="unknown column 'size'; valid numeric columns are year"):
        make().births("size")


def state_of(catalogue: LiveCatalogue) -> dict[str, object]:
    """All that a reader can see of a catalogue."""
    everywhere = np.arange(len(catalogue.ids))
    return {
        "ids": list(catalogue.ids),
        "positions": dict(catalogue.position),
        "vectors": catalogue.vectors.tolist(),
        "columns": catalogue.vectors_by_column.tolist(),
        "alive": catalogue.alive.tolist(),
        "in the index": catalogue.is_in_index.tolist(),
        "fresh and stale": (catalogue.fresh.tolist(), catalogue.stale.tolist(), catalogue.version),
        "proxies": catalogue.proxy_weights.toarray().tolist(),
        "cards": catalogue.cards(everywhere.tolist()),
        "codes": catalogue.codes("kind", option="x").codes_IM.tolist(),
        "ages": catalogue.births("year").days(everywhere[None], np.array([0])).tolist(),
    }


@pytest.mark.parametrize("first_change", [True, False])
@pytest.mark.parametrize("part", ["_by_column.put", "_codes.put", "_births.put", "_put_proxies", "_note_change"])
def test_a_change_that_fails_half_way_changes_nothing_and_can_be_tried_again(monkeypatch, part, first_change):
    """As a MemoryError does where a matrix has to grow."""
    catalogue, wanted = make(), make()
    for made in (catalogue, wanted):
        if not first_change:
            made.put(rows(["early", "i1"], 3))
        state_of(made)  # what is made when it is first asked for is there
    before = state_of(catalogue)

    def fail(*_: object) -> None:
        raise MemoryError

    where = {
        "_by_column.put": catalogue._by_column,
        "_codes.put": catalogue._codes["kind"],
        "_births.put": catalogue._births["year"],
    }
    with monkeypatch.context() as patch:
        patch.setattr(where.get(part, catalogue), part.split(".")[-1], fail)
        with pytest.raises(MemoryError):
            catalogue.update(rows(["new", "i1", "early"], 7), removed=["i2"])
    assert state_of(catalogue) == before
    for made in (catalogue, wanted):
        made.update(rows(["new", "i1", "early"], 7), removed=["i2"])
    assert state_of(catalogue) == state_of(wanted)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"vectors": np.zeros((1, 3), np.float32)}, "expected finite ones"),
        ({"vectors": np.zeros((2, 2), np.float32)}, "expected finite ones"),
        ({"vectors": np.full((2, 3), np.nan, np.float32)}, "expected finite ones"),
        ({"proxy_weights": sp.csr_array((2, NUM + 1), dtype=np.float32)}, "proxies"),
        ({"proxy_weights": sp.csr_array((1, NUM), dtype=np.float32)}, "proxies"),
        ({"table": table_of(["a", "b"], 1).drop_columns(["cat_kind"])}, "lack the columns cat_kind"),
    ],
)
def test_items_that_do_not_fit_are_refused_before_anything_changes(wrong, said):
    catalogue = make()
    before = state_of(catalogue)
    with pytest.raises(ValueError, match=said):
        catalogue.put(dataclasses.replace(rows(["a", "b"], 1), **wrong))
    assert state_of(catalogue) == before


def test_no_reader_sees_half_of_a_change():
    """Readers in other threads compare every part of the catalogue while items are added, changed and removed."""
    catalogue = make()
    kinds, births = catalogue.codes("kind", option="x"), catalogue.births("year")
    names = [f"kind{n}" for n in range(60)]
    stop, wrong, looks = threading.Event(), [], []

    def look() -> None:
        while not stop.is_set():
            with catalogue.reading():
                num = len(catalogue)
                states = catalogue.vectors[:, 0].astype(int)
                time.sleep(0)  # a writer would come in here, if it could
                sizes = {
                    num,
                    len(catalogue.position),
                    len(catalogue.vectors),
                    len(catalogue.alive),
                    len(kinds.codes_IM),
                }
                sizes |= {NUM + catalogue.proxy_weights.shape[0], catalogue.vectors_by_column.shape[0]}
                cards = catalogue.cards(range(num))
                ages = births.days(np.arange(num)[None], np.array([100 * 365 * 86_400 * US]))[0]
                agree = [c["kind"] == [names[s]] and c["year"] == 1970 + s for c, s in zip(cards, states, strict=True)]
                same = {round(float(age)) for age in ages[states == states.max()]}
                if len(sizes) > 1 or not all(agree) or len(same) != 1:
                    wrong.append((sizes, agree, same))
            looks.append(1)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for state in range(1, 60):
            ids = [f"i{n}" for n in range(NUM)] + [f"x{state}", f"x{state // 2}"]
            catalogue.update(rows(ids, state), removed=["i1"])
            while len(looks) < 2 * state and not wrong:
                time.sleep(0.0005)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[0]
    assert len(looks) >= 100 and len(catalogue) > 50


def test_a_lock_lets_readers_in_together_and_a_writer_alone():
    lock = ReadWriteLock()
    inside, most, together = [], [], threading.Barrier(2, timeout=30)

    def read() -> None:
        with lock.reading(), lock.reading():  # reentrant
            together.wait()

    def write() -> None:
        with lock.writing(), lock.reading():  # what a writer calls may read
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

    for work, num in ((read, 2), (write, 8)):
        threads = [threading.Thread(target=work) for _ in range(num)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert most == [1] * 8
    with lock.reading(), pytest.raises(AssertionError, match="wait for itself"), lock.writing():
        pass
