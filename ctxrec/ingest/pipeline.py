"""`prepare`: from a behaviour log to per-user histories, in two Ray Data passes.

Pass 1 reads the log piece by piece, sets aside what is wrong, and divides the rest by a hash of the user
into buckets on disk. Pass 2 sorts each bucket and builds the histories. Between them the driver holds only
facts: counts, vocabularies, the catalogue. Memory is bounded by a bucket, not by the log.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import ray_cluster, schema, storage
from ctxrec.core.config import Config
from ctxrec.core.dataset_spec import DatasetSpec
from ctxrec.core.errors import UserError
from ctxrec.core.version import VERSION
from ctxrec.data import item_rows, parsing, splits
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.ingest import entities, histories, passes, readers, shards, triples

logger = logging.getLogger(__name__)

TEMPORARY = "_tmp"  # under the data folder; the underscore hides it from readers
BUCKET_EVENTS = 2_000_000
MAX_ID_BYTES = 1024  # rows with a longer id are rejected
MAX_CATEGORY_VALUES = 100_000  # values of a categorical column that keep a code of their own, the most frequent ones
MAX_ACTIONS = 32_767  # codes are int16
HASHED_BYTES = 64 << 20  # larger input files are told apart by size and time of change, not by content


def prepare(spec: DatasetSpec, out: str, config: Config) -> PreparedData:
    """Validate a data set, split it, and write it as per-user histories.

    An unchanged folder (same input, spec and options) is reused. Rejected rows stay in `out/rejects`,
    also when nothing is left and the call fails.

    Args:
        spec: the data set, with absolute paths (`load_spec`).
        out: folder or URI to write; what an earlier `prepare` left there is replaced.
        config: only the section `prepare` counts.

    Raises:
        UserError: a file or column is missing, or no row of the log is left.
    """
    source = inspect_source(spec)
    fingerprint = _fingerprint(source, config)
    if storage.exists(storage.join(out, schema.META)):
        meta = storage.read_json(storage.join(out, schema.META))
        if meta.get("fingerprint") == fingerprint and meta.get("format_version") == schema.FORMAT_VERSION:
            logger.info("%s reused: nothing changed", out)
            return PreparedData.open(out)
    # Without meta.json the folder is incomplete; it goes first and comes back last.
    for name in (schema.META, schema.ITEMS, schema.HISTORIES, schema.REJECTS, TEMPORARY):
        storage.delete(storage.join(out, name))
    for name in (schema.HISTORIES, schema.REJECTS, TEMPORARY):
        storage.make_dir(storage.join(out, name))
    ray_cluster.connect()
    try:
        meta = _run(source, out, config)
    finally:
        storage.delete(storage.join(out, TEMPORARY))
    storage.write_json(storage.join(out, schema.META), meta | {"fingerprint": fingerprint})
    return PreparedData.open(out)


@dataclass(frozen=True)
class Source:
    """The files of a data set, checked to have the columns that the spec names."""

    spec: DatasetSpec
    events: list[readers.FileInfo]
    items: list[readers.FileInfo]
    users: list[readers.FileInfo]
    graph: list[readers.FileInfo]

    @property
    def num_rows(self) -> int:
        """Rows of the log; an estimate where it is text."""
        return sum(info.num_rows for info in self.events)


def inspect_source(spec: DatasetSpec) -> Source:
    """List the files of a data set and check their columns before anything is read.

    Raises:
        UserError: names the column, the file and the columns found.
    """
    items, users, graph = spec.items, spec.users, spec.graph
    source = Source(
        spec=spec,
        events=readers.inspect(spec.events.path, shards.event_columns(spec.events), section="events"),
        items=readers.inspect(
            items.path,
            [items.id, *items.text, *items.categorical, *items.numeric, *items.media.values()],
            section="items",
        )
        if items
        else [],
        users=readers.inspect(users.path, [users.id, *users.categorical, *users.numeric], section="users")
        if users
        else [],
        graph=readers.inspect(graph.path, [graph.head, graph.relation, graph.tail], section="graph") if graph else [],
    )
    for info in source.events:
        for name in shards.event_columns(spec.events):
            if name in info.types and pa.types.is_nested(info.types[name]):
                raise UserError(
                    f"column {name!r} of {info.path} is {info.types[name]}; expected one value a row. "
                    "Take another column, or write one event a row"
                )
    return source


def _fingerprint(source: Source, config: Config) -> str:
    """Changes with the rows, the spec or the options; not with the place where the files lie."""
    spec = source.spec.to_dict()
    for section in ("events", "items", "users", "graph"):
        if spec[section] is not None:
            spec[section]["path"] = _signatures([info.path for info in getattr(source, section)])
    # The constants were options once; they stay part of the fingerprint, so that folders of then are still reused.
    options = dataclasses.asdict(config.prepare)
    options |= {"max_id_bytes": MAX_ID_BYTES, "max_category_values": MAX_CATEGORY_VALUES}
    return storage.sha256_json({"format": schema.FORMAT_VERSION, "version": VERSION, "spec": spec, "prepare": options})


def _signatures(paths: Sequence[str]) -> list[list[Any]]:
    """Relative name, size and content hash (of large files: time of change) of each file."""
    folders = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    root = "/".join(names[0] for names in shared)
    signatures = []
    for path in paths:
        fs, inner = storage.filesystem(path)
        info = fs.get_file_info(inner)
        small = info.size <= HASHED_BYTES
        mark = hashlib.sha256(storage.read_bytes(path)).hexdigest() if small else info.mtime_ns
        signatures.append([path.removeprefix(root).lstrip("/"), info.size, mark])
    return signatures


def _run(source: Source, out: str, config: Config) -> dict[str, Any]:
    """Read the tables, pass 1, the split, pass 2, the item table; returns meta.json without the fingerprint."""
    spec, options, notes = source.spec, config.prepare, []
    rejects = storage.join(out, schema.REJECTS)
    items, users, table_rejects = _read_tables(source, MAX_ID_BYTES, rejects)
    facts = None
    if spec.graph is not None:
        facts = triples.read_triples(source.graph, spec.graph, rejects=rejects)
        table_rejects |= facts.rejects
    if spec.items is not None and (media := spec.items.media):
        found = entities.write_media(source.items, media, items.kept, storage.join(out, schema.MEDIA))
        notes += [f"{kind} column {media[kind]!r}: {n} items have one" for kind, n in found.items()]
    job = shards.ShardJob(
        spec=spec,
        unit=parsing.detect_unit(readers.sample_column(source.events, spec.events.time)),
        buckets=options.buckets or max(-(-source.num_rows // BUCKET_EVENTS), 2),
        max_id_bytes=MAX_ID_BYTES,
        now_us=int(time.time() * 1e6),
        shards=storage.join(out, TEMPORARY),
        rejects=rejects,
    )
    log = passes.read_log(source.events, source.num_rows, job, items.ids)
    if not log.rows_kept:
        found = ", ".join(f"{n} {reason}" for reason, n in log.rejects.items()) or "no rejects"
        raise UserError(
            f"no event is left of the {log.rows_read} rows read at {spec.events.path} ({found}). "
            f"Expected rows with a user, an item and a time; rejected rows are kept in {rejects}"
        )
    features = _features(spec, items, users, log, limit=MAX_CATEGORY_VALUES, notes=notes)
    item_ids = pa.concat_arrays([items.ids, log.new_items])
    pairs = None
    if facts is not None:
        pairs = triples.pairs_of(facts, item_ids)
        features.item_categories[schema.GRAPH] = entities.vocabulary(pairs.flatten(), None, MAX_CATEGORY_VALUES)
        having = int((pairs.value_lengths().to_numpy() > 0).sum())
        notes.append(
            f"graph: {len(facts)} triples; {having} items are the head of one whose relation and tail "
            "another item has too"
        )
    temporal = spec.split.strategy == "temporal"
    cuts = passes.temporal_cuts(log, spec, job) if temporal else splits.Cuts()
    attributes = entities.user_attributes(users, spec.users, features.user_categories, buckets=job.buckets)
    bucket_job = histories.BucketJob(spec=spec, features=features, cuts=cuts, min_events=options.min_events)
    held_out = splits.held_out_items(item_ids.to_pylist(), options.cold_items) if options.cold_items else None
    totals = passes.write_histories(
        log, job, bucket_job, item_ids, attributes, [info.path for info in source.events], out, held_out
    )
    table = item_rows.items_table(spec, items, log.new_items, totals.train_events, pairs=pairs)
    fs, inner = storage.filesystem(storage.join(out, schema.ITEMS))
    pq.write_table(table, inner, filesystem=fs)
    _note_log(notes, spec, log, totals)
    rejected = {**log.rejects, shards.DUPLICATE: totals.duplicates, **table_rejects}
    return {
        "format_version": schema.FORMAT_VERSION,
        "name": spec.name,
        "spec": spec.to_dict(),
        "features": dataclasses.asdict(features),
        "counts": {
            "events": totals.events,
            "events_read": log.rows_read,
            "users": totals.users,
            "items": len(item_ids),
            "items_only_in_log": len(log.new_items),
            "buckets": job.buckets,
            "train": totals.split[schema.TRAIN],
            "valid": totals.split[schema.VALID],
            "test": totals.split[schema.TEST],
            **({} if held_out is None else {"held_out_items": int(held_out.sum()), "held_out_events": totals.held_out}),
            "rejects": {reason: n for reason, n in sorted(rejected.items()) if n},
        },
        "cold_items": options.cold_items,
        "split": {"strategy": spec.split.strategy, **(_cut_times(cuts) if temporal else {})},
        "time_unit": job.unit,
        "notes": notes,
    }


def _read_tables(
    source: Source, max_id_bytes: int, rejects: str
) -> tuple[item_rows.Entities, item_rows.Entities, dict[str, int]]:
    """The item table, the user table, and what was rejected in them."""
    spec, items, users, counts = source.spec, item_rows.NO_ENTITIES, item_rows.NO_ENTITIES, {}
    if spec.items is not None:
        items = entities.read_entities(
            source.items,
            spec.items.id,
            [*spec.items.text, *spec.items.categorical, *spec.items.numeric],
            what="item",
            max_id_bytes=max_id_bytes,
            rejects=rejects,
        )
        counts |= items.rejects
    if spec.users is not None:
        columns = [*spec.users.categorical, *spec.users.numeric]
        users = entities.read_entities(
            source.users, spec.users.id, columns, what="user", max_id_bytes=max_id_bytes, rejects=rejects
        )
        counts |= users.rejects
    return items, users, counts


def _features(
    spec: DatasetSpec,
    items: item_rows.Entities,
    users: item_rows.Entities,
    log: passes.LogFacts,
    *,
    limit: int,
    notes: list[str],
) -> FeatureMeta:
    """Vocabularies and scales: of items and users over their tables, of context over the valid rows of the log."""
    item_categories, item_numbers, item_notes = entities.entity_features(items, spec.items, limit=limit)
    user_categories, user_numbers, user_notes = entities.entity_features(users, spec.users, limit=limit)
    notes += item_notes + user_notes
    context, scales = spec.events.context, {}
    for name, (count, total, squares, bad) in log.numbers.items():
        if name in context.numeric:
            scales[name] = entities.scale(count, total, squares)
        if bad:
            notes.append(f"{name}: {int(bad)} values of the log are no finite number; they count as missing")
    actions = sorted(log.values("action", spec.events.action)[0].to_pylist()) if spec.events.action else []
    if len(actions) > MAX_ACTIONS:
        raise UserError(
            f"column {spec.events.action!r} has {len(actions)} different actions; expected at most {MAX_ACTIONS}. "
            "Name a column of action types in [events] action"
        )
    unlisted = [action for action in actions if action not in spec.events.actions]
    if spec.events.actions and unlisted:
        notes.append(f"actions without a weight stay in histories and are no training targets: {', '.join(unlisted)}")
    unused = [action for action in spec.events.actions if action not in actions]
    if unused:
        notes.append(f"actions with a weight that no event has: {', '.join(unused)}")
    return FeatureMeta(
        item_categories=item_categories,
        item_numbers=item_numbers,
        user_categories=user_categories,
        user_numbers=user_numbers,
        context_categories={
            name: entities.vocabulary(*log.values("category", name), limit) for name in context.categorical
        },
        context_numbers=scales,
        context_texts=list(context.text),
        actions=actions,
    )


def _cut_times(cuts: splits.Cuts) -> dict[str, int | None]:
    """Cut times for meta.json; None where the part is empty."""
    times = {"valid_from_us": cuts.valid_from, "test_from_us": cuts.test_from}
    return {name: None if t == splits.NEVER else t for name, t in times.items()}


def _note_log(notes: list[str], spec: DatasetSpec, log: passes.LogFacts, totals: passes.Totals) -> None:
    """What a user should know of the log."""
    if log.future:
        notes.append(f"{log.future} events lie in the future; they are kept")
    if spec.items is not None and len(log.new_items):
        notes.append(f"{len(log.new_items)} items of the log are in no item table; kept with empty content")
    if spec.users is not None and totals.users_only_in_log:
        notes.append(f"{totals.users_only_in_log} users of the log are in no user table; kept without attributes")
    for part, name, share in (
        (schema.VALID, "valid", spec.split.valid),
        (schema.TEST, "test", spec.split.test),
    ):
        if share > 0 and not totals.split[part]:
            notes.append(f"the {name} split is empty: the log is too short for it")


def summary(data: PreparedData) -> str:
    """A prepared folder in a few lines, for a person."""
    counts, meta = data.meta["counts"], data.meta
    lines = [
        f"{meta['name']}: {counts['events_read']:,} rows read, {counts['events']:,} events kept",
        f"  users {counts['users']:,}, items {counts['items']:,} ({counts['items_only_in_log']:,} only in the log)",
        f"  split {meta['split']['strategy']}: train {counts['train']:,}, valid {counts['valid']:,}, "
        f"test {counts['test']:,}",
        f"  times are {meta['time_unit']}",
    ]
    if "held_out_items" in counts:
        lines.append(
            f"  cold items: {counts['held_out_items']:,} are held out; {counts['held_out_events']:,} of their events "
            "before the test split are dropped"
        )
    lines += [f"  rejected {n:,}: {reason}" for reason, n in counts["rejects"].items()]
    if counts["rejects"]:
        lines.append(f"  rejected rows are kept in {storage.join(data.path, schema.REJECTS)}")
    return "\n".join(lines + [f"  note: {note}" for note in meta["notes"]])
