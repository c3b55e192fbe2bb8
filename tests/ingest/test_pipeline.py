"""What becomes of the rows of a log and of its tables."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_logs import LAST, LOG, START, histories, items_of, only_temporary_gone, rejected, run, write_csv

from ctxrec.core import schema
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest import log_pass
from ctxrec.ingest.prepare_report import summary


@pytest.fixture(autouse=True)
def _cluster(ray_cluster):
    return None


def test_the_tiny_shop(tiny_data):
    data = PreparedData.open(tiny_data)
    counts = data.meta["counts"]
    assert counts["events"] == counts["events_read"] == counts["train"] + counts["valid"] + counts["test"]
    assert (counts["users"], counts["items"], counts["valid"], counts["test"]) == (60, 40, 60, 60)
    assert data.features.actions == ["buy", "view"]
    assert set(data.features.context_categories["device"]) == {"tv", "phone"}
    assert data.features.item_categories["category"][0] == "all"
    assert data.items.column("cat_category").to_pylist()[:2] == [["group0", "all"], ["group1", "all"]]
    assert data.items.column("num_price").to_pylist()[:2] == [None, 1.0]
    rows = histories(data)
    train = np.zeros(40, int)
    for row in rows.values():
        assert row["times"] == sorted(row["times"])
        lengths = {len(v) for v in row.values() if isinstance(v, list)}
        assert len(lengths) == 1
        np.add.at(train, [i for i, s in zip(row["items"], row["split"], strict=True) if s == schema.TRAIN], 1)
    assert data.items.column(schema.ITEM_TRAIN_EVENTS).to_pylist() == train.tolist()
    prices = np.log1p([n for n in range(40) if n % 5])
    assert data.features.item_numbers["price"]["mean"] == pytest.approx(prices.mean())
    assert data.features.item_numbers["price"]["std"] == pytest.approx(prices.std())
    assert only_temporary_gone(Path(tiny_data).parent)
    text = summary(data)
    assert "600" in text.replace(",", "") or str(counts["events"]) in text.replace(",", "")


def test_rejected_rows_are_counted_and_kept(tmp_path):
    long_id = "x" * 10_240
    rows = [
        ("a", "i", START), ("", "i", START), ("a", "", START), (long_id, "i", START), ("a", long_id, START),
        ("a", "i", "soon"), ("a", "i", ""), ("a", "i", -5), ("a", "i", 10**10), ("a", "i", START), ("b", "j", START + 1),
    ]  # fmt: skip
    write_csv(tmp_path, rows)
    with open(tmp_path / "events.csv", "a") as log:
        log.write("only one field\n")
    data = run(tmp_path, LOG + LAST)
    assert data.meta["counts"]["rejects"] == {
        "duplicate event": 1, "item id too long": 1, "malformed row": 1, "missing item id": 1, "missing time": 1,
        "missing user id": 1, "time before 1970 or after 2199": 2, "unparsable time": 1, "user id too long": 1,
    }  # fmt: skip
    assert data.meta["counts"]["events_read"] == 12 and data.meta["counts"]["events"] == 2
    kept = rejected(tmp_path).sort_by("source_row").to_pylist()
    assert len(kept) == 10
    assert [row["source_row"] for row in kept] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    assert all(row["source_file"].endswith("events.csv") for row in kept)
    assert kept[2]["user_id"] == long_id and kept[4]["timestamp"] == "soon"
    assert kept[8] == kept[8] | {"reason": "duplicate event", "user_id": "a", "item_id": "i", "timestamp": str(START)}
    assert kept[9]["source_text"] == "only one field"
    text = summary(data)
    assert "12 rows read" in text and "rejected 2: time before 1970 or after 2199" in text and "rejects" in text


def test_all_rows_rejected_says_so_and_keeps_them(tmp_path):
    write_csv(tmp_path, [("", "i", START), ("a", "i", "never")])
    with pytest.raises(UserError, match=r"no event is left of the 2 rows read .*1 missing user id, 1 unparsable time"):
        run(tmp_path, LOG)
    assert len(rejected(tmp_path)) == 2
    assert only_temporary_gone(tmp_path)
    with pytest.raises(UserError, match="no prepared data"):
        PreparedData.open(str(tmp_path / "out"))


@pytest.mark.parametrize("text", ["user_id,item_id,timestamp\n", ""])
def test_an_empty_log_is_a_clear_mistake(tmp_path, text):
    (tmp_path / "events.csv").write_text(text)
    with pytest.raises(UserError, match="no event is left of the 0 rows read"):
        run(tmp_path, LOG)


def test_wrong_columns_are_found_before_anything_is_written(tmp_path):
    write_csv(tmp_path, [("a", "i", 1)])
    with pytest.raises(
        UserError, match=r"\[events\] names column 'when', which is missing in .*found columns user_id, "
    ):
        run(tmp_path, LOG + 'time = "when"\n')
    pq.write_table(pa.table({"item_id": ["i"]}), tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"\[items\] names column 'title'"):
        run(tmp_path, LOG + '[items]\npath = "items.parquet"\ntext = ["title"]\n')
    pq.write_table(pa.table({"user_id": [["a"]], "item_id": ["i"], "timestamp": [1]}), tmp_path / "lists.parquet")
    with pytest.raises(UserError, match=r"'user_id' of .* is list.*expected one value a row"):
        run(tmp_path, '[events]\npath = "lists.parquet"\n')
    assert not (tmp_path / "out").exists()


def test_a_mistake_found_while_reading_reaches_the_user_without_traceback(tmp_path):
    (tmp_path / "events.csv").write_bytes("user_id,item_id,timestamp\né,i,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="Expected a whole file of UTF-8 csv"):
        run(tmp_path, LOG)


def test_one_user_only(tmp_path):
    write_csv(tmp_path, [("a", f"i{n}", START + n) for n in range(10)])
    last = run(tmp_path, LOG + LAST)
    assert [last.meta["counts"][k] for k in ("users", "train", "valid", "test")] == [1, 8, 1, 1]
    temporal = run(tmp_path, LOG)
    assert [temporal.meta["counts"][k] for k in ("train", "valid", "test")] == [8, 1, 1]
    assert histories(temporal)["a"]["split"] == [0] * 8 + [1, 2]


def test_two_events_are_a_log_too(tmp_path):
    write_csv(tmp_path, [("a", "i", START), ("b", "j", START + 1)])
    for split in ("", LAST):
        data = run(tmp_path, LOG + split)
        assert [data.meta["counts"][k] for k in ("train", "valid", "test")] == [2, 0, 0]
        assert "the test split is empty: the log is too short for it" in data.meta["notes"]


def test_temporal_cuts_are_exact_and_ties_go_to_the_later_part(tmp_path):
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(START, START + 40_000, 1000))  # eleven hours, some ties
    order = rng.permutation(1000)
    write_csv(tmp_path, [(f"u{n % 37}", f"i{n}", times[n]) for n in order])
    data = run(tmp_path, LOG + "[split]\nvalid = 0.15\ntest = 0.2\n")
    split = data.meta["split"]
    assert split == {
        "strategy": "temporal",
        "valid_from_us": int(times[650]) * 10**6,
        "test_from_us": int(times[800]) * 10**6,
    }
    test, valid = int((times >= times[800]).sum()), int(((times >= times[650]) & (times < times[800])).sum())
    assert (data.meta["counts"]["test"], data.meta["counts"]["valid"]) == (test, valid)
    for row in histories(data).values():
        for time, part in zip(row["times"], row["split"], strict=True):
            expected = 2 if time >= split["test_from_us"] else 1 if time >= split["valid_from_us"] else 0
            assert part == expected


def test_shares_of_a_temporal_split_are_of_the_events_that_stay(tmp_path, monkeypatch):
    """A log whose last part was exported twice, in files of many tasks, with actions that tell events apart."""
    monkeypatch.setattr(log_pass, "TASK_ROWS", 40)
    rows = [(f"u{n % 7}", f"i{n % 11}", START + 977 * n, "vb"[n % 2]) for n in range(200)]
    folder = tmp_path / "log"
    folder.mkdir()
    write_csv(folder, rows, header="user_id,item_id,timestamp,act", name="a.csv")
    other = [(*row[:3], "c") for row in rows[:20]]  # another action: no duplicates
    write_csv(folder, rows[100:] + other + rows[150:], header="user_id,item_id,timestamp,act", name="b.csv")
    data = run(tmp_path, '[events]\npath = "log"\naction = "act"\n[split]\nvalid = 0.1\ntest = 0.2\n')
    counts = data.meta["counts"]
    assert counts["events"] == 220 and counts["rejects"] == {"duplicate event": 150}
    assert (counts["train"], counts["valid"], counts["test"]) == (154, 22, 44)
    assert data.meta["split"]["test_from_us"] == (START + 977 * (200 - 44)) * 10**6


def test_a_log_of_one_moment_has_no_temporal_split(tmp_path):
    write_csv(tmp_path, [("a", f"i{n}", START) for n in range(20)])
    with pytest.raises(UserError, match=r'leaves no event to train on.*strategy = "last"'):
        run(tmp_path, LOG)
    assert run(tmp_path, LOG + "[split]\nvalid = 0\ntest = 0\n").meta["counts"]["train"] == 20


def test_order_is_time_then_the_files_own_order(tmp_path, monkeypatch):
    monkeypatch.setattr(log_pass, "TASK_ROWS", 2)  # many tasks, so that their order counts
    folder = tmp_path / "log"
    folder.mkdir()
    write_csv(folder, [("a", "late", START + 9), ("a", "x1", START), ("a", "x2", START)], name="b.csv")
    write_csv(folder, [("a", "x0", START), ("b", "y", START)], name="a.csv")
    write_csv(folder, [("a", "x3", START), ("a", "early", START - 9)], name="c.csv")
    data = run(tmp_path, '[events]\npath = "log/*.csv"\n' + LAST)
    assert items_of(data, "a") == ["early", "x0", "x1", "x2", "x3", "late"]
    assert data.items.column(schema.ITEM_ID).to_pylist() == ["x0", "y", "late", "x1", "x2", "x3", "early"]


def test_all_formats_and_id_types_give_the_same_histories(tmp_path):
    users, items, times = [7, 7, 12, 7], [101, 102, 101, 103], [START + 3, START + 1, START + 2, START + 1]
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
    stamps = pa.array([t * 10**9 for t in times], pa.timestamp("ns", tz="UTC"))
    texts = [datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat() for t in times]
    variants = {
        "int.parquet": table,
        "large.parquet": table.set_column(0, "user_id", table["user_id"].cast(pa.large_string())),
        "dict.parquet": table.set_column(1, "item_id", table["item_id"].cast(pa.string()).dictionary_encode()),
        "float.parquet": table.set_column(0, "user_id", table["user_id"].cast(pa.float64())),
        "stamp.parquet": table.set_column(2, "timestamp", stamps),
        "ms.parquet": table.set_column(2, "timestamp", pa.array([t * 1000 for t in times])),
        "text.parquet": table.set_column(2, "timestamp", pa.array(texts)),
    }
    for name, variant in variants.items():
        pq.write_table(variant, tmp_path / name)
    write_csv(tmp_path, list(zip(users, items, texts, strict=True)), name="iso.csv")
    (tmp_path / "t.tsv").write_text(
        "item_id\tuser_id\ttimestamp\n"
        + "".join(f"{i}\t{u}\t{t}\n" for u, i, t in zip(users, items, times, strict=True))
    )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    expected = None
    for name in [*variants, "iso.csv", "t.tsv", "t.jsonl"]:
        data = run(tmp_path, f'[events]\npath = "{name}"\n' + LAST)
        found = {u: (items_of(data, u), row["times"], row["split"]) for u, row in histories(data).items()}
        expected = expected or found
        assert found == expected, name
        wanted = {"ms.parquet": "ms", "stamp.parquet": "timestamp", "text.parquet": "iso8601", "iso.csv": "iso8601"}
        assert data.meta["time_unit"] == wanted.get(name, "s")
    assert expected["7"][0] == ["102", "103", "101"] and expected["12"][0] == ["101"]


def test_future_times_nan_numbers_unicode_and_unlisted_actions_are_kept_and_noted(tmp_path):
    soon = 4_102_444_800  # 2100
    rows = [
        ("🎉", "日本", START, "like", "nan", "x"),
        ("🎉", "i", soon, "skip", "inf", ""),
        ("ü", "i", START, "", 1, "y"),
    ]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,action,basket,place")
    text = LOG + 'action = "action"\n[events.context]\nnumeric = ["basket"]\ncategorical = ["place"]\n'
    data = run(tmp_path, text + "[events.actions]\nlike = 1.0\nshare = 2.0\n" + LAST)
    assert "1 event lies in the future; it is kept" in data.meta["notes"]
    assert (
        "basket: 2 values of the log are no finite number, such as 'nan'; they count as missing" in data.meta["notes"]
    )
    assert any("no training targets: skip" in note for note in data.meta["notes"])
    assert "actions with a weight that no event has: share" in data.meta["notes"]
    rows = histories(data)
    assert items_of(data, "🎉") == ["日本", "i"]
    assert np.isnan(rows["🎉"]["ctx_basket"]).all() and rows["ü"]["ctx_basket"] == [1.0]
    assert data.features.actions == ["like", "skip"] and rows["🎉"]["actions"] == [1, 2] and rows["ü"]["actions"] == [0]
    assert rows["🎉"]["ctx_place"] == [2, 0]
    assert data.features.context_numbers["basket"] == {"mean": pytest.approx(np.log(2)), "std": 1.0}
    json.dumps(data.meta, allow_nan=False)


def test_weights_of_actions_that_the_log_does_not_have_are_a_mistake(tmp_path):
    rows = [("a", f"i{n}", START + n, "buy" if n > 8 else "view") for n in range(10)]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,action")
    text = LOG + 'action = "action"\n[events.actions]\n'
    with pytest.raises(
        UserError, match=r"no event is a training target: .*weight to Buy, .*of the log has buy, view\."
    ):
        run(tmp_path, text + "Buy = 1.0\nview = -1.0\n")
    with pytest.raises(UserError, match=r"weight to no action, "):
        run(tmp_path, text + "view = 0\n")
    with pytest.raises(UserError, match=r"none of the 8 events of the training split is a training target"):
        run(tmp_path, text + "buy = 1.0\n")
    data = run(tmp_path, text + "buy = 1.0\n[split]\nvalid = 0\ntest = 0\n")
    assert (data.meta["counts"]["train"], data.meta["counts"]["train_targets"]) == (10, 1)


def test_categories_of_a_log_have_one_form(tmp_path):
    rows = [
        ("a", "i", START, "True", "1.0"),
        ("a", "j", START + 1, "true", "1"),
        ("b", "i", START + 2, "FALSE", "2.50"),
    ]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,member,zone")
    data = run(tmp_path, LOG + '[events.context]\ncategorical = ["member", "zone"]\n' + LAST)
    assert data.features.context_categories == {"member": ["true", "false"], "zone": ["1", "2.5"]}
    assert histories(data)["a"]["ctx_member"] == histories(data)["a"]["ctx_zone"] == [2, 2]
    assert "from 2020-09-13T12:26:40 to 2020-09-13T12:26:42 (UTC)" in summary(data)


def test_a_column_may_be_a_value_and_a_context(tmp_path):
    write_csv(tmp_path, [("a", "i", START, 3), ("b", "j", START + 1, "x")], header="user_id,item_id,timestamp,stars")
    data = run(tmp_path, LOG + 'value = "stars"\n[events.context]\nnumeric = ["stars"]\n' + LAST)
    assert data.features.context_numbers["stars"] == {"mean": pytest.approx(np.log1p(3)), "std": 1.0}
    assert "stars: 1 values of the log are no finite number, such as 'x'; they count as missing" in data.meta["notes"]
    assert histories(data)["a"]["values"] == histories(data)["a"]["ctx_stars"] == [3.0]


def test_actions_make_events_of_one_moment_different(tmp_path):
    rows = [("a", "i", START, "view"), ("a", "i", START, "buy"), ("a", "i", START, "view")]
    write_csv(tmp_path, rows, header="user_id,item_id,timestamp,action")
    with_action = run(tmp_path, LOG + 'action = "action"\n' + LAST)
    assert with_action.meta["counts"]["events"] == 2
    assert run(tmp_path, LOG + LAST).meta["counts"]["events"] == 1


def test_items_and_users_tables(tmp_path):
    write_csv(tmp_path, [("a", "i9", START), ("z", "i2", START + 1), ("a", "i8", START + 2)])
    items = pa.table(
        {
            "item_id": ["i1", "i2", None, "i2", "x" * 2000, "i3"],
            "title": ["  A \n title ", "🎉", "no id", "again", "long", None],
            "about": ["long  text", None, "", "", "", None],
            "tags": [["b", None, "a"], [], ["q"], ["q"], ["q"], None],
            "size": [3, 4, 5, 5, 5, None],
            "price": [float("nan"), 2.0, 1.0, 1.0, 1.0, float("inf")],
            "photo": [b"\x00\x01", None, None, None, None, b"\x02"],
        }
    )
    pq.write_table(items, tmp_path / "items.parquet")
    users = [("a", "F", 20), ("b", "M", "?"), ("a", "M", 30), ("", "M", 1), ("c", "", "")]
    write_csv(tmp_path, users, header="uid,gender,age", name="users.csv")
    data = run(
        tmp_path,
        LOG
        + '[items]\npath = "items.parquet"\ntext = ["title", "about"]\ncategorical = ["tags", "size"]\n'
        + 'numeric = ["price"]\nimage = "photo"\n'
        + '[users]\npath = "users.csv"\nid = "uid"\ncategorical = ["gender"]\nnumeric = ["age"]\n'
        + LAST,
    )
    table = data.items.to_pydict()
    assert table[schema.ITEM_ID] == ["i1", "i2", "i3", "i9", "i8"]
    assert table[schema.ITEM_TITLE] == ["A title", "🎉", "", "", ""]
    assert table[schema.ITEM_TEXT] == ["A title. long text", "🎉", "", "", ""]
    assert table["cat_tags"] == [["b", "a"], [], [], [], []]
    assert table["cat_size"] == [["3"], ["4"], [], [], []]
    assert table["num_price"] == [None, 2.0, None, None, None]
    assert data.features.item_categories == {"tags": ["a", "b"], "size": ["3", "4"]}
    counts = data.meta["counts"]
    assert counts["items_only_in_log"] == 2 and counts["users"] == 4
    assert counts["rejects"] == {
        "item table: duplicate id": 1, "item table: id too long": 1, "item table: missing id": 1,
        "user table: duplicate id": 1, "user table: missing id": 1,
    }  # fmt: skip
    assert rejected(tmp_path).num_rows == 5
    rows = histories(data)
    assert rows["b"]["items"] == [] and rows["b"]["user_gender"] == 3 and rows["b"]["user_age"] is None
    assert rows["a"]["user_gender"] == 2 and rows["a"]["user_age"] == 20
    assert rows["z"]["user_gender"] == rows["c"]["user_gender"] == schema.MISSING
    notes = "\n".join(data.meta["notes"])
    assert "image column 'photo': 2 items have one" in notes
    assert "2 items of the log are in no item table" in notes and "1 users of the log are in no user table" in notes
    assert "price: 2 values" in notes and "age: 1 values" in notes


def test_triples_are_a_category_of_items(tmp_path):
    write_csv(tmp_path, [("a", "i", START), ("a", "j", START + 1), ("b", "k", START + 2)])
    (tmp_path / "kg.tsv").write_text("head\trelation\ttail\ni\tis\tx\ni\t\tx\nk\tis\tx\nj\tis\ty\nz\tis\ty\n")
    data = run(tmp_path, LOG + '[graph]\npath = "kg.tsv"\n' + LAST)
    note = "graph: 4 triples; 2 items share a relation and tail with another item"
    assert note in data.meta["notes"]
    assert data.meta["counts"]["rejects"] == {"graph: incomplete triple": 1}
    assert data.features.item_categories == {schema.GRAPH: ["is: x"]}
    assert data.items.column(schema.category_column(schema.GRAPH)).to_pylist() == [["is: x"], [], ["is: x"]]


def test_vocabularies_are_by_frequency_and_capped(tmp_path, monkeypatch):
    write_csv(
        tmp_path, [("a", f"i{n}", START + n, "bbaac"[n]) for n in range(5)], header="user_id,item_id,timestamp,place"
    )
    text = LOG + '[events.context]\ncategorical = ["place"]\n' + LAST
    assert run(tmp_path, text).features.context_categories["place"] == ["a", "b", "c"]
    monkeypatch.setattr("ctxrec.ingest.vocabularies.MAX_CATEGORY_VALUES", 1)
    capped = run(tmp_path, text)
    assert capped.features.context_categories["place"] == ["a"]
    assert histories(capped)["a"]["ctx_place"] == [schema.OTHER, schema.OTHER, 2, 2, schema.OTHER]
