"""What is to be said of a file of requests: columns and values that have no effect, and notes of its rows, as over HTTP."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from ctxrec.core.dataset_spec import ContextSpec
from ctxrec.core.schema import ITEM_ID
from ctxrec.core.time_zones import TIMEZONE
from ctxrec.data.parsing import to_text
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.history_columns import VALUE, history_ids, read_ids
from ctxrec.retrieval.item_probabilities import NO_CALIBRATION
from ctxrec.retrieval.list_columns import ALLOW, EXCLUDE, PROBABILITY, RERANK
from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.no_effect import (
    NO_FEEDBACK,
    NO_SECOND_STAGE,
    unknown_in_columns,
    unknown_in_lists,
    unread_context,
    why_unread,
)
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_files import DISLIKE, HISTORY, QUERY, REQUEST_ID, TIMESTAMP, USER_ID, is_of_request
from ctxrec.retrieval.request_reader import ContextReader
from ctxrec.retrieval.user_columns import USER

logger = logging.getLogger(__name__)

_NO_EFFECT = "the column %s has no effect: %s"
_LOOKED_AT = 100_000  # requests whose values are looked at
_MOST_NOTES, _MOST_KINDS = 20, 1000  # notes that are told, and different ones that are counted


def warn_of_unread(
    bundle: str, columns: Sequence[str], context: ContextSpec, *, reranked: bool, has_second_stage: bool
) -> set[str]:
    """Name columns that the model cannot read; it is loaded once, and only for these.

    Args:
        bundle: the model.
        columns: of the file.
        context: features of the data set's contexts.
        reranked: whether a second stage may read requests.
        has_second_stage: whether the model has one.

    Returns:
        Those of the context.
    """
    if is_of_request(RERANK, columns, context) and not has_second_stage:
        logger.warning(_NO_EFFECT, RERANK, NO_SECOND_STAGE)
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


class FirstRequests:
    """The first requests of a file, and warnings of what they say.

    Args:
        path: of the file within `fs`.
        columns: that are read.
        context: features of the data set's contexts.
    """

    def __init__(self, path: str, fs: pyarrow.fs.FileSystem, columns: Sequence[str], context: ContextSpec) -> None:
        self._context = context
        with fs.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            batches = list(itertools.islice(file.iter_batches(_LOOKED_AT, columns=list(columns)), 1))
            self._table = pa.Table.from_batches(batches, file.schema_arrow if not batches else None)

    def warn(self, contexts: ContextReader, items: str, *, unread: set[str], has_feedback: bool) -> None:
        """Name what of the requests has no effect.

        Args:
            contexts: of the model.
            items: path of its item table.
            unread: columns of the context of which that is said already.
            has_feedback: whether values of events count.
        """
        said = [*self._says_nothing(unread), *self._unknown_items(items)]
        known = [n for n in self._context.categorical if n in self._table.column_names and n not in unread]
        for text in (*said, *unknown_in_columns(contexts, self._table.select(known))):
            logger.warning("%s", text)
        if not has_feedback and self._has_values:
            logger.warning(_NO_EFFECT, "value of history", NO_FEEDBACK)

    def _says_nothing(self, unread: set[str]) -> Iterator[str]:
        """Columns without a value, and blank texts, which count as nulls: a null is how a row leaves a field out."""
        num, texts = self._table.num_rows, {QUERY, TIMEZONE, *self._context.categorical, *self._context.text}
        for name in self._table.column_names:
            column = self._table.column(name)
            if name in (REQUEST_ID, USER_ID, TIMESTAMP) or name in unread or not num:
                continue
            blank = to_text(column).null_count - column.null_count if name in texts else 0
            if column.null_count + blank == num:
                yield f"the column {name} has no effect: all of its values are null or blank, which says nothing"
            elif blank:
                yield f"the column {name}: {blank} of {num} values are blank texts, which say nothing, as a null does"

    def _unknown_items(self, items: str) -> Iterator[str]:
        """Columns with items that the catalogue lacks."""
        names = self._table.column_names
        columns = [name for name in (HISTORY, DISLIKE, EXCLUDE, ALLOW) if is_of_request(name, names, self._context)]
        known = pq.read_table(items, columns=[ITEM_ID]).column(ITEM_ID) if columns else pa.chunked_array([[""]])
        for name in columns:
            column = self._table.column(name)
            ids = history_ids(column) if name == HISTORY else read_ids(column).flatten()
            if (told := unknown_in_lists(name, ids, known)) is not None:
                yield told

    @property
    def _has_values(self) -> bool:
        """Whether the events of histories have a field of values."""
        kind = self._table.schema.field(HISTORY).type if HISTORY in self._table.column_names else pa.null()
        event = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else pa.null()
        return pa.types.is_struct(event) and event.get_field_index(VALUE) >= 0


class RowNotes:
    """Counts the requests of each note, and keeps the first of them; of so many different notes at most."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[int, Any]] = {}

    def add(self, request_ids: pa.ChunkedArray, notes: Sequence[Sequence[str]]) -> None:
        """Count the notes of some requests."""
        for n, own in enumerate(notes):
            for note in own:
                if note in self._said or len(self._said) < _MOST_KINDS:
                    count, first = self._said.get(note) or (0, request_ids[n].as_py())
                    self._said[note] = count + 1, first

    def tell(self, num_rows: int) -> None:
        """Log what is to be said of requests, the most frequent first."""
        said: Mapping[str, tuple[int, Any]] = self._said
        ordered = sorted(said.items(), key=lambda note: -note[1][0])
        for note, (count, first) in ordered[:_MOST_NOTES]:
            logger.warning("%s (%d of %d requests, such as %r)", note, count, num_rows, first)
        if len(ordered) > _MOST_NOTES:
            logger.warning(
                "other requests have values without an effect, a filter without an item or a short list for other reasons"
            )
