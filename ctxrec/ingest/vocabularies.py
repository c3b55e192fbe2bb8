"""Vocabularies of categories and scales of numbers: of items and users from their tables, of context from the log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import DatasetSpec, EventsSpec, ItemsSpec, UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.core.toml import toml_value
from ctxrec.data import list_texts, parsing
from ctxrec.data.clock import POSITIONS_BELOW_US
from ctxrec.data.column_facts import (
    EXAMPLES,
    ColumnFacts,
    TextFacts,
    examples,
    notes_on,
    number_range,
    odd_values,
    share,
    short,
)
from ctxrec.data.feedback import GRADES, graded_actions
from ctxrec.data.item_rows import Entities, value_lists
from ctxrec.data.prepared import MAX_VALUES, FeatureMeta
from ctxrec.ingest.log_facts import LogFacts, NumberSums, ValueCounts

MAX_CATEGORY_VALUES = 100_000  # values of a categorical column that keep a code of their own, the most frequent ones
MOST_NAMED = 20  # values that a message names
MAX_ACTIONS = 32_767  # codes are int16


def vocabulary(values: pa.Array, counts: np.ndarray | pa.Array | None, limit: int) -> list[str]:
    """Distinct values by falling frequency, ties by value, at most `limit`.

    Args:
        values: strings, null = missing; repeated values are counted together.
        counts: how often each stands for; None: once.
        limit: largest size of the vocabulary.
    """
    counts = np.ones(len(values), np.int64) if counts is None else counts
    table = pa.table({"value": values.cast(pa.string()), "n": counts}).drop_null()
    table = table.group_by("value").aggregate([("n", "sum")])
    table = table.sort_by([("n_sum", "descending"), ("value", "ascending")])
    return table.column("value").slice(0, limit).to_pylist()


def scale(sums: NumberSums) -> dict[str, float]:
    """Mean and standard deviation; the deviation is 1 where there is no spread."""
    if not sums.count:
        return {"mean": 0.0, "std": 1.0}
    mean = sums.total / sums.count
    variance = max(sums.squares / sums.count - mean**2, 0.0)
    return {"mean": float(mean), "std": float(variance**0.5) if variance > 1e-12 else 1.0}


@dataclass
class TableFeatures:
    """Features of the item or user table, and what a person wants to know of them."""

    categories: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)  # categories with several values, and the most that a row has
    columns: list[ColumnFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def table_features(
    entities: Entities, section: ItemsSpec | UsersSpec | None, *, what: str, limit: int
) -> TableFeatures:
    """Vocabularies and scales of a table's features over its rows.

    Args:
        entities: the table.
        section: its section in the spec.
        what: "items" or "users".
        limit: largest size of a vocabulary.
    """
    made, rows = TableFeatures(), len(entities.ids)
    if section is None:
        return made
    made.notes += notes_on(f"[{what}] {section.id}", odd_values(entities.ids, np.ones(rows, np.int64), ids=True))
    made.columns.append(ColumnFacts(section.id, "id", 0.0, rows, examples(entities.ids.slice(0, EXAMPLES))))
    for name in section.text:
        facts = sum((TextFacts.of(table.column(name)) for table in entities.tables), TextFacts())
        made.columns.append(ColumnFacts(name, "text", share(facts.missing, rows), examples=list(facts.examples)))
    for name in section.categorical:
        lists = entities.column(name, value_lists) if entities.tables else value_lists(pa.array([], pa.string()))
        values = lists.flatten()
        made.categories[name] = vocabulary(values, None, limit)
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        facts_ = ColumnFacts(
            name, "categorical", share(int((lengths == 0).sum()), rows), pc.count_distinct(values).as_py(),
            examples(made.categories[name]),
        )  # fmt: skip
        made.columns.append(facts_)
        made.notes += _notes_on_lists(entities, name, what, section.separators.get(name))
        if any(parsing.as_lists(table.column(name)) is not None for table in entities.tables):
            made.lists[name] = int(min(max(lengths.max(initial=1), 1), MAX_VALUES))
        if what == "users" and (longer := int((lengths > MAX_VALUES).sum())):
            made.notes.append(
                f"{name}: {longer} users have more than {MAX_VALUES} values; the first {MAX_VALUES} are read"
            )
    for name in section.numeric:
        parts = [parsing.to_numbers(table.column(name), decimal=section.decimal) for table in entities.tables]
        values = np.concatenate([p[0] for p in parts] or [np.zeros(0, np.float32)])
        wrong = [
            v for t, p in zip(entities.tables, parts, strict=True) for v in t.column(name).filter(pa.array(p[1]))[:1]
        ]
        example = short(str(wrong[0].as_py())) if wrong else ""
        sums = NumberSums.of(values, sum(int(p[1].sum()) for p in parts), bad_example=example)
        made.numbers[name] = scale(sums)
        made.notes += sums.note(name, "table")
        missing = share(rows - sums.count, rows)
        made.columns.append(ColumnFacts(name, "numeric", missing, examples=number_range(sums.low, sums.high)))
    return made


def _notes_on_lists(entities: Entities, name: str, what: str, separator: str | None) -> list[str]:
    """A note where a column of single values looks like lists, or where its separator divides nothing."""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
    if separator is None:
        for table in entities.tables:
            found = list_texts.hint(table.column(name))
            if found is not None:
                form = "are in brackets" if found.separator == list_texts.BRACKETS else f"have {found.separator!r}"
                return [
                    f"column {name!r} of [{what}] looks like lists: {found.share:.0%} of {found.seen:,} values {form}, "
                    f"such as {short(found.example)!r}, and each counts as one value. To divide them, write {key} = "
                    f"{toml_value(found.separator)} under [{what}.separators] in the dataset spec"
                ]
        return []
    lists = [table.column(name) for table in entities.tables]
    if any(pc.any(pc.greater(pc.list_value_length(part), 1)).as_py() for part in lists):
        return []
    return [f"[{what}.separators] {key} = {toml_value(separator)} divides no value; look at the file and correct it"]


def feature_meta(
    spec: DatasetSpec, items: Entities, users: Entities, log: LogFacts, *, limit: int
) -> tuple[FeatureMeta, dict[str, list[ColumnFacts]], list[str]]:
    """Vocabularies and scales of all features, facts of all columns by section, and notes on values for the user.

    Args:
        spec: the data set.
        items: the item table.
        users: the user table.
        log: what pass 1 found.
        limit: largest size of a vocabulary.

    Raises:
        UserError: the log has too many different actions.
    """
    of_items = table_features(items, spec.items, what="items", limit=limit)
    of_users = table_features(users, spec.users, what="users", limit=limit)
    context = spec.events.context
    actions, action_notes = _actions(spec.events, log.actions)
    graded = graded_actions(spec.events, actions)
    if spec.events.feedback is not None:
        action_notes += _feedback_notes(spec.events, log)
    none = ValueCounts.empty()
    counted = {name: log.categories.get(name, none) for name in context.categorical}
    features = FeatureMeta(
        item_categories=of_items.categories,
        item_numbers=of_items.numbers,
        user_categories=of_users.categories,
        user_numbers=of_users.numbers,
        user_lists=of_users.lists,
        user_texts=list(spec.users.text) if spec.users else [],
        context_categories={name: vocabulary(found.values, found.counts, limit) for name, found in counted.items()},
        context_numbers={name: scale(sums) for name, sums in log.numbers.items() if name in context.numeric},
        context_texts=list(context.text),
        actions=[*actions, *(kind for kinds in graded.values() for kind in kinds)],
        graded=graded,
        clock=log.last_us >= POSITIONS_BELOW_US,
    )
    bad = [note for name, sums in log.numbers.items() for note in sums.note(name, "log")]
    odd = [note for (name, kind), found in log.odd.items() for note in notes_on(name, {kind: found})]
    for name, values in (*counted.items(), *([(spec.events.action, log.actions)] if spec.events.action else [])):
        odd += notes_on(name, odd_values(values.values, values.counts, ids=False))
    columns = {"events": log_columns(spec.events, log), "items": of_items.columns, "users": of_users.columns}
    return features, columns, [*of_items.notes, *of_users.notes, *bad, *odd, *action_notes]


def log_columns(events: EventsSpec, log: LogFacts) -> list[ColumnFacts]:
    """Facts of the log's columns: of ids and times over all rows that could be read, of the others over the kept ones."""
    columns = []
    for name, use in ((events.user, "user"), (events.item, "item"), (events.time, "time")):
        found = log.texts.get(name, TextFacts())
        columns.append(ColumnFacts(name, use, share(found.missing, log.rows_read), examples=list(found.examples)))
    counted = [(events.action, "action", log.actions)] if events.action else []
    none = ValueCounts.empty()
    counted += [(name, "categorical", log.categories.get(name, none)) for name in events.context.categorical]
    for name, use, values in counted:
        missing = share(log.rows_kept - int(values.counts.sum()), log.rows_kept)
        most = values.values.take(pa.array(np.argsort(-values.counts, kind="stable")[:EXAMPLES]))
        columns.append(ColumnFacts(name, use, missing, len(values.values), examples(most)))
    numeric = [(events.value, "value")] if events.value else []
    for name, use in (*numeric, *((name, "numeric") for name in events.context.numeric)):
        sums = log.numbers.get(name, NumberSums())
        missing = share(log.rows_kept - sums.count, log.rows_kept)
        columns.append(ColumnFacts(name, use, missing, examples=number_range(sums.low, sums.high)))
    for name in events.context.text:
        found = log.texts.get(name, TextFacts())
        columns.append(ColumnFacts(name, "text", share(found.missing, log.rows_read), examples=list(found.examples)))
    return columns


def check_targets(events: EventsSpec, actions: list[str]) -> None:
    """Check that at least one action of the log is a training target.

    Raises:
        UserError: [events.actions] has weights, and no action of the log has a positive one. It names those found.
    """
    if events.actions and not any(events.actions.get(action, 0.0) > 0 for action in actions):
        found = ", ".join(actions[:MOST_NAMED]) + (", ..." if len(actions) > MOST_NAMED else "")
        raise UserError(
            "no event is a training target: [events.actions] gives a positive weight to "
            f"{', '.join(a for a, w in events.actions.items() if w > 0) or 'no action'}, and column {events.action!r} "
            f"of the log has {found or 'no action at all'}. Write the actions as the log spells them"
        )


def _actions(events: EventsSpec, found: ValueCounts) -> tuple[list[str], list[str]]:
    """The log's actions, sorted, and notes on those without a weight and on weights without an action."""
    actions = sorted(found.values.to_pylist()) if events.action else []
    most = MAX_ACTIONS if events.feedback is None else MAX_ACTIONS // (1 + len(GRADES)) - 1
    if len(actions) > most:
        raise UserError(
            f"column {events.action!r} has {len(actions)} different actions; expected at most {most}. "
            "Name a column of action types in [events] action"
        )
    check_targets(events, actions)
    notes = []
    unlisted = [action for action in actions if action not in events.actions]
    if events.actions and unlisted:
        notes.append(f"actions without a weight stay in histories and are no training targets: {', '.join(unlisted)}")
    unused = [action for action in events.actions if action not in actions]
    if unused:
        notes.append(f"actions with a weight that no event has: {', '.join(unused)}")
    return actions, notes


def _feedback_notes(events: EventsSpec, log: LogFacts) -> list[str]:
    """What the thresholds of `[events.feedback]` do not reach.

    Raises:
        UserError: no event has a value, or none is a success.
    """
    feedback, sums = events.feedback, log.numbers.get(str(events.value), NumberSums())
    assert feedback is not None
    if not sums.count:
        raise UserError(
            f"[events.feedback] says what values mean, and column {events.value!r} has none; name another column in "
            "[events] value, or take [events.feedback] out of the dataset spec"
        )
    found = f"the values of column {events.value!r} go from {sums.low:g} to {sums.high:g}"
    if sums.high < np.float32(feedback.positive):
        raise UserError(
            f"events.feedback.positive is {feedback.positive:g}, and {found}; expected some value from it on, because "
            "only these are training targets"
        )
    if feedback.negative is not None and sums.low > np.float32(feedback.negative):
        return [f"events.feedback.negative is {feedback.negative:g}, and {found}: no event is negative feedback"]
    return []
