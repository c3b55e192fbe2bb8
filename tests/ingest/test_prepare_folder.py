"""What prepare leaves on disk: the same for any number of shards, reused, replaced; and its command."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import assert_users_mistake, call
from prepared_logs import LAST, LOG, START, histories, run, write_csv, write_spec

from ctxrec.core import schema
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.data import splits
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest import readers, shards, source
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.log_pass import task_pieces
from ctxrec.ingest.prepare_report import summary
from ctxrec.ingest.shard_files import BlobIndex, read_bucket
from ctxrec.ingest.source import inspect_source


@pytest.fixture(autouse=True)
def _cluster(ray_cluster):
    return None


def test_histories_do_not_depend_on_the_number_of_buckets(tmp_path):
    write_csv(tmp_path, [(f"u{n % 23}", f"i{n % 7}", START + n * 7 % 400) for n in range(300)])
    one = histories(run(tmp_path, LOG, ["prepare.buckets=1"]))
    data = run(tmp_path, LOG, ["prepare.buckets=5"])
    assert len(data.bucket_paths) == 5
    five = histories(data)
    assert five.keys() == one.keys()
    assert all(str(five[user]) == str(one[user]) for user in one)


def test_a_folder_that_another_command_writes_is_left_alone(tmp_path):
    write_csv(tmp_path, [(f"u{n % 9}", f"i{n % 7}", START + n) for n in range(90)])
    data = run(tmp_path, LOG)
    with only_here(data.path):
        assert run(tmp_path, LOG).fingerprint == data.fingerprint, "a folder that stays as it is may be read"
        with pytest.raises(UserError, match=r"another command writes into .* now"):
            run(tmp_path, LOG, ["prepare.buckets=3"])
    assert histories(PreparedData.open(data.path)).keys() == histories(data).keys()


def test_a_cold_hold_out_leaves_test_events_only(tmp_path):
    rows = [(f"u{n}", f"i{(n * 7 + k * k) % 40}", START + 60 * k) for n in range(30) for k in range(8)]
    write_csv(tmp_path, rows)
    whole = run(tmp_path, LOG + LAST)
    before = histories(whole)
    data = run(tmp_path, LOG + LAST, ["prepare.cold_items=0.3"])
    assert data.fingerprint != whole.fingerprint, "the option makes other data"
    ids = data.items.column(schema.ITEM_ID).to_pylist()
    held = splits.held_out_items(ids, 0.3)
    assert 0 < held.sum() < 40 and data.meta["cold_items"] == 0.3 and whole.meta["cold_items"] == 0
    dropped = 0
    for user, row in histories(data).items():
        old = before[user]
        kept = [
            n
            for n, (i, s) in enumerate(zip(old["items"], old["split"], strict=True))
            if not held[i] or s == schema.TEST
        ]
        dropped += len(old["items"]) - len(kept)
        for name in ("items", "times", "split", "hour"):
            assert row[name] == [old[name][n] for n in kept]
    counts = data.meta["counts"]
    assert (counts["held_out_items"], counts["held_out_events"]) == (held.sum(), dropped) and dropped > 0
    assert (
        counts["test"] == whole.meta["counts"]["test"] and counts["events"] == whole.meta["counts"]["events"] - dropped
    )
    train = np.array(data.items.column(schema.ITEM_TRAIN_EVENTS).to_pylist())
    assert (train[held] == 0).all() and train.sum() == counts["train"]
    assert f"cold items: {held.sum()} are held out; {dropped} of their events" in summary(data)
    assert "cold items" not in summary(whole) and "held_out_items" not in whole.meta["counts"]


def test_an_unchanged_folder_is_reused_and_a_changed_one_replaced(tmp_path, caplog):
    write_csv(tmp_path, [("a", "i", START), ("b", "j", START + 1)])
    first = run(tmp_path, LOG + LAST)
    meta = (tmp_path / "out" / schema.META).stat()
    with caplog.at_level("INFO"):
        again = run(tmp_path, LOG + LAST)
    assert "reused: nothing changed" in caplog.text
    assert (tmp_path / "out" / schema.META).stat().st_mtime_ns == meta.st_mtime_ns
    assert again.fingerprint == first.fingerprint
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("events.csv", "dataset.toml"):
        shutil.copy(tmp_path / name, moved / name)
    assert run(moved, LOG + LAST).fingerprint == first.fingerprint
    write_csv(tmp_path, [("a", "i", START), ("b", "k", START + 1)])
    changed = run(tmp_path, LOG + LAST)
    assert changed.fingerprint != first.fingerprint
    assert changed.items.column(schema.ITEM_ID).to_pylist() == ["i", "k"]
    assert run(tmp_path, LOG + LAST, ["prepare.min_events=2"]).fingerprint != changed.fingerprint


def test_the_place_of_a_log_in_several_folders_does_not_count(tmp_path):
    found = []
    for place in ("here", "elsewhere/longer"):
        for day in ("1", "2"):
            (tmp_path / place / f"day={day}").mkdir(parents=True)
            (tmp_path / place / f"day={day}" / "log.csv").write_text(day)
        paths = [str(path) for path in sorted((tmp_path / place).rglob("*.csv"))]
        found.append(source._signatures(paths))
    assert found[0] == found[1] and [name for name, *_ in found[0]] == ["day=1/log.csv", "day=2/log.csv"]


def test_other_files_in_the_output_folder_are_left_alone(tmp_path):
    write_csv(tmp_path, [("a", "i", START)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    run(tmp_path, LOG + LAST)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_large_log_is_many_shards(tmp_path, monkeypatch):
    """Shards cut inside a file, blobs read back per bucket: the result equals numpy's on the whole log."""
    rng = np.random.default_rng(0)
    n = 5000
    log = {
        "user_id": rng.integers(0, 90, n),
        "item_id": rng.integers(0, 40, n),
        "timestamp": START + rng.integers(0, 999, n),
    }
    files = tmp_path / "log"
    files.mkdir()
    pq.write_table(pa.table({k: v[:3000] for k, v in log.items()}), files / "a.parquet", row_group_size=500)
    pq.write_table(pa.table({k: v[3000:] for k, v in log.items()}), files / "b.parquet")
    spec = load_spec(write_spec(tmp_path, '[events]\npath = "log"\n' + LAST))
    monkeypatch.setattr(shards, "SHARD_ROWS", 700)
    monkeypatch.setattr(readers, "_BATCH_ROWS", 250)
    info = inspect_source(spec).events
    job = shards.ShardJob(
        spec=spec,
        unit="s",
        buckets=3,
        max_id_bytes=99,
        now_us=2**62,
        shards=str(tmp_path / "s"),
        rejects=str(tmp_path / "r"),
    )
    (tmp_path / "s").mkdir()
    facts = LogFacts()
    for task, pieces in enumerate(task_pieces(readers.make_pieces(info, rows=1000))):
        for part in shards.make_shards(pieces, task, job, pa.array([], pa.string())):
            facts.merge(part)
    assert facts.rows_read == facts.rows_kept == n and len(facts.shards) > 4
    assert facts.new_items.array.to_pylist() == [str(i) for i in dict.fromkeys(log["item_id"].tolist())]
    rows = []
    for bucket in range(3):
        places = BlobIndex.of(facts.shards, buckets=3).places(bucket)
        table = read_bucket(places, spec.events)
        assert len(set(np.unique(table["file"].to_numpy()))) <= 2
        rows += list(zip(*(table[c].to_pylist() for c in ("file", "row", "user", "item", "time")), strict=True))
    expected = [
        (int(k >= 3000), k - 3000 * (k >= 3000) + 1, str(log["user_id"][k]), str(log["item_id"][k]), int(log["timestamp"][k]) * 10**6)
        for k in range(n)
    ]  # fmt: skip
    assert sorted(rows) == expected


def test_the_command_prints_a_summary_and_one_line_for_a_mistake(tmp_path):
    write_csv(tmp_path, [("a", "i", START), ("b", "", START)])
    spec = write_spec(tmp_path, LOG + LAST)
    done = call("ctxrec.prepare", spec, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "2 rows read, 1 events kept" in done.stdout and "rejected 1: missing item id" in done.stdout
    wrong = call("ctxrec.prepare", spec, "--out", str(tmp_path / "out"), "--set", "prepare.bucket=3")
    assert_users_mistake(wrong, "valid keys are buckets")
