"""What a worker makes before its first step, here in one process without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bucket_files import write_shop

from ctxrec.core import schema
from ctxrec.core.config import load_config
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.training.window_sampler import TrainStream
from ctxrec.training.worker_setup import set_up


@pytest.mark.parametrize("rank", [0, 1])
def test_no_bucket_is_read_twice_before_the_first_step(make_world, tmp_path, monkeypatch, rank):
    """Counts of windows for both parts of the log, trained items, validation requests and the memories: one read."""
    data, worlds = write_shop(tmp_path / "data", make_world)
    pq.write_table(worlds[0].table, tmp_path / "data" / schema.ITEMS)
    reads, read = [], PreparedData.read_bucket

    def counted(self, bucket, columns=None):
        reads.append(bucket)
        return read(self, bucket, columns)

    monkeypatch.setattr(PreparedData, "read_bucket", counted)
    config = load_config(None, ["encoder.name=", "model.dim=8", "model.history=6", "train.trackers=[]"])
    place = Place(rank, 2, rank, 2, torch.device("cpu"))
    setup = set_up(config, data.path, str(tmp_path / "run"), str(tmp_path), place)
    for last_split in (schema.TRAIN, schema.VALID):
        stream = TrainStream(
            setup.log.data, setup.log.scan, setup.log.batcher, global_batch_size=8, micro_batch_size=0, seed=0,
            rank=rank, world=2, last_split=last_split,
        )  # fmt: skip
        assert stream.steps_per_epoch > 0
    assert setup.log.validation is not None and len(setup.log.validation) > 0
    if rank == 0:
        known = [setup.log.memory(before, None).known_I.sum() for before in (schema.VALID, schema.TEST)]
        assert 0 < known[0] < known[1]
        text_IC = np.eye(setup.log.data.num_items, 4, dtype=np.float32)
        of_texts = setup.log.memory(schema.TEST, text_IC)
        assert setup.log.memory(schema.TEST, text_IC.copy()) is of_texts, "the last one is kept"
        assert setup.log.memory(schema.TEST, -text_IC) is not of_texts
    assert reads == [0, 1, 2]
    next(stream.epoch(0))
    assert len(reads) > 3
