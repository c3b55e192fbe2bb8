"""Prepared folders written by hand, bucket by bucket, without `prepare` and without Ray."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import schema
from ctxrec.data.prepared import PreparedData


def write_data(folder: Path, worlds: list, splits: list[np.ndarray]) -> PreparedData:
    """A prepared folder with one bucket for each world."""
    (folder / schema.HISTORIES).mkdir(parents=True)
    for bucket, (world, split) in enumerate(zip(worlds, splits, strict=True)):
        events = world.histories.events

        def lists(values: np.ndarray, kind: pa.DataType, offsets=events.offsets) -> pa.Array:
            return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))

        columns = {
            schema.USER_ID: pa.array([f"{bucket}-{user}" for user in world.histories.users.ids]),
            schema.EVENT_ITEMS: lists(events.items, pa.int32()),
            schema.EVENT_TIMES: lists(events.times, pa.int64()),
            schema.EVENT_SPLIT: lists(split, pa.int8()),
            schema.EVENT_ACTIONS: lists(events.actions, pa.int16()),
        }
        for name in schema.TIME_CONTEXT:
            columns[name] = lists(events.context.cat[name] - schema.FIRST_CODE, pa.int8())
        pq.write_table(pa.table(columns), folder / schema.HISTORIES / f"bucket-{bucket:05d}.parquet")
    first = worlds[0]
    meta = {
        "format_version": schema.FORMAT_VERSION,
        "spec": first.spec.to_dict(),
        "features": dataclasses.asdict(first.features),
        "counts": {
            "items": len(first.catalogue),
            "train": sum(int((split == schema.TRAIN).sum()) for split in splits),
            "buckets": len(worlds),
        },
    }
    (folder / schema.META).write_text(json.dumps(meta))
    return PreparedData.open(str(folder))


def write_shop(folder: Path, make_world) -> tuple[PreparedData, list]:
    """Three buckets, the last without training events, whose items tell events apart; and the worlds that they hold."""
    lengths = [(9, 1, 25, 4, 7, 2, 13), (3, 3, 17, 1), (2, 1)]
    worlds, splits, number = [], [], 0
    for seed, some in enumerate(lengths):
        world = make_world(rich=False, lengths=some, num_items=200, seed=seed)
        events = world.histories.events
        items = np.arange(number, number + len(events.items), dtype=np.int32)
        number += len(items)
        split = np.zeros(len(items), np.int8)
        if seed == 2:
            split[:] = schema.TEST
        for start, stop in zip(events.offsets, events.offsets[1:], strict=False):
            if stop - start >= 3:
                split[stop - 2], split[stop - 1] = schema.VALID, schema.TEST
        histories = dataclasses.replace(world.histories, events=dataclasses.replace(events, items=items), split=split)
        worlds.append(dataclasses.replace(world, histories=histories))
        splits.append(split)
    return write_data(folder, worlds, splits), worlds
