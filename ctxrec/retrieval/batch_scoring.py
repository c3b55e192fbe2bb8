"""Batch scoring: requests from Parquet, a pool of Ray Data actors with the model, one Parquet file out.

A small file is scored in the command's own process, as Ray and the actors would take longer to start than to score it.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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
from ctxrec.core.errors import UserError, require
from ctxrec.core.run_paths import BundlePaths, reranker_beside
from ctxrec.core.terminal import progress_bar
from ctxrec.core.time_zones import TIMEZONE, UTC, check_zone
from ctxrec.data.clock import Clock
from ctxrec.data.events import EARLIEST_S, LATEST_S, MAX_NUMBER
from ctxrec.data.parsing import to_text
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.history_columns import (
    check_history,
    epoch_seconds,
    float_numbers,
    history_times,
    is_numeric,
    read_histories,
)
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.no_effect import NO_SECOND_STAGE, unknown_in_columns
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.request_reader import MAX_QUERY, ContextReader
from ctxrec.retrieval.reranker_files import second_stage_of
from ctxrec.retrieval.retriever import Retriever, load_retriever
from ctxrec.retrieval.slate.rules import Rules, rules_of

logger = logging.getLogger(__name__)

_LOOKED_AT = 100_000  # requests whose contexts are looked at for values that the model does not know

REQUEST_ID, USER_ID, TIMESTAMP, HISTORY = "request_id", "user_id", "timestamp", "history"
# These and TIMEZONE are of the request unless the context has a feature of that name, which the column then is.
QUERY, RERANK = "query", "rerank"
ITEM_IDS, SCORES = "item_ids", "scores"
# Times below these sizes are likely in such units, and divided by so much they are seconds.
_UNITS = ((1e14, "milliseconds", "1000"), (1e17, "microseconds", "10^6"))


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
    columns, num_rows = _check_requests(inputs, context)
    if QUERY in columns and QUERY not in context.columns:
        reason = why_unheard(load_recommender(bundle))
        if reason is not None:
            logger.warning("the column %s has no effect: %s", QUERY, reason)
    on_request = RERANK in columns and RERANK not in context.columns
    if on_request and second_stage_of(bundle, manifest["model_version"], required=False) is None:
        logger.warning("the column %s has no effect: %s", RERANK, NO_SECOND_STAGE)
    schema = _output_schema(inputs)
    if num_rows == 0:
        _write(out, schema, (), num_rows=0)
        return 0
    fs, _ = storage.filesystem(inputs[0])
    paths = [storage.filesystem(file)[1] for file in inputs]
    contexts = ContextReader(about.features, Clock.of(about.spec, about.features))
    _warn_of_unknown(contexts, paths[0], fs, context)
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


def _warn_of_unknown(contexts: ContextReader, path: str, fs: pyarrow.fs.FileSystem, context: ContextSpec) -> None:
    """Name values of the context that the model does not know, of the first requests."""
    with fs.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        columns = [name for name in context.categorical if name in file.schema_arrow.names]
        for batch in itertools.islice(file.iter_batches(_LOOKED_AT, columns=columns), 1):
            for told in unknown_in_columns(contexts, pa.Table.from_batches([batch])):
                logger.warning(told)


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
        self._on_request = on_request
        self._k = k
        self._context = context
        self._now_s = now_s
        self._zone = self._retriever.recommender.spec.events.timezone

    def __call__(self, table: pa.Table) -> pa.Table:
        raw = raw_requests(table, self._context, now_s=self._now_s, zone=self._zone)
        requests, _ = self._retriever.recommender.make_requests(raw)
        said = table.column(RERANK).to_pylist() if self._on_request else None
        found = self._retriever.top_k(requests, self._k, rerank=said)
        item_ids = [self._retriever.item_ids(positions) for positions, _ in found]
        scores = [row_scores for _, row_scores in found]
        return pa.table(
            {
                REQUEST_ID: table.column(REQUEST_ID),
                ITEM_IDS: pa.array(item_ids, pa.list_(pa.string())),
                SCORES: pa.array(scores, pa.list_(pa.float32())),
            }
        )


def raw_requests(table: pa.Table, context: ContextSpec, *, now_s: float, zone: str = UTC) -> list[RawRequest]:
    """The rows of R.parquet as requests; a column that is missing is as if it were null in every row.

    Timestamps of a type without a time zone are those of `zone`.
    """
    nothing = [None] * table.num_rows

    def values(name: str, convert: Callable[[pa.ChunkedArray], pa.Array]) -> list[Any]:
        return convert(table.column(name)).to_pylist() if name in table.column_names else nothing

    users = values(USER_ID, to_text)
    times = values(TIMESTAMP, lambda column: epoch_seconds(column, zone))
    histories = read_histories(table.column(HISTORY), context, zone) if HISTORY in table.column_names else nothing
    features = {name: values(name, to_text) for name in context.categorical + context.text}
    features |= {name: values(name, float_numbers) for name in context.numeric}
    features.setdefault(TIMEZONE, values(TIMEZONE, to_text))
    queries = nothing if QUERY in context.columns else values(QUERY, to_text)
    return [
        RawRequest(
            user_id=users[n],
            timestamp=now_s if times[n] is None else times[n],
            context={name: column[n] for name, column in features.items() if column[n] is not None},
            history=histories[n],
            query=queries[n],
        )
        for n in range(table.num_rows)
    ]


def _check_requests(inputs: list[str], context: ContextSpec) -> tuple[list[str], int]:
    """The columns to read and the number of rows, after a check of all that a file can have wrong."""
    known = list(dict.fromkeys([REQUEST_ID, USER_ID, TIMESTAMP, TIMEZONE, HISTORY, QUERY, RERANK, *context.columns]))
    num_rows, wanted, unused = 0, None, []
    for file in inputs:
        parquet = _open_parquet(file)
        names = parquet.schema_arrow.names
        if twice := next((name for name in known if names.count(name) > 1), None):
            raise UserError(f"{file} has two columns {twice!r}; expected each name once. Rename one of them")
        types = {field.name: field.type for field in parquet.schema_arrow}
        present = [name for name in known if name in types]
        if wanted is not None and set(wanted) != set(present):
            raise UserError(f"{file} has the columns {', '.join(present)}; {inputs[0]} has {', '.join(wanted)}")
        wanted = present
        unused = [name for name in types if name not in known]
        _check_columns(types, context, source=file)
        if HISTORY in types:
            check_history(types[HISTORY], context, source=file)
        _check_rows(parquet, present, context, source=file)
        num_rows += parquet.metadata.num_rows
    if unused:
        logger.warning("columns %s are not used; known are %s", ", ".join(unused), ", ".join(known))
    return wanted or [], num_rows


def _open_parquet(file: str) -> pq.ParquetFile:
    fs, inner = storage.filesystem(file)
    try:
        return pq.ParquetFile(inner, filesystem=fs)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is no Parquet file ({str(error).splitlines()[0]})") from error


def _check_columns(types: dict[str, pa.DataType], context: ContextSpec, *, source: str) -> None:
    for name in (REQUEST_ID, TIMESTAMP):
        if name not in types:
            raise UserError(f"{source}: column {name!r} is missing; found {', '.join(types) or 'no column'}")
    if USER_ID not in types and HISTORY not in types:
        raise UserError(f"{source}: found neither {USER_ID!r} nor {HISTORY!r}; expected one of them, to know who asks")
    for name in (USER_ID, TIMEZONE, QUERY, *context.columns):
        if name in types and pa.types.is_nested(types[name]):
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected one value a request")
    if RERANK in types and RERANK not in context.columns and not _is_truth(types[RERANK]):
        raise UserError(f"{source}: column {RERANK!r} is {types[RERANK]}; expected true, false or null (bool)")
    for name in (TIMESTAMP, *context.numeric):
        if name in types and not is_numeric(types[name], times=name == TIMESTAMP):
            wanted = "epoch seconds, UTC, or a timestamp" if name == TIMESTAMP else "numbers"
            raise UserError(f"{source}: column {name!r} is {types[name]}; expected {wanted}")


def _is_truth(kind: pa.DataType) -> bool:
    """Whether a column holds true, false and null alone."""
    return pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _check_rows(parquet: pq.ParquetFile, columns: list[str], context: ContextSpec, *, source: str) -> None:
    """Read all that a task will read, where a mistake is one line."""
    try:
        for batch in parquet.iter_batches(columns=columns):
            _check_times(batch.column(TIMESTAMP), TIMESTAMP, source=source)
            if QUERY in columns and QUERY not in context.columns:
                longest = pc.max(pc.utf8_length(to_text(batch.column(QUERY)))).as_py() or 0
                require(
                    longest <= MAX_QUERY, f"{source}: the longest query", longest, f"at most {MAX_QUERY:,} characters"
                )
            if TIMEZONE in columns and TIMEZONE not in context.columns:
                for zone in to_text(batch.column(TIMEZONE)).unique().drop_null().to_pylist():
                    check_zone(zone, f"{source}: {TIMEZONE}")
            for name in set(context.numeric).intersection(columns):
                _check_numbers(batch.column(name), name, source=source)
            if HISTORY in batch.schema.names and (times := history_times(batch.column(HISTORY))) is not None:
                _check_times(times, "timestamp of the history", source=source)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the machine, and not of the content
            raise
        raise UserError(
            f"{source} cannot be read ({str(error).splitlines()[0]}); expected a whole Parquet file. Write it again"
        ) from error


def _check_numbers(column: pa.Array, what: str, *, source: str) -> None:
    for found in pc.min_max(float_numbers(column)).as_py().values():
        if found is not None and MAX_NUMBER < abs(found) < math.inf:
            raise UserError(
                f"{source}: {what} is {found:g}; expected numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}. Leave it empty "
                "where it is not known"
            )


def _check_times(column: pa.Array, what: str, *, source: str) -> None:
    for found in pc.min_max(epoch_seconds(column, UTC)).as_py().values():
        if found is not None and not EARLIEST_S <= found <= LATEST_S:
            unit, factor = next(
                ((unit, factor) for limit, unit, factor in _UNITS if abs(found) < limit), ("nanoseconds", "10^9")
            )
            raise UserError(
                f"{source}: {what} {found:g} is outside the years 1 to 9999; expected epoch seconds, UTC "
                f"(divide {unit} by {factor})"
            )


def _output_schema(inputs: list[str]) -> pa.Schema:
    """The schema of the answers, whose request ids have a type that holds those of all files."""
    kinds = [_open_parquet(file).schema_arrow.field(REQUEST_ID).type for file in inputs]
    try:
        parts = [pa.schema([(REQUEST_ID, kind)]) for kind in dict.fromkeys(kinds)]
        request_id = pa.unify_schemas(parts, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        other = next(n for n, kind in enumerate(kinds) if kind != kinds[0])
        raise UserError(
            f"{inputs[other]}: column {REQUEST_ID!r} is {kinds[other]}, and in {inputs[0]} it is {kinds[0]}; expected one "
            "type in all files"
        ) from error
    return pa.schema([(REQUEST_ID, request_id), (ITEM_IDS, pa.list_(pa.string())), (SCORES, pa.list_(pa.float32()))])


def _num_actors(num_rows: int, num_cpus: int, config: Config) -> int:
    """As many as asked for; else one a CPU but one, and never more than there are batches."""
    return config.evaluate.actors or min(max(1, num_cpus - 1), math.ceil(num_rows / config.evaluate.batch_size))


def _write(out: str, schema: pa.Schema, tables: Iterable[pa.Table], *, num_rows: int) -> None:
    """Write tables to one Parquet file that appears when it is complete."""
    fs, inner = storage.filesystem(out)
    storage.make_dir(storage.parent(out))
    temporary = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with (
            failures.naming(out),
            pq.ParquetWriter(temporary, schema, filesystem=fs) as writer,
            progress_bar(num_rows, "recommend", "request") as progress,
        ):
            for table in tables:
                writer.write_table(table.cast(schema))
                progress.update(table.num_rows)
        fs.move(temporary, inner)
    except BaseException:
        storage.delete(f"{out}{temporary.removeprefix(inner)}")
        raise
