"""Pass 1 as Ray Data tasks: read, clean and shard the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from ctxrec.core.errors import UserError
from ctxrec.core.terminal import progress_bar
from ctxrec.ingest import readers, shards
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.ray_map import as_block, map_in_order, values_in

TASK_ROWS = 1 << 20  # rows of the log that one task reads, about


def read_log(
    files: Sequence[readers.FileInfo], num_rows: int, job: shards.ShardJob, item_ids: pa.Array, *, start: int = 0
) -> LogFacts:
    """Read, clean and shard the log.

    Args:
        files: the log's files in order.
        num_rows: their rows, for the progress bar.
        job: see `ShardJob`.
        item_ids: ids of the item table.
        start: number of the first file that is read; those before it were read by an earlier call.

    Raises:
        UserError: a file does not hold what its format and the spec say.
    """
    tasks = task_pieces([piece for piece in readers.make_pieces(files, rows=TASK_ROWS) if piece.file >= start])
    log = LogFacts()
    if not tasks:
        return log
    inputs = [_input(number, pieces) for number, pieces in enumerate(tasks)]
    with progress_bar(num_rows, "prepare 1/2 read", "row", scale=True) as bar:
        for block in map_in_order(inputs, shard_task, job=job, item_ids=ray.put(item_ids)):
            for facts in values_in(block):
                log.merge(facts)
                if log.mistake:
                    raise UserError(log.mistake)
            bar.total = max(bar.total, log.rows_read)
            bar.update(log.rows_read - bar.n)
        bar.total = log.rows_read
    return log


def task_pieces(pieces: Sequence[readers.Piece]) -> list[list[readers.Piece]]:
    """The pieces of each task in order: about TASK_ROWS rows a task, so that many small files cost few tasks."""
    tasks: list[list[readers.Piece]] = []
    rows = TASK_ROWS
    for piece in pieces:
        if rows + piece.num_rows > TASK_ROWS:
            tasks.append([])
            rows = 0
        tasks[-1].append(piece)
        rows += piece.num_rows
    return tasks


def _input(number: int, pieces: Sequence[readers.Piece]) -> pa.Table:
    return pa.table({"task": [number], "pieces": [[dataclasses.asdict(piece) for piece in pieces]]})


def shard_task(block: pa.Table, job: shards.ShardJob, item_ids: Any) -> Iterator[pa.Table]:
    """Ray Data task: shard the pieces of each row; yields the facts of each shard."""
    known = ray.get(item_ids)
    for row in block.to_pylist():
        pieces = [readers.Piece(**piece) for piece in row["pieces"]]
        for facts in shards.make_shards(pieces, row["task"], job, known):
            yield as_block(facts)
