"""`prepare`: from a behaviour log to per-user histories, in two Ray Data passes.

Pass 1 reads the log piece by piece, sets rejected rows aside, and divides the rest by a hash of the user into buckets
on disk. Pass 2 sorts each bucket and writes its histories. Between the passes the driver holds facts alone: counts,
vocabularies, the catalogue. The memory that this needs is bounded by a bucket and not by the log.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import ray_cluster, schema, storage
from ctxrec.core.config import Config, PrepareConfig
from ctxrec.core.dataset_spec import DatasetSpec, ItemsSpec, UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.core.folder_lock import only_here
from ctxrec.core.time_zones import TIMEZONE
from ctxrec.data import item_rows, splits
from ctxrec.data.clock import doubts_of_times
from ctxrec.data.column_facts import ColumnFacts, FirstReject
from ctxrec.data.prepared import FeatureMeta, PreparedData
from ctxrec.ingest import entities, readers, triples, vocabularies
from ctxrec.ingest.bucket_pass import Totals, World, write_histories
from ctxrec.ingest.histories import BucketJob
from ctxrec.ingest.id_match import WARNING, check_any_match, note_on_missing
from ctxrec.ingest.kept_log import read_grown_log
from ctxrec.ingest.log_facts import LogFacts
from ctxrec.ingest.log_pass import read_log
from ctxrec.ingest.prepare_report import make_report
from ctxrec.ingest.rejects import DUPLICATE
from ctxrec.ingest.shard_files import BlobIndex
from ctxrec.ingest.shards import MAX_ID_BYTES, UNPARSABLE, ShardJob
from ctxrec.ingest.source import Source, fingerprint, inspect_source
from ctxrec.ingest.temporal_cuts import temporal_cuts
from ctxrec.ingest.time_form import how_to_read, notes_on_times, time_form

logger = logging.getLogger(__name__)

TEMPORARY = "_tmp"  # under the data folder; the underscore hides it from readers
BUCKET_EVENTS = 2_000_000


def prepare(spec: DatasetSpec, out: str, config: Config, *, kept: str = "", live: str = "") -> PreparedData:
    """Validate a data set, split it, and write it as per-user histories.

    An unchanged folder (same input, spec and options) is reused. Rejected rows stay in `out/rejects`,
    also when nothing is left and the call fails.

    Args:
        spec: the data set, with absolute paths (`load_spec`).
        out: folder or URI to write; what an earlier `prepare` left there is replaced.
        config: only the section `prepare` counts.
        kept: folder of what was read of the log before (`ctxrec.ingest.kept_log`), for a log that gets new files; "": the
            whole log is read. The result is the same.
        live: folder where a service stored posted events and items, which are read too (`inspect_source`); "": none.

    Raises:
        UserError: a file or column is missing, no row of the log is left, or another command writes into `out`.
    """
    out = storage.absolute(out)  # tasks of a Ray that was started elsewhere have another working folder
    source = inspect_source(spec, live)
    wanted = fingerprint(source, config)
    if storage.exists(storage.join(out, schema.META)):
        try:
            meta = storage.read_json_object(storage.join(out, schema.META))
        except UserError as error:
            logger.warning("%s; it is prepared again", error)
            meta = {}
        if meta.get("fingerprint") == wanted and meta.get("format_version") == schema.FORMAT_VERSION:
            logger.info("%s reused: nothing changed", out)
            return PreparedData.open(out)
    with only_here(out):
        return _prepare(source, out, config, wanted, kept)


def _prepare(source: Source, out: str, config: Config, wanted: str, kept: str) -> PreparedData:
    # A folder without meta.json is incomplete, so meta.json is removed first and written last.
    for name in (schema.META, schema.REPORT, schema.ITEMS, schema.HISTORIES, schema.REJECTS, TEMPORARY):
        storage.delete(storage.join(out, name))
    for name in (schema.HISTORIES, schema.REJECTS, TEMPORARY):
        storage.make_dir(storage.join(out, name))
    ray_cluster.connect()
    try:
        meta, report = _build(source, out, config, kept)
    finally:
        storage.delete(storage.join(out, TEMPORARY))
    storage.write_json(storage.join(out, schema.REPORT), report)
    storage.write_json(storage.join(out, schema.META), meta | {"fingerprint": wanted})
    return PreparedData.open(out)


@dataclass(frozen=True)
class Tables:
    """The tables beside the log, their rejected rows by reason, and notes for the user."""

    items: item_rows.Entities
    users: item_rows.Entities
    graph: triples.Triples | None
    rejects: dict[str, int]  # rejected rows by reason
    first_rejects: dict[str, FirstReject]  # by reason
    notes: list[str]


@dataclass(frozen=True)
class AllItems:
    """All items: those of the item table, then those that only the log has."""

    ids: pa.Array  # string [I]
    pairs: pa.Array | None  # what the graph says of each item, list<string> [I]
    held_out: np.ndarray | None  # bool [I], items of a cold hold-out


def _build(source: Source, out: str, config: Config, kept: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every step of `prepare`; returns meta.json without the fingerprint, and report.json."""
    spec, options = source.spec, config.prepare
    tables = _read_tables(source, out)
    job = _shard_job(source, out, options)
    what = (source.events, source.num_rows, job, tables.items.ids)
    log = read_grown_log(*what, storage.absolute(kept)) if kept else read_log(*what)
    _check_events_are_left(log, source, job)
    if spec.items is not None:
        named = {"column": spec.events.item, "key": spec.items.id}
        check_any_match(log.new_items.array, tables.items.ids, knows_any=log.knows_items, **named)
    catalogue = _catalogue(tables, log, cold_items=options.cold_items)
    features, columns, notes = _features(spec, tables, catalogue, log)
    cuts = temporal_cuts(log, spec, job.buckets) if _is_temporal(spec) else splits.Cuts()
    bucket_job = BucketJob(spec=spec, features=features, cuts=cuts, min_events=options.min_events)
    world = _world(source, tables, catalogue, features, log, buckets=job.buckets)
    totals = write_histories(log, job, bucket_job, world, out)
    _check_targets_are_left(totals, spec)
    _write_items(spec, tables, catalogue, log, totals, out)
    meta = {
        "format_version": schema.FORMAT_VERSION,
        "name": spec.name,
        "spec": spec.to_dict(),
        "features": dataclasses.asdict(features),
        "counts": _counts(tables, catalogue, log, totals, buckets=job.buckets),
        "cold_items": options.cold_items,
        "split": {"strategy": spec.split.strategy, **(_cut_times(cuts) if _is_temporal(spec) else {})},
        "time_unit": job.unit,
        "times": {"first_us": log.first_us, "last_us": log.last_us},
        "actions": dict(_by_count(log)[:20]),
        "notes": [
            *source.notes,
            *tables.notes,
            *notes,
            *notes_on_times(source, log),
            *_log_notes(spec, tables, log, totals, clock=features.clock),
        ],
    }
    firsts = {**log.first_rejects, **tables.first_rejects}
    if totals.first_duplicate is not None:
        firsts[DUPLICATE] = totals.first_duplicate
    files = {"events": {info.path: log.file_rows[n] for n, info in enumerate(source.events)}}
    files |= {name: part.file_rows for name, part in (("items", tables.items), ("users", tables.users))}
    return meta, make_report(meta, columns, files, dict(_by_count(log)), firsts)


def _is_temporal(spec: DatasetSpec) -> bool:
    return spec.split.strategy == "temporal"


def _shard_job(source: Source, out: str, options: PrepareConfig) -> ShardJob:
    """What pass 1 needs to know; the unit of time is detected on a sample of the log."""
    form = time_form(source)
    return ShardJob(
        spec=source.spec,
        unit=form.unit,
        small_times=form.small,
        buckets=options.buckets or max(-(-source.num_rows // BUCKET_EVENTS), 2),
        max_id_bytes=MAX_ID_BYTES,
        now_us=int(time.time() * 1e6),
        shards=storage.join(out, TEMPORARY),
        rejects=storage.join(out, schema.REJECTS),
    )


def _read_tables(source: Source, out: str) -> Tables:
    """Read the item table, the user table and the graph, and write where images and sounds lie."""
    spec, rejects = source.spec, storage.join(out, schema.REJECTS)
    items = users = item_rows.NO_ENTITIES

    def read(
        files: Sequence[readers.FileInfo], section: ItemsSpec | UsersSpec, text: Sequence[str], what: str
    ) -> item_rows.Entities:
        return entities.read_entities(
            files,
            section.id,
            [*text, *section.categorical, *section.numeric],
            what=what,
            max_id_bytes=MAX_ID_BYTES,
            rejects=rejects,
            separators=section.separators,
            numeric=section.numeric,
        )

    if spec.items is not None:
        items = read(source.items, spec.items, spec.items.text, "item")
    if spec.users is not None:
        users = read(source.users, spec.users, spec.users.text, "user")
    graph = None if spec.graph is None else triples.read_triples(source.graph, spec.graph, rejects=rejects)
    notes = []
    if spec.items is not None and (media := spec.items.media):
        found = entities.write_media(source.items, media, items.kept, storage.join(out, schema.MEDIA))
        notes = [f"{kind} column {media[kind]!r}: {n} items have one" for kind, n in found.items()]
    counts = {**items.rejects, **users.rejects, **({} if graph is None else graph.rejects)}
    firsts = {**items.first_rejects, **users.first_rejects, **({} if graph is None else graph.first_rejects)}
    return Tables(items=items, users=users, graph=graph, rejects=counts, first_rejects=firsts, notes=notes)


def _check_events_are_left(log: LogFacts, source: Source, job: ShardJob) -> None:
    if log.rows_kept:
        return
    found = ", ".join(f"{n} {reason}" for reason, n in log.rejects.items()) or "no rejects"
    first = min(log.first_rejects.values(), key=lambda reject: reject.place, default=None)
    told = "" if first is None else f", the first is row {first.row} of {first.file}: {first.values}"
    advice = f"{how_to_read(source)}. Rejected" if UNPARSABLE in log.rejects else "Rejected"
    raise UserError(
        f"no event is left of the {log.rows_read} rows read at {source.spec.events.path} ({found}{told}). "
        f"Expected rows with a user, an item and a time. {advice} rows are kept in {job.rejects}"
    )


def _check_targets_are_left(totals: Totals, spec: DatasetSpec) -> None:
    if totals.split[schema.TRAIN] and not totals.targets:
        if spec.events.feedback is not None:
            raise UserError(
                f"none of the {totals.split[schema.TRAIN]} events of the training split is a training target: none has a "
                f"value from {spec.events.feedback.positive:g} on, which events.feedback.positive asks for. Lower it, or "
                "lower split.valid and split.test in the dataset spec"
            )
        raise UserError(
            f"none of the {totals.split[schema.TRAIN]} events of the training split is a training target: the actions "
            "that [events.actions] gives a positive weight come later. Lower split.valid and split.test in the "
            "dataset spec, or give a weight to an action of the training split"
        )


def _catalogue(tables: Tables, log: LogFacts, *, cold_items: float) -> AllItems:
    ids = pa.concat_arrays([tables.items.ids, log.new_items.array])
    pairs = None if tables.graph is None else triples.pairs_of(tables.graph, ids)
    held_out = splits.held_out_items(ids.to_pylist(), cold_items) if cold_items else None
    return AllItems(ids=ids, pairs=pairs, held_out=held_out)


def _features(
    spec: DatasetSpec, tables: Tables, catalogue: AllItems, log: LogFacts
) -> tuple[FeatureMeta, dict[str, list[ColumnFacts]], list[str]]:
    """Vocabularies and scales, with the graph's pairs as one more category of items; facts of columns; and notes."""
    features, columns, notes = vocabularies.feature_meta(
        spec, tables.items, tables.users, log, limit=vocabularies.MAX_CATEGORY_VALUES
    )
    if tables.graph is not None and catalogue.pairs is not None:
        features.item_categories[schema.GRAPH] = vocabularies.vocabulary(
            catalogue.pairs.flatten(), None, vocabularies.MAX_CATEGORY_VALUES
        )
        having = int((catalogue.pairs.value_lengths().to_numpy() > 0).sum())
        notes.append(f"graph: {len(tables.graph)} triples; {having} items share a relation and tail with another item")
    return features, columns, notes


def _world(
    source: Source, tables: Tables, catalogue: AllItems, features: FeatureMeta, log: LogFacts, *, buckets: int
) -> World:
    """What the tasks of pass 2 share."""
    users, bounds = entities.user_attributes(tables.users, source.spec.users, features, buckets=buckets)
    return World(
        blobs=BlobIndex.of(log.shards, buckets=buckets),
        item_ids=catalogue.ids,
        held_out=catalogue.held_out,
        users=users,
        user_bounds=bounds,
        files=[info.path for info in source.events],
    )


def _write_items(
    spec: DatasetSpec, tables: Tables, catalogue: AllItems, log: LogFacts, totals: Totals, out: str
) -> None:
    table = item_rows.items_table(spec, tables.items, log.new_items.array, totals.train_events, pairs=catalogue.pairs)
    storage.write_parquet(table, storage.join(out, schema.ITEMS))


def _counts(tables: Tables, catalogue: AllItems, log: LogFacts, totals: Totals, *, buckets: int) -> dict[str, Any]:
    """The counts of meta.json."""
    held_out = catalogue.held_out
    cold = {} if held_out is None else {"held_out_items": int(held_out.sum()), "held_out_events": totals.held_out}
    rejected = {**log.rejects, DUPLICATE: totals.duplicates, **tables.rejects}
    return {
        "events": totals.events,
        "events_read": log.rows_read,
        "users": totals.users,
        "items": len(catalogue.ids),
        "items_only_in_log": len(log.new_items),
        "buckets": buckets,
        "train": totals.split[schema.TRAIN],
        "train_targets": totals.targets,
        "valid": totals.split[schema.VALID],
        "test": totals.split[schema.TEST],
        **cold,
        "rejects": {reason: n for reason, n in sorted(rejected.items()) if n},
    }


def _cut_times(cuts: splits.Cuts) -> dict[str, int | None]:
    """The cut times of meta.json, in microseconds since 1970; None where the part is empty."""
    times = {"valid_from_us": cuts.valid_from, "test_from_us": cuts.test_from}
    return {name: None if t == splits.NEVER else t for name, t in times.items()}


def _log_notes(spec: DatasetSpec, tables: Tables, log: LogFacts, totals: Totals, *, clock: bool) -> list[str]:
    """Notes on the log for the user; `clock` is whether its times are those of a clock."""
    notes = doubts_of_times(log.first_us / 1e6, log.last_us / 1e6, clock=clock)
    if TIMEZONE in spec.events.context.columns:
        notes.append(f"the column {TIMEZONE!r} is a feature, so a request cannot name a time zone of its own")
    if log.future:
        said = (
            "1 event lies in the future; it is kept"
            if log.future == 1
            else f"{log.future} events lie in the future; they are kept"
        )
        notes.append(said)
    if spec.items is not None:
        notes += note_on_missing(log.new_items.array, tables.items.ids, totals.train_events)
    if spec.users is not None and totals.users_only_in_log:
        notes.append(f"{totals.users_only_in_log} users of the log are in no user table; kept without attributes")
        if totals.users_only_in_log == totals.users and len(tables.users.ids):
            first = "".join(log.texts[spec.events.user].examples[:1])
            notes.append(
                f"{WARNING}no user of the log is in the user table: the log has {first!r}, the table "
                f"{tables.users.ids[0].as_py()!r}. Check that both write ids in the same way"
            )
    for part, name, share in (
        (schema.VALID, "valid", spec.split.valid),
        (schema.TEST, "test", spec.split.test),
    ):
        if share > 0 and not totals.split[part]:
            notes.append(f"the {name} split is empty: the log is too short for it")
    return notes


def _by_count(log: LogFacts) -> list[tuple[str, int]]:
    """The actions of the log with the number of their events, the most frequent first."""
    pairs = zip(log.actions.values.to_pylist(), log.actions.counts.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
