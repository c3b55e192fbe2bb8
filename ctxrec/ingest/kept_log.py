"""What pass 1 made of the files that it has read, kept for the next `prepare` of a log that grows.

KEPT/index.json            the files in the log's order, what pass 1 found in all of them, and where their shards lie
KEPT/shards-000001/        shard files of the files that were read at one time
KEPT/rejects-000001/       their rejected rows

Only new files are read, and their shards come after those that are there. Pass 2 runs over all shards, as ever: cut times,
vocabularies and the catalogue are those of the whole log. So the result is that of reading the whole log again.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.version import VERSION
from ctxrec.data.column_facts import FirstReject, OddValues, TextFacts
from ctxrec.ingest import readers
from ctxrec.ingest.log_facts import DistinctIds, LogFacts, NumberSums, ValueCounts
from ctxrec.ingest.log_pass import read_log
from ctxrec.ingest.shard_files import ShardFile
from ctxrec.ingest.shards import ShardJob

logger = logging.getLogger(__name__)

_FORMAT = 1


def read_grown_log(
    files: Sequence[readers.FileInfo], num_rows: int, job: ShardJob, item_ids: pa.Array, kept: str
) -> LogFacts:
    """As `read_log`, but what was read before is not read again.

    Args:
        files: the log's files in order.
        num_rows: their rows, for the progress bar.
        job: see `ShardJob`; its folder of rejected rows gets those of all files.
        item_ids: ids of the item table.
        kept: folder, path or URI, that this function writes and reads.

    Raises:
        UserError: a file does not hold what its format and the spec say.
    """
    signatures, out = [_signature(info.path) for info in files], job.rejects
    index, why = _usable(kept, signatures, job)
    if why:
        logger.info("the whole log is read, because %s", why)
        storage.delete(kept)
        index = {"files": [], "number": 0}
    known, number = len(index["files"]), index["number"] + 1
    log = from_json(index["facts"]) if known else LogFacts()
    if known < len(files):
        logger.info("%d of %d files of the log are new", len(files) - known, len(files))
        shards, rejects = f"{kept}/shards-{number:06d}", f"{kept}/rejects-{number:06d}"
        for place in (shards, rejects):
            storage.delete(place)  # of a call that was killed
            storage.make_dir(place)
        job = dataclasses.replace(job, shards=shards, rejects=rejects)
        every_id = pa.array([], pa.string())  # all items count as new here, so that the item table may change
        new = read_log(files, num_rows, job, every_id, start=known)
        log.merge(new)
        content = {"key": _key(job), "files": signatures, "number": number, "facts": to_json(log)}
        storage.write_json(f"{kept}/index.json", content)
    _copy_rejects(kept, out, number if known < len(files) else number - 1)
    return _seen_from(log, item_ids)


def _signature(path: str) -> list[Any]:
    """Path, size and time of change of a file."""
    fs, inner = storage.filesystem(path)
    info = fs.get_file_info(inner)
    return [path, info.size, info.mtime_ns]


def _key(job: ShardJob) -> str:
    """A hash of all but the files that pass 1 depends on."""
    spec = job.spec.events
    events = dataclasses.asdict(spec) | {"path": ""}
    how = [job.unit, job.small_times, job.buckets, job.max_id_bytes]
    return storage.sha256_json({"format": _FORMAT, "version": VERSION, "events": events, "how": how})


def _usable(kept: str, signatures: list[list[Any]], job: ShardJob) -> tuple[dict[str, Any], str]:
    """What is kept, and why it cannot be used, in words; "" where it can."""
    path = f"{kept}/index.json"
    if not storage.exists(path):
        return {}, "none of it was read before"
    try:
        index = storage.read_json_object(path)
        facts = from_json(index["facts"])
    except (UserError, LookupError, TypeError, ValueError):
        return {}, f"{path} is damaged"
    if index["key"] != _key(job):
        return {}, "the spec, the unit of time, the number of buckets or the version of ctxrec is another one"
    if facts.future:
        return {}, "events that lay in the future are judged anew"
    for n, (path, size, changed) in enumerate(index["files"]):
        if n >= len(signatures) or signatures[n][0] != path:
            new = signatures[n][0] if n < len(signatures) else "nothing"
            return {}, f"{new} stands in the place of {path}; new files must come last in the order of names"
        if signatures[n] != [path, size, changed]:
            return {}, f"{path} was changed"
    missing = [shard.path for shard in facts.shards if not storage.exists(shard.path)]
    return (index, "") if not missing else ({}, f"{missing[0]} is missing")


def _copy_rejects(kept: str, out: str, number: int) -> None:
    for n in range(1, number + 1):
        folder = f"{kept}/rejects-{n:06d}"
        fs, inner = storage.filesystem(folder)
        for info in fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True)):
            target_fs, target = storage.filesystem(storage.join(out, f"events-{n:06d}-{info.base_name}"))
            with fs.open_input_stream(info.path) as source, target_fs.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream)


def _seen_from(log: LogFacts, item_ids: pa.Array) -> LogFacts:
    """The facts with those items as new that the item table lacks."""
    before = log.new_items.array
    new = before.filter(pc.invert(pc.is_in(before, value_set=item_ids.cast(pa.string()))))
    return dataclasses.replace(log, new_items=DistinctIds(new), knows_items=len(new) < len(before))


def to_json(log: LogFacts) -> dict[str, Any]:
    """The facts as JSON values; floats are texts, as JSON has no infinity."""
    return {
        "numbers_of_rows": [log.rows_read, log.rows_kept, log.future, log.first_us, log.last_us],
        "rejects": dict(log.rejects),
        "first_rejects": {reason: [f.file, f.row, f.values] for reason, f in log.first_rejects.items()},
        "file_rows": list(log.file_rows.items()),
        "texts": {name: [facts.missing, list(facts.examples)] for name, facts in log.texts.items()},
        "shards": [[s.path, list(s.offsets), s.first_hour, s.last_hour] for s in log.shards],
        "hours": list(log.hours.items()),
        "numbers": {name: _sums_to_json(sums) for name, sums in log.numbers.items()},
        "items": log.new_items.array.to_pylist(),
        "odd": [[*key, odd.rows, odd.example] for key, odd in log.odd.items()],
        "actions": _counts_to_json(log.actions),
        "categories": {name: _counts_to_json(counts) for name, counts in log.categories.items()},
    }


def from_json(raw: dict[str, Any]) -> LogFacts:
    """The facts that `to_json` wrote."""
    rows_read, rows_kept, future, first_us, last_us = raw["numbers_of_rows"]
    return LogFacts(
        rows_read=rows_read,
        rows_kept=rows_kept,
        future=future,
        first_us=first_us,
        last_us=last_us,
        rejects=Counter(raw["rejects"]),
        first_rejects={reason: FirstReject(*first) for reason, first in raw["first_rejects"].items()},
        file_rows=Counter(dict(map(tuple, raw["file_rows"]))),
        texts={name: TextFacts(missing, tuple(shown)) for name, (missing, shown) in raw["texts"].items()},
        shards=[ShardFile(path, tuple(offsets), first, last) for path, offsets, first, last in raw["shards"]],
        hours=Counter(dict(map(tuple, raw["hours"]))),
        numbers={name: _sums_from_json(sums) for name, sums in raw["numbers"].items()},
        new_items=DistinctIds(pa.array(raw["items"], pa.string())),
        odd={(column, kind): OddValues(rows, example) for column, kind, rows, example in raw["odd"]},
        actions=_counts_from_json(raw["actions"]),
        categories={name: _counts_from_json(counts) for name, counts in raw["categories"].items()},
    )


def _sums_to_json(sums: NumberSums) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, float) else v for k, v in dataclasses.asdict(sums).items()}


def _sums_from_json(raw: dict[str, Any]) -> NumberSums:
    return NumberSums(
        count=raw["count"],
        total=float(raw["total"]),
        squares=float(raw["squares"]),
        bad=raw["bad"],
        low=float(raw["low"]),
        high=float(raw["high"]),
        bad_example=raw["bad_example"],
    )


def _counts_to_json(counts: ValueCounts) -> list[list[Any]]:
    return [counts.values.to_pylist(), counts.counts.tolist()]


def _counts_from_json(raw: list[list[Any]]) -> ValueCounts:
    return ValueCounts(pa.array(raw[0], pa.large_string()), np.array(raw[1], np.int64))
