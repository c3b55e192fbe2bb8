"""From tables, files and names of columns to a dataset spec whose files lie in a folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import storage
from ctxrec.core.dataset_spec import ContextSpec, DatasetSpec, EventsSpec, FeedbackSpec, SplitSpec, load_spec
from ctxrec.core.errors import UserError
from ctxrec.core.toml import build_dataclass
from ctxrec.data.parsing import value_text
from ctxrec.ingest.guess import TableSample, Unsure, guess, sample_files
from ctxrec.ingest.guess.event_roles import context_kind
from ctxrec.ingest.guess.looked_table import LookedTable
from ctxrec.python_api.argument_names import in_python, says_everything
from ctxrec.python_api.frames import to_arrow

# Columns of these names are what they say, whatever their values look like.
_USUAL = {"user": "user_id", "item": "item_id", "time": "timestamp", "action": "action"}


def spec_of(
    interactions: Any,
    items: Any,
    users: Any,
    *,
    folder: str,
    columns: Mapping[str, str | None],
    context: Sequence[str] | None,
    actions: Mapping[str, float] | None,
    split: Mapping[str, Any] | None,
    feedback: Mapping[str, Any] | None = None,
    timezone: str | None = None,
    time_format: str | None = None,
    decimal: str | None = None,
) -> tuple[DatasetSpec, list[str]]:
    """The spec of some tables. Tables in memory are written into `folder`, and only where they have changed.

    What is not given is guessed as `ctxrec init` does it.

    Args:
        interactions: the log: a table, the path of a file, or a `dataset.toml`, which then says everything.
        items: the catalogue, a table or a path; None: there is none.
        users: attributes of users, a table or a path; None: there is none.
        folder: where tables in memory are written.
        columns: names of the log's columns by key of [events]; None takes the usual name (`user_id`, `item_id`,
            `timestamp`, `action`) where there is such a column, and else guesses.
        context: columns of the log that are known when a recommendation is asked for; None guesses.
        actions: weight of each action as a training target; None takes that of the guess.
        split: keys of [split].
        feedback: keys of [events.feedback]; None: values mean nothing.
        timezone: that of [events]; None: UTC.
        time_format: that of [events]; None guesses.
        decimal: that of all tables; None guesses.

    Returns:
        The spec, and what is not sure about it.

    Raises:
        UserError: a column is missing, a table is no table, or a `dataset.toml` is given with other arguments.
    """
    if says_everything(interactions):
        if any(
            value is not None
            for value in (
                items,
                users,
                context,
                actions,
                feedback,
                split,
                timezone,
                time_format,
                decimal,
                *columns.values(),
            )
        ):
            raise UserError(
                f"{interactions} says which tables and columns there are; expected no other tables, columns, context, "
                "actions, feedback, split, timezone, time_format or decimal beside it. Change the file, or give the tables themselves"
            )
        return load_spec(os.fspath(interactions)), []
    if isinstance(context, str) or not all(
        isinstance(given, (Mapping, type(None))) for given in (actions, feedback, split)
    ):
        raise UserError(
            f"context is {context!r}, actions {actions!r}, feedback {feedback!r} and split {split!r}; expected a list of "
            "columns, weights by action, and values by key of [events.feedback] and of [split]"
        )
    tables = {"events": _sample(interactions, folder, "interactions")}
    tables |= {} if items is None else {"items": _sample(items, folder, "items")}
    tables |= {} if users is None else {"users": _sample(users, folder, "users")}
    found = set(tables["events"].rows.column_names)
    known = {key: name for key, name in _USUAL.items() if name in found}
    known |= {key: str(name) for key, name in columns.items() if name is not None}  # pandas may number its columns
    made = guess(
        list(tables.values()),
        roles={role: table.name for role, table in tables.items()},
        columns=known,
        name="interactions",
    )
    _check_found(made.spec.events, tables["events"].rows.column_names)
    events, unsure = made.spec.events, [_told(doubt) for doubt in made.unsure]
    if timezone is not None:
        events = dataclasses.replace(events, timezone=timezone)
        unsure = [text for text in unsure if "names no time zone" not in text]
    if time_format is not None:
        events = dataclasses.replace(events, time_format=time_format)
        unsure = [text for text in unsure if not text.startswith("time_format") and "cannot be read" not in text]
    if context is not None:
        events = dataclasses.replace(events, context=_context(made.tables["events"], tables["events"], context))
        unsure = [text for text in unsure if not text.startswith("context")]
    if actions is not None:
        weights = {"" if action is None else str(value_text(action)): weight for action, weight in actions.items()}
        events = dataclasses.replace(events, actions=weights)
        unsure = [text for text in unsure if "actions={" not in text]
    if feedback is not None:
        meaning = build_dataclass(FeedbackSpec, dict(feedback), source="feedback")
        if events.value is None:
            raise UserError(
                "feedback says what values mean, and no column of interactions was taken for the value; name it with value="
            )
        events = dataclasses.replace(events, feedback=meaning)
        unsure = [text for text in unsure if not text.startswith("events.feedback")]
    spec = dataclasses.replace(made.spec, events=events)
    if decimal is not None:
        of_all = {name: getattr(spec, name) for name in ("events", "items", "users")}
        changed = {name: dataclasses.replace(of, decimal=decimal) for name, of in of_all.items() if of is not None}
        spec = dataclasses.replace(spec, **changed)
        unsure = [text for text in unsure if "decimal" not in text]
    if split is not None:
        spec = dataclasses.replace(spec, split=build_dataclass(SplitSpec, dict(split), source="split"))
    return spec, unsure


def _check_found(events: EventsSpec, found: Sequence[str]) -> None:
    """Check that a log has a user, an item and a time.

    Raises:
        UserError: it names the argument for what is missing.
    """
    for key, what in (("user", "the user"), ("item", "the item"), ("time", "a time")):
        if not getattr(events, key):
            more = (
                " Where only the order is known, add a column that counts the rows: range(len(log))"
                if key == "time"
                else ""
            )
            raise UserError(
                f"no column of interactions looks like {what}; found columns {', '.join(map(str, found))}. Name it: "
                f'{key}="COLUMN".{more}'
            )


def _told(doubt: Unsure) -> str:
    """A doubt in the words of a caller."""
    return f"{doubt.key.removeprefix('events.')}: {in_python(doubt.text)}"


def _context(log: LookedTable, table: TableSample, names: Sequence[str]) -> ContextSpec:
    """The named columns of the log as context: numbers by their types, texts of words as texts, others as categories."""
    types = {name: table.rows.schema.field(name).type for name in table.rows.column_names}
    kinds: dict[str, list[str]] = {"categorical": [], "numeric": [], "text": []}
    for name in map(str, names):
        if name not in types:
            raise UserError(
                f"interactions has no column {name!r}; found columns {', '.join(types)}. Name the right one with context="
            )
        kind = types[name]
        is_number = any(
            test(kind)
            for test in (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_duration)
        )
        is_words = not is_number and context_kind(log.looks[name]) == "text"
        kinds["numeric" if is_number else "text" if is_words else "categorical"].append(name)
    return ContextSpec(**{kind: tuple(found) for kind, found in kinds.items()})


def _sample(table: Any, folder: str, what: str) -> TableSample:
    """A sample of a table under its absolute path; a table in memory is written into `folder` first."""
    if isinstance(table, (str, os.PathLike)):
        path = os.fspath(table)
        return sample_files(path if storage.is_uri(path) else os.path.abspath(path))
    arrow = to_arrow(table, what=what)
    path = storage.join(folder, f"{what}.parquet")
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(arrow.replace_schema_metadata(None), sink)
    except (pa.ArrowException, OverflowError) as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"{what} has a column of a type that Parquet does not have ({told}); expected texts, numbers, times or lists of "
            "these. Convert the column, or leave it out"
        ) from error
    content = sink.getvalue().to_pybytes()
    if not storage.exists(path) or storage.read_bytes(path) != content:
        storage.write_bytes(path, content)
    return sample_files(path)
