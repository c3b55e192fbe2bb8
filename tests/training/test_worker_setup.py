"""What a worker makes before its first step, here in one process without Ray."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bucket_files import write_shop

from ctxrec.core import schema
from ctxrec.core.config import config_with, load_config
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.training.tuning_rule import TuningRuleParams, why_not_taught
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


@pytest.mark.parametrize(("min_events", "epochs"), [(0.0, "auto"), (1000.0, "auto"), (1000.0, "1")])
def test_no_states_are_made_where_the_log_cannot_teach_the_encoder(
    make_world, tiny_encoder, tmp_path, monkeypatch, min_events, epochs
):
    data, worlds = write_shop(tmp_path / "data", make_world)
    pq.write_table(worlds[0].table, tmp_path / "data" / schema.ITEMS)
    monkeypatch.setenv("CTXREC_CACHE", str(tmp_path / "cache"))
    limits = TuningRuleParams(min_events=min_events, min_differing=0.0, min_tokens=0.0)
    monkeypatch.setattr("ctxrec.training.catalogue_vectors.why_not_taught", partial(why_not_taught, params=limits))
    config = load_config(None, [f"encoder.name={tiny_encoder}", "encoder.top_layers=1", "train.trackers=[]"])
    config = config_with(config.to_dict(), [f"train.encoder_epochs={epochs}"], source="test")
    place = Place(0, 1, 0, 1, torch.device("cpu"))
    texts = set_up(config, data.path, str(tmp_path / "run"), str(tmp_path), place).catalogue.texts
    assert texts is not None
    left_out = min_events > 0 and epochs == "auto"
    assert (texts.tokens.states is None) == bool(texts.why_not_tuned) == left_out
    assert ("training events an item, and tuning needs 1000" in texts.why_not_tuned) == left_out
