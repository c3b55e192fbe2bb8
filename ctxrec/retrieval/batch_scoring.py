"""Batch scoring: requests from Parquet, a pool of Ray Data actors with the model, one Parquet file out.

A small file is scored in the command's own process, as Ray and the actors would take longer to start than to score it.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
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
from ctxrec.core.terminal import progress_bar
from ctxrec.data.clock import Clock
from ctxrec.data.requests import Requests
from ctxrec.memory.scoring import Scored
from ctxrec.retrieval.cross_encoder import Found
from ctxrec.retrieval.explain import Why, explain
from ctxrec.retrieval.file_notes import FirstRequests, RowNotes, warn_of_unread
from ctxrec.retrieval.item_probabilities import list_probabilities
from ctxrec.retrieval.list_columns import EXPLAIN, PROBABILITY, RERANK, ListWish, read_wishes
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.no_effect import not_calibrated, notes_of, notes_of_events
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.request_files import (
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

logger = logging.getLogger(__name__)

_OF_COLUMNS = ("attributes_not_read",)  # notes that are told of a whole column, before anything is computed
_UNKNOWN_USER = (
    "the model does not know the user, and the row has no history, so the list goes by context and popularity"
)
_NOTES = "notes"  # of the answers on their way to the file: what is to be said of each request
ITEM_IDS, SCORES, WHY, PROBABILITY_OF = "item_ids", "scores", "why", "probability_of"
_EFFECTS = pa.map_(pa.string(), pa.float64())  # of the parts of a request on the score of an item
_WHY_TYPE = pa.list_(pa.struct([(part.name, _EFFECTS) for part in fields(Why)]))
_OPTIONAL = {
    EXPLAIN: [(WHY, _WHY_TYPE)],
    PROBABILITY: [(PROBABILITY, pa.list_(pa.float64())), (PROBABILITY_OF, pa.string())],
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
    reranked = found and (on_request or config.rerank.use)
    unread = warn_of_unread(bundle, columns, context, reranked=reranked, has_second_stage=found)
    more = [kind for name, kinds in _OPTIONAL.items() if is_of_request(name, columns, context) for kind in kinds]
    schema = _output_schema(inputs, more)
    if num_rows == 0:
        _write(out, schema, (), num_rows=0)
        return 0
    fs, _ = storage.filesystem(inputs[0])
    paths = [storage.filesystem(file)[1] for file in inputs]
    contexts = ContextReader(about.features, Clock.of(about.spec, about.features))
    first = FirstRequests(paths[0], fs, columns, context)
    first.warn(contexts, BundlePaths(folder).items, unread=unread, has_feedback=about.spec.events.feedback is not None)
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
        scored = self._retriever.scored(requests)
        found = self._found(requests, wishes, scored)
        item_ids = [self._retriever.item_ids(positions) for positions, _ in found]
        scores = [row_scores for _, row_scores in found]
        columns = {
            REQUEST_ID: table.column(REQUEST_ID),
            ITEM_IDS: pa.array(item_ids, pa.list_(pa.string())),
            SCORES: pa.array(scores, pa.list_(pa.float32())),
        }
        columns[_NOTES] = pa.array(self._notes(raw, requests, wishes, item_ids), pa.list_(pa.string()))
        if is_of_request(EXPLAIN, table.column_names, self._context):
            columns[WHY] = pa.array(self._reasons(requests, wishes, found), _WHY_TYPE)
        if is_of_request(PROBABILITY, table.column_names, self._context):
            asked, lists = [wish.probability for wish in wishes], [positions for positions, _ in found]
            model = self._retriever.recommender
            told = list_probabilities(model, requests, lists, asked, scored=scored)
            of = None if model.calibration is None else model.calibration.of
            columns[PROBABILITY] = pa.array(told, pa.list_(pa.float64()))
            columns[PROBABILITY_OF] = pa.array([None if p is None else of for p in told], pa.string())
        return pa.table(columns)

    def _found(self, requests: Requests, wishes: list[ListWish], scored: Scored) -> Found:
        """The list of each request as it wishes it."""
        retriever = self._retriever
        if all(wish == ListWish() for wish in wishes):
            return retriever.top_k(requests, self._k, scored=scored)
        return retriever.top_k(
            requests,
            self._k,
            exclude=[retriever.positions(wish.exclude) for wish in wishes],
            allowed=[retriever.compile_filter(wish.rules, allow=wish.allow) for wish in wishes],
            diversity=[wish.diversity for wish in wishes],
            rerank=[wish.rerank for wish in wishes],
            scored=scored,
        )

    def _notes(
        self, raw: Sequence[RawRequest], requests: Requests, wishes: list[ListWish], lists: list[list[str]]
    ) -> list[list[str]]:
        """What is to be said of who asks, the history, the attributes, the filter and the length of each list."""
        retriever, told = self._retriever, []
        known = retriever.recommender.user_row
        for n, (asked, wish, found) in enumerate(zip(raw, wishes, lists, strict=True)):
            own = notes_of(retriever, wish.rules, {}, asked.user, rerank=wish.rerank)
            notes = notes_of_events(retriever.recommender, asked.history or ())
            notes += [note for note in own if note.kind not in _OF_COLUMNS]
            notes += not_calibrated(retriever, asked.query, asked.dislike) if wish.probability else []
            if len(found) < self._k and not is_expected(len(found), notes, wish.allow):
                one, unwanted = requests.take(np.array([n])), retriever.positions(wish.exclude)
                short = why_short(
                    retriever, one, len(found), self._k, rules=wish.rules, allow=wish.allow, exclude=unwanted
                )
                notes.append(short)
            of_user = [_UNKNOWN_USER] if asked.history is None and asked.user_id not in known else []
            told.append([*of_user, *(note.text for note in notes)])
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
    said = RowNotes()
    temporary = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with (
            failures.naming(out),
            pq.ParquetWriter(temporary, schema, filesystem=fs) as writer,
            progress_bar(num_rows, "recommend", "request") as progress,
        ):
            for table in tables:
                said.add(table.column(REQUEST_ID), table.column(_NOTES).to_pylist())
                writer.write_table(table.drop_columns(_NOTES).cast(schema))
                progress.update(table.num_rows)
        fs.move(temporary, inner)
        said.tell(num_rows)
    except BaseException:
        storage.delete(f"{out}{temporary.removeprefix(inner)}")
        raise
