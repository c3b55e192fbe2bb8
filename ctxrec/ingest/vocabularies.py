"""Vocabularies of categories and scales of numbers: of items and users from their tables, of context from the log."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ctxrec.core.dataset_spec import DatasetSpec, EventsSpec, ItemsSpec, UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.data import parsing
from ctxrec.data.item_rows import Entities, value_lists
from ctxrec.data.prepared import FeatureMeta
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


def entity_features(
    entities: Entities, section: ItemsSpec | UsersSpec | None, *, limit: int
) -> tuple[dict[str, list[str]], dict[str, dict[str, float]], list[str]]:
    """Vocabularies and scales of a table's features over its rows, and notes on values that are no numbers."""
    categories, numbers, notes = {}, {}, []
    for name in section.categorical if section else ():
        lists = entities.column(name, value_lists) if entities.tables else None
        categories[name] = vocabulary(lists.flatten(), None, limit) if lists is not None else []
    for name in section.numeric if section else ():
        parts = [parsing.to_numbers(table.column(name)) for table in entities.tables]
        values = np.concatenate([p[0] for p in parts] or [np.zeros(0, np.float32)])
        sums = NumberSums.of(values, sum(int(p[1].sum()) for p in parts))
        numbers[name] = scale(sums)
        if sums.bad:
            notes.append(f"{name}: {sums.bad} values of the table are no finite number; they count as missing")
    return categories, numbers, notes


def feature_meta(
    spec: DatasetSpec, items: Entities, users: Entities, log: LogFacts, *, limit: int
) -> tuple[FeatureMeta, list[str]]:
    """Vocabularies and scales of all features, and notes on values that a user should know of.

    Args:
        spec: the data set.
        items: the item table.
        users: the user table.
        log: what pass 1 found.
        limit: largest size of a vocabulary.

    Raises:
        UserError: the log has too many different actions.
    """
    item_categories, item_numbers, item_notes = entity_features(items, spec.items, limit=limit)
    user_categories, user_numbers, user_notes = entity_features(users, spec.users, limit=limit)
    context = spec.events.context
    actions, action_notes = _actions(spec.events, log.actions)
    none = ValueCounts.empty()
    counted = {name: log.categories.get(name, none) for name in context.categorical}
    features = FeatureMeta(
        item_categories=item_categories,
        item_numbers=item_numbers,
        user_categories=user_categories,
        user_numbers=user_numbers,
        context_categories={name: vocabulary(found.values, found.counts, limit) for name, found in counted.items()},
        context_numbers={name: scale(sums) for name, sums in log.numbers.items() if name in context.numeric},
        context_texts=list(context.text),
        actions=actions,
    )
    bad = [
        f"{name}: {sums.bad} values of the log are no finite number; they count as missing"
        for name, sums in log.numbers.items()
        if sums.bad
    ]
    return features, [*item_notes, *user_notes, *bad, *action_notes]


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
    if len(actions) > MAX_ACTIONS:
        raise UserError(
            f"column {events.action!r} has {len(actions)} different actions; expected at most {MAX_ACTIONS}. "
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
