"""Ids of users as a column of Arrow: what a dict and a sorted list of them would say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.data.user_ids import UserIds, is_order, sorted_rows, user_ids_of

NAMES = ["b", "", "ä", "aa", "user-10", "user-9", "a", "日本", "user-1", "Z", "\U0001f600", "ab\x00c"]


def ids_of(names: list[str], *, sliced: bool = False) -> UserIds:
    column = pa.array(["first", *names, "last"]).slice(1, len(names)) if sliced else pa.array(names, pa.string())
    return UserIds(column)


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("num", [0, 1, 2, len(NAMES)])
def test_rows_are_those_of_a_dict(num, sliced):
    names = NAMES[:num]
    ids, expected = ids_of(names, sliced=sliced), {name: row for row, name in enumerate(names)}
    assert dict(ids.rows) == expected and len(ids) == len(ids.rows) == num and list(ids) == names
    for unknown in ("c", "user-", "user-100", "zz", "first", "last", "\ud800"):
        assert unknown not in ids.rows and ids.row_of(unknown) == -1 and ids.rows.get(unknown, 7) == 7
    with pytest.raises(KeyError):
        ids.rows["unknown"]


def test_columns_are_indexed_as_arrays_of_objects():
    ids, expected = ids_of(NAMES), np.array(NAMES, object)
    mask = np.arange(len(NAMES)) % 3 == 0
    for index in (np.array([3, 0, 3]), np.array([], np.int64), mask, slice(2, 5)):
        assert ids[index].tolist() == expected[index].tolist()
    assert ids[4] == ids[np.int64(4)] == NAMES[4]
    assert list(user_ids_of(expected)) == NAMES


@pytest.mark.parametrize("prefix", ["", "user-", "user-1", "a", "ä", "none", "\U0001f600", "zzz"])
@pytest.mark.parametrize("limit", [0, 2, 99])
def test_ids_with_a_prefix_come_in_the_order_of_their_bytes(prefix, limit):
    expected = sorted((name for name in NAMES if name.startswith(prefix)), key=str.encode)
    assert ids_of(NAMES).beginning_with(prefix, limit) == expected[:limit]


def test_only_the_order_of_distinct_ids_is_one():
    ids = pa.chunked_array([NAMES])
    order = sorted_rows(ids.chunk(0))
    assert is_order(order, ids) and is_order(
        sorted_rows(pa.array([], pa.string())), pa.chunked_array([[]], pa.string())
    )
    swapped = order.copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    beyond = order.copy()
    beyond[-1] = len(NAMES)
    repeated = order.copy()
    repeated[1] = repeated[0]
    for wrong in (swapped, beyond, repeated, order[:-1]):
        assert not is_order(wrong, ids)
    twice = pa.chunked_array([[*NAMES, NAMES[0]]])
    assert not is_order(sorted_rows(twice.chunk(0)), twice)


def test_many_ids_are_found(monkeypatch):
    monkeypatch.setattr("ctxrec.data.user_ids._AT_ONCE", 7)
    names = [f"u{n}" for n in np.random.default_rng(0).permutation(1000)]
    ids = ids_of(names)
    assert [ids.row_of(name) for name in names] == list(range(1000)) and list(ids) == names
    assert is_order(sorted_rows(pa.array(names)), pa.chunked_array([names]))
