import numpy as np
import pyarrow as pa
import pytest

from ctxrec.core import schema
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.schema import TEST, TRAIN, VALID
from ctxrec.data import splits
from ctxrec.data.prepared import FeatureMeta
from ctxrec.ingest import histories, shard_files

US = 1_000_000
SPEC = DatasetSpec.from_dict(
    {
        "name": "hand",
        "events": {
            "path": "x.csv",
            "action": "action",
            "value": "value",
            "context": {"categorical": ["device"], "numeric": ["basket"], "text": ["query"]},
        },
        "users": {"path": "u.csv", "categorical": ["gender"], "numeric": ["age"]},
        "split": {"strategy": "last"},
    }
)
FEATURES = FeatureMeta(
    item_categories={},
    item_numbers={},
    user_categories={"gender": ["F", "M"]},
    user_numbers={"age": {"mean": 0.0, "std": 1.0}},
    context_categories={"device": ["tv", "phone"]},
    context_numbers={"basket": {"mean": 0.0, "std": 1.0}},
    context_texts=["query"],
    actions=["buy", "view"],
)
# user, item, second, action, value, device, basket, query: two equal rows, one tie of time, times out of order
ROWS = [
    ("b", "i2", 3600, "view", 1.0, "tv", 0.5, "red"),
    ("a", "i1", 50, "buy", 2.0, None, 1.5, None),
    ("b", "i1", 3600, "view", 3.0, "radio", None, "🎉"),
    ("a", "i3", 10, None, None, "phone", 2.5, "hat"),
    ("b", "i2", 3600, "view", 9.0, "tv", 0.5, "again"),
    ("b", "i2", 3600, "buy", 4.0, "phone", 0.5, "other action"),
    ("b", "i3", 0, "view", 5.0, "tv", 0.5, ""),
    ("a", "i1", 60, "buy", 6.0, "tv", 0.5, ""),
]


def job(spec=SPEC, features=FEATURES):
    return histories.BucketJob(spec=spec, features=features, cuts=splits.Cuts(), min_events=3)


def table_of(rows):
    user, item, time, action, value, device, basket, query = zip(*rows, strict=True)
    return pa.table(
        {
            shard_files.USER: pa.array(user, pa.string()).dictionary_encode(),
            shard_files.ITEM: pa.array(item, pa.string()).dictionary_encode(),
            shard_files.TIME: pa.array([t * US for t in time], pa.int64()),
            shard_files.FILE: pa.array([0] * len(rows), pa.int32()),
            shard_files.ROW: pa.array(range(1, len(rows) + 1), pa.int64()),
            shard_files.ACTION: pa.array(action, pa.string()).dictionary_encode(),
            shard_files.VALUE: pa.array(np.array(value, np.float32)),
            "ctx_device": pa.array(device, pa.string()).dictionary_encode(),
            "ctx_basket": pa.array(np.array(basket, np.float32)),
            "ctx_query": pa.array(query, pa.string()),
        }
    )


USERS = pa.table(
    {
        schema.USER_ID: ["c", "b"],
        "user_gender": pa.array([2, 3], pa.int32()),
        "user_age": pa.array([None, 30.0], pa.float32()),
    }
)
CATALOGUE = pa.array(["i1", "i2", "i3"])


def build(rows=ROWS):
    table = table_of(rows)
    bucket = histories.sort_bucket(table, CATALOGUE, USERS.column(0).combine_chunks(), job())
    return bucket, pa.concat_tables(histories.bucket_tables(bucket, table, USERS, job()))


def test_histories_of_a_bucket_worked_by_hand():
    bucket, table = build()
    assert table.schema.equals(schema.histories_schema(SPEC))
    assert bucket.duplicates.tolist() == [4]
    a, b, c = table.to_pylist()
    assert [row[schema.USER_ID] for row in (a, b, c)] == ["a", "b", "c"]
    assert a["items"] == [2, 0, 0] and a["times"] == [10 * US, 50 * US, 60 * US]
    assert b["items"] == [2, 1, 0, 1]  # the tie at 3600 s keeps the order of the log
    assert a["split"] == [TRAIN, VALID, TEST] and b["split"] == [TRAIN, TRAIN, VALID, TEST]
    assert a["actions"] == [0, 1, 1] and b["actions"] == [2, 2, 2, 1]
    assert np.isnan(a["values"][0]) and a["values"][1:] == [2, 6] and b["values"] == [5, 1, 3, 4]
    assert np.isnan(a["gap_s"][0]) and a["gap_s"][1:] == [40, 10]
    assert np.isnan(b["gap_s"][0]) and b["gap_s"][1:] == [3600, 0, 0]
    assert b["hour"] == [0, 1, 1, 1] and b["weekday"] == [3] * 4 and b["month"] == [1] * 4
    assert a["ctx_device"] == [3, schema.MISSING, 2] and b["ctx_device"] == [2, 2, schema.OTHER, 3]
    assert a["ctx_basket"] == [2.5, 1.5, 0.5] and np.isnan(b["ctx_basket"][2])
    assert a["ctx_query"] == ["hat", None, ""] and b["ctx_query"] == ["", "red", "🎉", "other action"]
    assert (a["user_gender"], b["user_gender"], c["user_gender"]) == (schema.MISSING, 3, 2)
    assert (a["user_age"], b["user_age"], c["user_age"]) == (None, 30.0, None)
    assert c["items"] == [] and c["ctx_query"] == []


def test_held_out_items_keep_their_test_events_alone():
    """Item i1 is held out: a loses the one at 50 s and keeps the test event at 60 s, b loses its validation event."""
    table = table_of(ROWS)
    held_out = np.array([True, False, False])
    bucket = histories.sort_bucket(table, CATALOGUE, USERS.column(0).combine_chunks(), job(), held_out)
    made = pa.concat_tables(histories.bucket_tables(bucket, table, USERS, job()))
    a, b, c = made.to_pylist()
    assert bucket.held_out == 2 and bucket.duplicates.tolist() == [4]
    assert a["items"] == [2, 0] and a["split"] == [TRAIN, TEST] and a["times"] == [10 * US, 60 * US]
    assert b["items"] == [2, 1, 1] and b["split"] == [TRAIN, TRAIN, TEST]
    assert a["gap_s"][1:] == [50], "the gap is to the event that is left"
    assert a["ctx_query"] == ["hat", ""] and b["ctx_query"] == ["", "red", "other action"]
    assert b["actions"] == [2, 2, 1] and c["items"] == []


def test_slices_of_a_bucket_join_to_the_same_table(monkeypatch):
    _, whole = build()
    monkeypatch.setattr(histories, "ROWS_PER_GROUP", 1)
    _, parts = build()
    assert str(parts.to_pylist()) == str(whole.to_pylist())
    monkeypatch.setattr(histories, "ROWS_PER_GROUP", 100)
    monkeypatch.setattr(histories, "EVENTS_PER_GROUP", 4)  # less than two users' events
    _, parts = build()
    assert str(parts.to_pylist()) == str(whole.to_pylist())


def test_a_bucket_without_events_still_has_its_users():
    table = pa.table({name: pa.array([], kind) for name, kind in shard_files.shard_columns(SPEC.events).items()})
    bucket = histories.sort_bucket(table, CATALOGUE, USERS.column(0).combine_chunks(), job())
    made = pa.concat_tables(histories.bucket_tables(bucket, table, USERS, job()))
    assert made.column(schema.USER_ID).to_pylist() == ["b", "c"]
    assert made.column("items").to_pylist() == [[], []]


@pytest.mark.parametrize("unit", [1, 1000, US, 10**12])
def test_order_is_stable_for_any_resolution(unit):
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 50, 2000)
    times = rng.integers(0, 20, 2000) * unit + 5 * unit
    expected = np.lexsort((np.arange(2000), times, owner))
    assert np.array_equal(histories.stable_order(owner, times), expected)
    wide = times + rng.integers(0, 2, 2000) * (2**60)  # too wide for one key
    assert np.array_equal(histories.stable_order(owner, wide), np.lexsort((np.arange(2000), wide, owner)))


@pytest.mark.parametrize("with_action", [True, False])
def test_duplicates_match_a_plain_loop(with_action):
    rng = np.random.default_rng(1)
    owner, times = rng.integers(0, 5, 500), rng.integers(0, 8, 500)
    order = histories.stable_order(owner, times)
    owner, times = owner[order], times[order]
    items = rng.integers(0, 3, 500)
    actions = rng.integers(-1, 2, 500) if with_action else None
    seen, expected = set(), []
    for n in range(500):
        key = (owner[n], times[n], items[n], None if actions is None else actions[n])
        expected.append(key in seen)
        seen.add(key)
    assert histories.duplicated(owner, times, items, actions).tolist() == expected
    none = np.zeros(0, np.int64)
    assert histories.duplicated(none, none, none, None).tolist() == []
