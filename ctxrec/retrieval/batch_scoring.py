"""Batch scoring: requests from Parquet, a pool of Ray Data actors with the model, one Parquet file out.

A small file is scored in the command's own process, as Ray and the actors would take longer to start than to score it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray
import ray.data

from ctxrec.bundle.format import check_bundle, read_about
from ctxrec.bundle.registry import find_bundle
from ctxrec.bundle.reranker_folder import check_reranker
from ctxrec.core import failures, ray_cluster, storage
from ctxrec.core.config import Config, DiversityConfig, IndexConfig, load_config
from ctxrec.core.dataset_spec import ContextSpec
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import BundlePaths, reranker_beside
from ctxrec.core.schema import ITEM_ID
from ctxrec.core.terminal import progress_bar
from ctxrec.core.time_zones import TIMEZONE
from ctxrec.data.clock import Clock
from ctxrec.data.requests import Requests
from ctxrec.retrieval.cross_encoder import Found
from ctxrec.retrieval.explain import Why, explain
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.history_columns import VALUE, history_ids, read_ids
from ctxrec.retrieval.item_probabilities import NO_CALIBRATION, list_probabilities
from ctxrec.retrieval.list_columns import ALLOW, EXCLUDE, EXPLAIN, PROBABILITY, RERANK, ListWish, read_wishes
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.no_effect import (
    NO_FEEDBACK,
    NO_SECOND_STAGE,
    notes_of,
    unknown_in_columns,
    unknown_in_lists,
    unread_context,
    why_unread,
)
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_files import (
    DISLIKE,
    HISTORY,
    QUERY,
    REQUEST_ID,
    check_requests,
    is_of_request,
    open_parquet,
    raw_requests,
)
from ctxrec.retrieval.request_reader import ContextReader
from ctxrec.retrieval.reranker_files import second_stage_of
from ctxrec.retrieval.retriever import Retriever, load_retriever
from ctxrec.retrieval.short_lists import is_expected, why_short
from ctxrec.retrieval.slate.rules import Rules, rules_of
from ctxrec.retrieval.user_columns import USER

logger = logging.getLogger(__name__)

_NO_EFFECT = "the column %s has no effect: %s"
_LOOKED_AT = 100_000  # requests whose contexts are looked at for values that the model does not know

_NOTES = "notes"  # of the answers on their way to the file: what is to be said of each request
_MOST_NOTES, _MOST_KINDS = 20, 1000  # notes that are told, and different ones that are counted
ITEM_IDS, SCORES, WHY = "item_ids", "scores", "why"
_EFFECTS = pa.map_(pa.string(), pa.float64())  # of the parts of a request on the score of an item
_WHY_TYPE = pa.list_(pa.struct([(part.name, _EFFECTS) for part in fields(Why)]))
_OPTIONAL = {
    EXPLAIN: (WHY, _WHY_TYPE),
    PROBABILITY: (PROBABILITY, pa.list_(pa.float64())),
}  # columns of the answers by those that ask


def recommend(run: str, requests: str, out: str, *, k: int, config: Config | None = None) -> int:
    """Score the requests of a Parquet file (contracts: `ctxrec.recommend`) and write `out` as one file, whole.

    A request without a timestamp is asked now: at the moment this function was called, for all of them.

    Args:
        run: run or bundle, path or URI; on a cluster, one that every node can read.
        requests: Parquet file, folder, glob or URI.
        out: Parquet file, path or URI; replaced when it exists.
        k: items a request.
        config: `evaluate.batch_size`, `evaluate.actors`, the search options of `index`, `rerank.use` and
            `diversity`; None: the bundle's.

    Returns:
        The number of requests.

    Raises:
        UserError: `k` is below 1, the bundle is missing or damaged, or the requests lack a column, have one
            of the wrong type, or a timestamp out of range; or diversity or rules ask for what the catalogue lacks.
    """
    now_s = time.time()
    if k < 1:
        raise UserError(f"--k is {k}; expected at least 1")
    bundle = find_bundle(run)
    folder, manifest = check_bundle(bundle, scratch=storage.temporary_folder())
    config = config or load_config(base=BundlePaths(folder).config)
    if config.rerank.use:
        check_reranker(reranker_beside(bundle), manifest["model_version"])
    rules = rules_of(config.diversity)
    if config.diversity.is_on:  # a mistake is one line here, and in an actor a traceback
        Retriever(load_recommender(bundle), diversity=config.diversity, rules=rules)
    about = read_about(folder)
    context = about.spec.events.context
    inputs = storage.list_files(requests)
    if any(_is_same_file(path, out) for path in inputs):
        raise UserError(f"--out {out} is a file of --requests, which it would replace; give another file")
    columns, num_rows = check_requests(inputs, context, about.features, about.spec.items)
    on_request = is_of_request(RERANK, columns, context)
    found = second_stage_of(bundle, manifest["model_version"], required=False) is not None
    unread = _warn_of_unread(bundle, columns, context, reranked=found and (on_request or config.rerank.use))
    if on_request and not found:
        logger.warning(_NO_EFFECT, RERANK, NO_SECOND_STAGE)
    schema = _output_schema(inputs, [kind for name, kind in _OPTIONAL.items() if is_of_request(name, columns, context)])
    if num_rows == 0:
        _write(out, schema, (), num_rows=0)
        return 0
    fs, _ = storage.filesystem(inputs[0])
    paths = [storage.filesystem(file)[1] for file in inputs]
    contexts = ContextReader(about.features, Clock.of(about.spec, about.features))
    _warn_of_unknown(contexts, paths[0], fs, [name for name in context.categorical if name not in unread])
    _warn_of_unknown_items(BundlePaths(folder).items, paths[0], fs, context)
    if about.spec.events.feedback is None and _has_values(paths[0], fs):
        logger.warning(_NO_EFFECT, "value of history", NO_FEEDBACK)
    scorer: dict[str, Any] = {
        "bundle": bundle, "index": config.index, "context": context, "k": k, "now_s": now_s,
        "rerank": config.rerank.use, "on_request": on_request, "diversity": config.diversity, "rules": rules,
    }  # fmt: skip
    if config.evaluate.needs_no_actors(num_rows):
        tables = _read_here(paths, fs, columns, config.evaluate.batch_size)
        _write(out, schema, map(Scorer(**scorer), tables), num_rows=num_rows)
        return num_rows
    ray_cluster.connect()
    num_cpus = ray.cluster_resources().get("CPU", 1)
    # Small shares on small machines: reading needs one beside the actors, and a running service has its own.
    answers = (
        ray.data.read_parquet(paths, filesystem=fs, num_cpus=0.25)
        .select_columns(columns)
        .map_batches(
            Scorer,
            fn_constructor_kwargs=scorer,
            batch_size=config.evaluate.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=_num_actors(num_rows, int(num_cpus), config)),
            num_cpus=1 if num_cpus > 2 else 0.5,
        )
    )  # fmt: skip
    _write(out, schema, answers.iter_batches(batch_size=None, batch_format="pyarrow"), num_rows=num_rows)
    return num_rows


def _warn_of_unread(bundle: str, columns: Sequence[str], context: ContextSpec, *, reranked: bool) -> set[str]:
    """Name columns that the model cannot read; it is loaded once, and only for these. Returns those of the context."""
    reasons: dict[str, Callable[[Recommender], str | None]] = {
        QUERY: why_unheard,
        USER: partial(why_unread, reranked=reranked),
        PROBABILITY: lambda model: NO_CALIBRATION if model.calibration is None else None,
    }
    asked = [name for name in reasons if is_of_request(name, columns, context)]
    parts = [name for name in (TIMEZONE, *context.columns) if name in columns]
    model = load_recommender(bundle) if asked or parts else None
    for name in asked:
        if model is not None and (reason := reasons[name](model)) is not None:
            logger.warning(_NO_EFFECT, name, reason)
    if model is None or reranked:
        return set()
    unread, reason = unread_context(model, parts)
    for name in unread:
        logger.warning(_NO_EFFECT, name, reason)
    return set(unread)


def _warn_of_unknown(contexts: ContextReader, path: str, fs: pyarrow.fs.FileSystem, context: Sequence[str]) -> None:
    """Name values of the context that the model does not know, of the first requests."""
    with fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        columns = [name for name in context if name in file.schema_arrow.names]
        for batch in itertools.islice(file.iter_batches(_LOOKED_AT, columns=columns), 1):
            for told in unknown_in_columns(contexts, pa.Table.from_batches([batch])):
                logger.warning(told)


def _warn_of_unknown_items(items: str, path: str, fs: pyarrow.fs.FileSystem, context: ContextSpec) -> None:
    """Name items of requests that the catalogue lacks, of the first requests."""
    with fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        columns = [
            name for name in (HISTORY, DISLIKE, EXCLUDE, ALLOW) if is_of_request(name, file.schema_arrow.names, context)
        ]
        known = pq.read_table(items, columns=[ITEM_ID]).column(ITEM_ID) if columns else None
        for batch in itertools.islice(file.iter_batches(_LOOKED_AT, columns=columns), 1 if columns else 0):
            for name in columns:
                column = batch.column(name)
                ids = history_ids(column) if name == HISTORY else read_ids(column).flatten()
                if known is not None and (told := unknown_in_lists(name, ids, known)) is not None:
                    logger.warning(told)


def _has_values(path: str, fs: pyarrow.fs.FileSystem) -> bool:
    """Whether the events of a file's histories have a field of values."""
    with fs.open_input_file(path) as stream:
        found = pq.ParquetFile(stream).schema_arrow
    kind = found.field(HISTORY).type if HISTORY in found.names else pa.null()
    event = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.null()
    return pa.types.is_struct(event) and event.get_field_index(VALUE) >= 0


def _read_here(paths: list[str], fs: pyarrow.fs.FileSystem, columns: list[str], batch_size: int) -> Iterator[pa.Table]:
    """The requests of all files in order, at most `batch_size` at a time."""
    for path in paths:
        with fs.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size, columns=columns):
                yield pa.Table.from_batches([batch])


class Scorer:
    """The model and the index, and a table of requests to a table of answers; an actor of Ray Data, or in this process."""

    def __init__(
        self,
        *,
        bundle: str,
        index: IndexConfig,
        context: ContextSpec,
        k: int,
        now_s: float,
        rerank: bool = False,
        on_request: bool = False,
        diversity: DiversityConfig | None = None,
        rules: Rules | None = None,
    ):
        options: dict[str, Any] = {"diversity": diversity, "rules": rules}
        self._retriever = load_retriever(bundle, index, rerank=rerank, on_request=on_request, **options)
        self._k = k
        self._context, self._features = context, self._retriever.recommender.features
        self._now_s = now_s
        self._zone = self._retriever.recommender.spec.events.timezone

    def __call__(self, table: pa.Table) -> pa.Table:
        raw = raw_requests(table, self._context, now_s=self._now_s, zone=self._zone, features=self._features)
        requests, _ = self._retriever.recommender.make_requests(raw)
        wishes = read_wishes(table, self._context)
        found = self._found(requests, wishes)
        item_ids = [self._retriever.item_ids(positions) for positions, _ in found]
        scores = [row_scores for _, row_scores in found]
        columns = {
            REQUEST_ID: table.column(REQUEST_ID),
            ITEM_IDS: pa.array(item_ids, pa.list_(pa.string())),
            SCORES: pa.array(scores, pa.list_(pa.float32())),
        }
        columns[_NOTES] = pa.array(self._notes(requests, wishes, item_ids), pa.list_(pa.string()))
        if is_of_request(EXPLAIN, table.column_names, self._context):
            columns[WHY] = pa.array(self._reasons(requests, wishes, found), _WHY_TYPE)
        if is_of_request(PROBABILITY, table.column_names, self._context):
            asked, lists = [wish.probability for wish in wishes], [positions for positions, _ in found]
            told = list_probabilities(self._retriever.recommender, requests, lists, asked)
            columns[PROBABILITY] = pa.array(told, pa.list_(pa.float64()))
        return pa.table(columns)

    def _found(self, requests: Requests, wishes: list[ListWish]) -> Found:
        """The list of each request as it wishes it."""
        retriever = self._retriever
        if all(wish == ListWish() for wish in wishes):
            return retriever.top_k(requests, self._k)
        return retriever.top_k(
            requests,
            self._k,
            exclude=[retriever.positions(wish.exclude) for wish in wishes],
            allowed=[retriever.compile_filter(wish.rules, allow=wish.allow) for wish in wishes],
            diversity=[wish.diversity for wish in wishes],
            rerank=[wish.rerank for wish in wishes],
        )

    def _notes(self, requests: Requests, wishes: list[ListWish], lists: list[list[str]]) -> list[list[str]]:
        """What is to be said of the filter and of the length of each list."""
        retriever, told = self._retriever, []
        for n, (wish, found) in enumerate(zip(wishes, lists, strict=True)):
            notes = notes_of(retriever, wish.rules, {})
            if len(found) < self._k and not is_expected(len(found), notes, wish.allow):
                one, unwanted = requests.take(np.array([n])), retriever.positions(wish.exclude)
                short = why_short(
                    retriever, one, len(found), self._k, rules=wish.rules, allow=wish.allow, exclude=unwanted
                )
                notes.append(short)
            told.append([note.text for note in notes])
        return told

    def _reasons(self, requests: Requests, wishes: list[ListWish], found: Found) -> list[list[dict[str, Any]] | None]:
        """Why each item of a list is there, where its request asks for it."""
        made: list[list[dict[str, Any]] | None] = []
        for n, (wish, (positions, _)) in enumerate(zip(wishes, found, strict=True)):
            if not wish.explain:
                made.append(None)
                continue
            reasons = explain(self._retriever.recommender, requests.take(np.array([n])), positions)
            made.append([{name: list(part.items()) for name, part in asdict(why).items()} for why in reasons])
        return made


def _output_schema(inputs: list[str], more: Sequence[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    """The schema of the answers, whose request ids have a type that holds those of all files."""
    kinds = [open_parquet(file).schema_arrow.field(REQUEST_ID).type for file in inputs]
    try:
        parts = [pa.schema([(REQUEST_ID, kind)]) for kind in dict.fromkeys(kinds)]
        request_id = pa.unify_schemas(parts, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        other = next(n for n, kind in enumerate(kinds) if kind != kinds[0])
        raise UserError(
            f"{inputs[other]}: column {REQUEST_ID!r} is {kinds[other]}, and in {inputs[0]} it is {kinds[0]}; expected one "
            "type in all files"
        ) from error
    columns = [(REQUEST_ID, request_id), (ITEM_IDS, pa.list_(pa.string())), (SCORES, pa.list_(pa.float32()))]
    return pa.schema([*columns, *more])


def _num_actors(num_rows: int, num_cpus: int, config: Config) -> int:
    """As many as asked for; else one a CPU but one, and never more than there are batches."""
    return config.evaluate.actors or min(max(1, num_cpus - 1), math.ceil(num_rows / config.evaluate.batch_size))


def _is_same_file(path: str, other: str) -> bool:
    """Whether two paths or URIs are one file, as far as their names and the local file system tell."""
    if storage.is_uri(path) or storage.is_uri(other):
        return path == other
    return os.path.exists(other) and os.path.samefile(path, other)


def _write(out: str, schema: pa.Schema, tables: Iterable[pa.Table], *, num_rows: int) -> None:
    """Write tables to one Parquet file that appears when it is complete."""
    fs, inner = storage.filesystem(out)
    storage.make_dir(storage.parent(out))
    said: dict[str, tuple[int, Any]] = {}
    temporary = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with (
            failures.naming(out),
            pq.ParquetWriter(temporary, schema, filesystem=fs) as writer,
            progress_bar(num_rows, "recommend", "request") as progress,
        ):
            for table in tables:
                _count(said, table)
                writer.write_table(table.drop_columns(_NOTES).cast(schema))
                progress.update(table.num_rows)
        fs.move(temporary, inner)
        _tell(said, num_rows)
    except BaseException:
        storage.delete(f"{out}{temporary.removeprefix(inner)}")
        raise


def _count(said: dict[str, tuple[int, Any]], table: pa.Table) -> None:
    """Count the requests of each note of a table of answers, and keep the first of them; of so many notes at most."""
    for n, notes in enumerate(table.column(_NOTES).to_pylist()):
        for note in notes:
            if note in said or len(said) < _MOST_KINDS:
                count, first = said.get(note) or (0, table.column(REQUEST_ID)[n].as_py())
                said[note] = count + 1, first


def _tell(said: Mapping[str, tuple[int, Any]], num_rows: int) -> None:
    """Log what is to be said of requests, the most frequent first."""
    ordered = sorted(said.items(), key=lambda note: -note[1][0])
    for note, (count, first) in ordered[:_MOST_NOTES]:
        logger.warning("%s (%d of %d requests, such as %r)", note, count, num_rows, first)
    if len(ordered) > _MOST_NOTES:
        logger.warning("other requests have a filter without an item or a short list for other reasons")
