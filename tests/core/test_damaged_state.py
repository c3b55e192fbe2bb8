"""Files that one command writes and another reads: emptied, cut in half, one byte wrong, or of other values.

Each outcome is the same as before or one line of ours; nothing else is raised.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bucket_files import write_shop

from ctxrec.core import schema, storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import read_run_manifest
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.state_store import RowStore
from ctxrec.training import checkpoint
from ctxrec.training.trackers import read_train_log
from tune.budget import open_account, read_account
from tune.sweep_results import read_record

WRONG: tuple[Any, ...] = (None, 3, "x", [], ["x"], {}, {"x": 1})
ROW = {"trial_id": "a", "status": "ERROR", "values": {}, "result": {}, "failures": 0, "error": ""}
RUN = {"format_version": 1, "data_path": "d", "data_fingerprint": "f", "model_version": "v", "train_seconds": 1.5}


def damages(whole: bytes) -> list[bytes]:
    chance = random.Random(3)
    made = [b"", whole[: len(whole) // 2], b"\xff\xfe" * 20, b"null", b"3", b"[]", b"{}", b"[" * 100_000, b"9" * 5000]
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        made.append(bytes(flipped))
    return made


def one_line_or_read(read: Callable[[], Any]) -> bool:
    """Whether it was refused, in one line."""
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return True
    return False


def run_manifest(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "manifest.json").write_text(json.dumps(RUN))
    return folder / "manifest.json", lambda: read_run_manifest(str(folder))


def account(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = str(folder / "account.json")
    open_account(path, max_hours=1, max_gpu_hours=0)
    return Path(path), lambda: (read_account(path), open_account(path, max_hours=2, max_gpu_hours=0))


def record(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "record.json").write_text(json.dumps([ROW]))
    return folder / "record.json", lambda: read_record(str(folder / "record.json"))


def train_log(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "train_log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')

    def read() -> None:
        assert all(isinstance(line, dict) for line in read_train_log(str(folder)))

    return folder / "train_log.jsonl", read


@pytest.mark.parametrize("kind", [run_manifest, account, record, train_log])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind):
    path, read = kind(tmp_path)
    whole = path.read_bytes()
    assert not one_line_or_read(read)
    refused = 0
    for content in damages(whole):
        path.write_bytes(content)
        refused += one_line_or_read(read)
    assert refused >= 4


@pytest.mark.parametrize("kind", [run_manifest, account, record])
def test_a_value_of_another_type_is_read_or_refused_in_one_line(tmp_path, kind):
    path, read = kind(tmp_path)
    whole = json.loads(path.read_text())
    for key in whole if isinstance(whole, dict) else whole[0]:
        refused = 0
        for wrong in WRONG:
            path.write_text(json.dumps(whole | {key: wrong} if isinstance(whole, dict) else [whole[0] | {key: wrong}]))
            refused += one_line_or_read(read)
        assert refused >= 3 or key in ("format_version", "train_seconds", "failures", "error")


def test_a_damaged_meta_json_or_table_of_prepared_data(tmp_path, make_world):
    write_shop(tmp_path, make_world)
    meta = json.loads((tmp_path / schema.META).read_text())

    def read() -> None:
        data = PreparedData.open(str(tmp_path))
        assert isinstance(data.num_items, int) and data.spec.name and data.features.actions is not None
        for bucket in range(len(data.bucket_paths)):
            data.read_bucket(bucket)

    assert not one_line_or_read(read)
    for key in meta:
        for wrong in WRONG:
            (tmp_path / schema.META).write_text(json.dumps(meta | {key: wrong}))
            assert one_line_or_read(read), (key, wrong)
    for content in damages(json.dumps(meta).encode()):
        (tmp_path / schema.META).write_bytes(content)
        one_line_or_read(read)
    (tmp_path / schema.META).write_text(json.dumps(meta))
    for path in PreparedData.open(str(tmp_path)).bucket_paths[:1]:
        whole = Path(path).read_bytes()
        for content in damages(whole)[:9]:
            Path(path).write_bytes(content)
            with pytest.raises(UserError, match=r"bucket-00000\.parquet is missing or damaged.*prepare again"):
                read()


def test_a_damaged_checkpoint_is_known_as_damaged(tmp_path):
    weights, moments = {"w": torch.ones(3)}, {"w/exp_avg": torch.ones(3)}
    state = {"progress": {"phase": "towers", "step": 12}, "optimizer_step": 12, "by": {2: 1, 10: 2}}
    checkpoint.save(str(tmp_path), weights, moments, state)
    assert checkpoint.damage(str(tmp_path)) is None
    for name in (checkpoint.STATE, checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        whole = (tmp_path / name).read_bytes()
        for content in damages(whole):
            (tmp_path / name).write_bytes(content)
            same = name == checkpoint.STATE and _same_json(content, whole)
            assert (checkpoint.damage(str(tmp_path)) is None) == same, content
        (tmp_path / name).write_bytes(whole)
    state = json.loads((tmp_path / checkpoint.STATE).read_text())
    del state["sha256"]  # as an earlier version wrote it
    (tmp_path / checkpoint.STATE).write_text(json.dumps(state))
    assert checkpoint.damage(str(tmp_path)) is None
    for wrong in WRONG:
        (tmp_path / checkpoint.STATE).write_text(json.dumps(state | {"files": wrong}))
        assert checkpoint.damage(str(tmp_path)) is not None


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except (ValueError, RecursionError):
        return False


@pytest.mark.parametrize("ending", [".keys.npy", ".rows.npy"])
def test_a_damaged_shard_of_the_encoder_cache_is_left_out(tmp_path, caplog, ending):
    blocks = {bytes([n] * 16): np.full((n + 1, 4), n, np.float32) for n in range(5)}
    RowStore(str(tmp_path), 4).write(blocks)
    (name,) = [name for name in os.listdir(tmp_path) if name.endswith(ending)]
    whole = (tmp_path / name).read_bytes()
    for content in damages(whole)[:9]:
        (tmp_path / name).write_bytes(content)
        store = RowStore(str(tmp_path), 4)
        assert not any(key in store for key in blocks)
        assert "is damaged and is left out" in caplog.text
        caplog.clear()
    store.write(blocks)  # what was lost is computed again
    again = RowStore(str(tmp_path), 4)
    for key, rows in blocks.items():
        np.testing.assert_array_equal(again.read(key), rows)


def test_a_folder_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it(tmp_path, monkeypatch):
    target, scratch = tmp_path / "target", str(tmp_path / "scratch")

    def fill(folder: str) -> None:
        (Path(folder) / "file").write_text("new")

    target.mkdir()
    (target / "file").write_text("old")
    real = os.rename

    def fail(source: str, into: str) -> None:
        if into == str(target) and source.endswith(".tmp"):
            raise PermissionError(13, "no")
        real(source, into)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(PermissionError):
            storage.write_dir(str(target), fill, scratch=scratch)
    assert (target / "file").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["scratch", "target"]
    storage.write_dir(str(target), fill, scratch=scratch)
    assert (target / "file").read_text() == "new" and sorted(os.listdir(tmp_path)) == ["scratch", "target"]
