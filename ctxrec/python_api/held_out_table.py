"""Evaluation on a table of later events, in this process: the same protocol and figures as `ctxrec.evaluate`.

Legend: N requests, I items, E events of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing, time_columns
from ctxrec.data.events import US, action_sets
from ctxrec.data.item_rows import numbers_or_null
from ctxrec.data.requests import Requests
from ctxrec.evaluation.rank_requests import drop_targets
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.index.topk import top_k
from ctxrec.ingest.shards import check_single
from ctxrec.retrieval.raw_request import RawRequest
from ctxrec.retrieval.recommender import Recommender

_BATCH = 256
_SEED = 0  # of the resamples


def evaluate_table(model: Recommender, table: pa.Table, *, ks: Sequence[int], resamples: int) -> dict[str, Any]:
    """Rank the whole catalogue for each user of a table of events, by the model and by popularity.

    A user makes one request, at the time and in the context of their first event in the table. The history is what the
    model knows of the user from before. The targets are the items of the table.

    Args:
        model: the model.
        table: events with the columns of the log.
        ks: cut-offs of the metrics.
        resamples: number of bootstrap resamples.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: a column is missing, a time cannot be read, or no target may be recommended.
    """
    counts = np.asarray(model.items.column(schema.ITEM_TRAIN_EVENTS).combine_chunks().to_numpy(zero_copy_only=False))
    requests = _requests(model, table)
    seen = [np.zeros(0, np.int64)] * len(requests) if model.repeats else requests.seen()
    most, by_popularity = max(ks), np.broadcast_to(counts.astype(np.float64), (_BATCH, len(counts)))
    tops: dict[str, list[np.ndarray]] = {"model": [], "popularity": []}
    for start in range(0, len(requests), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(requests)))
        not_shown = [seen[n] for n in rows]
        tops["model"].append(top_k(model.scores(requests.take(rows)), most, not_shown))
        tops["popularity"].append(top_k(by_popularity[: len(rows)], most, not_shown))
    assert requests.target_offsets is not None and requests.target_items is not None
    lists = RankedLists(
        user_ids=requests.users.ids,
        target_offsets=requests.target_offsets,
        target_items=requests.target_items,
        target_actions=requests.target_actions,
        target_weights=requests.target_weights,
        actions=tuple(model.features.actions),
        history_lengths=requests.history.lengths,
        tops={name: np.concatenate(parts) for name, parts in tops.items()},
    )
    everything = np.ones(len(counts), bool)
    figures = summarise(lists, item_counts=counts, eligible=everything, ks=ks, resamples=resamples, seed=_SEED)
    return {"split": "table", "requests": len(lists), "notes": []} | figures


def _requests(model: Recommender, table: pa.Table) -> Requests:
    """One request for each user of the table, with targets."""
    events = model.spec.events
    for column in (events.user, events.item, events.time):
        if column not in table.column_names:
            raise UserError(
                f"the table to evaluate on has no column {column!r}; expected the columns of the log that the model was "
                f"trained on, found {', '.join(table.column_names)}"
            )
    for name in (events.user, events.item, events.time, events.action, events.value, *events.context.columns):
        if name in table.column_names:
            check_single(str(name), table.schema.field(name).type, "the table to evaluate on")
    times_E = _times(table.column(events.time), events)
    users_E = np.array(parsing.to_text(table.column(events.user)).to_pylist(), object)
    items_E = np.array(
        [model.item_position.get(item, -1) for item in parsing.to_text(table.column(events.item)).to_pylist()], np.int64
    )
    order = np.argsort(times_E, kind="stable")
    order = order[[users_E[n] is not None for n in order]]
    rows: dict[str, list[int]] = {}
    for n in order.tolist():
        rows.setdefault(users_E[n], []).append(n)
    rows = dict(sorted(rows.items()))  # by id, so that the intervals do not depend on the order of the table
    first = _contexts(model, table.take(pa.array([own[0] for own in rows.values()], pa.int64())))
    raw = [
        RawRequest(
            user_id=user, timestamp=times_E[own[0]] / US, context={k: v for k, v in known.items() if v is not None}
        )
        for (user, own), known in zip(rows.items(), first, strict=True)
    ]
    asked, _ = model.make_requests(raw)
    codes_E, values_E = _codes(model, table)
    actions_E, weights_E = action_sets(codes_E), model.kinds.weights(codes_E, values_E)
    targets, sets, weights, lengths = [], [], [], []
    for n, own in enumerate(rows.values()):
        seen = set() if model.repeats else set(asked.history.items[asked.history.row(n)].tolist())
        found: dict[int, int] = {}
        counts: dict[int, float] = {}
        for event in own:
            item = int(items_E[event])
            if item >= 0 and item not in seen:
                found[item] = found.get(item, 0) | int(actions_E[event])
                counts[item] = max(counts.get(item, -np.inf), float(weights_E[event]))
        targets += sorted(found)
        sets += [found[item] for item in sorted(found)]
        weights += [counts[item] for item in sorted(found)]
        lengths.append(len(found))
    requests = dataclasses.replace(
        asked,
        target_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_items=np.array(targets, np.int32),
        target_actions=np.array(sets, np.int64),
        target_weights=np.array(weights, np.float32) if model.kinds.are_judged else None,
    )
    requests = requests.take(np.flatnonzero(lengths))
    if not len(requests):
        raise UserError(
            f"no user of the table has a target that may be recommended, in {len(table)} rows; expected events with items "
            "of the catalogue that the user did not have before"
        )
    return drop_targets(requests, np.ones(len(model.item_ids), bool))


def _contexts(model: Recommender, table: pa.Table) -> list[dict[str, Any]]:
    """The context of each row, read from the columns as `prepare` reads them."""
    events, columns = model.spec.events, {}
    context = events.context
    for name in context.columns:
        if name in table.column_names:
            column = table.column(name)
            known = numbers_or_null(column, events.decimal) if name in context.numeric else parsing.to_text(column)
            columns[name] = known.to_pylist()
    return [{name: v[n] for name, v in columns.items() if v[n] is not None} for n in range(len(table))]


def _times(column: pa.ChunkedArray, events: EventsSpec) -> np.ndarray:
    """Times of a column as int64 [E] microseconds, read as those of the log.

    Raises:
        UserError: one of them cannot be read.
    """
    form = time_columns.detect_times([column.combine_chunks()], events.time_format)
    times, status = time_columns.to_times(column, form.unit, zone=events.timezone, time_format=events.time_format)
    if (bad := np.flatnonzero(status != time_columns.TIME_OK)).size:
        value = column[int(bad[0])].as_py()
        raise UserError(
            f"{bad.size} times of the table cannot be read, such as {value!r}; expected times as in the log"
        )
    return times


def _codes(model: Recommender, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The code of each event's action and value (`ctxrec.data.feedback`), int16 [E], and its value, float32 [E]."""
    events, kinds = model.spec.events, model.kinds
    actions, values = np.zeros(len(table), np.int16), np.full(len(table), np.nan, np.float32)
    if events.action is not None and events.action in table.column_names:
        texts = parsing.to_text(table.column(events.action)).to_pylist()
        actions = np.array([kinds.actions.get(text or "", 0) for text in texts], np.int16)
    if events.value is not None and events.value in table.column_names:
        values = parsing.to_numbers(table.column(events.value))[0]
    return kinds.codes(actions, values), values
