"""Which column of a log is the user, the item, the time, the action and the value, and which are known at a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import REQUEST_TIME, ContextSpec, EventsSpec
from ctxrec.core.schema import TIME_CONTEXT
from ctxrec.core.time_formats import EXAMPLE, directives
from ctxrec.core.time_zones import TIMEZONE
from ctxrec.data import time_columns
from ctxrec.data.clock import POSITIONS_BELOW_US, doubts_of_times
from ctxrec.ingest.guess import names
from ctxrec.ingest.guess.column_look import ColumnLook
from ctxrec.ingest.guess.feedback_proposal import propose
from ctxrec.ingest.guess.looked_table import LookedTable, found_in

SURE = 3.0  # of the scores below
_LOOKED_AT = 10_000  # values of a column
_CLOCK = re.compile(r"^\s*\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?(?:\s*[AaPp][Mm])?\s*$")  # a time of day
_MARGIN = 1.0  # over the second best
_MOST_ACTIONS = 60
_MOST_CONTEXT_VALUES = 5000
_DEPENDS = 0.95  # share of the values that a column determines


@dataclass
class EventRoles:
    """The section [events] of a spec, with what is not sure as pairs of a key and a text."""

    spec: EventsSpec
    uses: dict[str, str]
    unsure: list[tuple[str, str]] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)  # events of each action in the sample, most frequent first
    has_no_clock: bool = False


def choose(
    log: LookedTable, items: LookedTable | None, users: LookedTable | None, given: Mapping[str, str]
) -> EventRoles:
    """Choose the columns of [events]; those that are given are sure."""
    unsure: list[tuple[str, str]] = []
    user, item = user_and_item(log, items, users, given)
    for key, column, table in (("user", user, users), ("item", item, items)):
        if key not in given:
            unsure += [(key, text) for text in _doubts_of_id(log, key, column, items, users, taken=(user, item))]
        if column is not None:
            unsure += [(key, text) for text in _quality_of_id(log, column, in_table=table is not None)]
    taken = {user, item}
    time, has_no_clock, doubts = _time(log, taken, given.get("time"))
    unsure += [("time", text) for text in doubts]
    found = log.looks[time].format if time is not None else None
    unsure += [("time_format", text) for text in (found.doubts if found is not None else [])]
    taken.add(time)
    action, doubts = _action(log, taken, given.get("action"))
    unsure += [("action", text) for text in doubts]
    taken.add(action)
    value, doubts = _value(log, taken, item, given.get("value"))
    unsure += [("value", text) for text in doubts]
    taken.add(value)
    context, doubts = _context(log, [c for c in log.looks if c not in taken], user, item)
    unsure += [("context", text) for text in doubts]
    unsure += [("split.repeats", text) for text in _repeats(log, user, item)]
    uses = dict.fromkeys(log.looks, "")
    for kind, columns in context.items():
        uses |= dict.fromkeys(columns, f"context: {kind}")
    chosen = {"user": user, "item": item, "time": time, "action": action, "value": value}
    uses |= {column: key for key, column in chosen.items() if column is not None}
    spec = EventsSpec(
        **log.form,
        user=user or "",
        item=item or "",
        time=time or "",
        time_format=None if found is None else found.format,
        action=action,
        value=value,
        context=ContextSpec(**{kind: tuple(columns) for kind, columns in context.items()}),
    )
    if (proposal := propose(log, spec)) is not None:
        unsure.append(("feedback", proposal.text))
    return EventRoles(spec, uses, unsure, _counts(log, action), has_no_clock)


def user_and_item(
    log: LookedTable, items: LookedTable | None, users: LookedTable | None, given: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The columns of users and items with the highest scores together."""
    user, item = given.get("user"), given.get("item")
    others = set(given.values())
    ids = [look.name for look in log.looks.values() if look.may_be_id and look.name not in others]
    pairs = [(u, i) for u in ([user] if user else ids) for i in ([item] if item else ids) if u != i]
    if not pairs:
        return user or (ids[0] if ids else None), item

    def score(pair: tuple[str, str]) -> float:
        return _score(log, "user", pair[0], items, users) + _score(log, "item", pair[1], items, users)

    best = max(pairs, key=score)
    # A column of a few values that nothing names is no user and no item: a model of it would look well and be nonsense.
    found = [given.get(key) or (column if _score(log, key, column, items, users) >= 0 else None)
             for key, column in zip(("user", "item"), best, strict=True)]  # fmt: skip
    return found[0], found[1]


def _score(log: LookedTable, key: str, column: str, items: LookedTable | None, users: LookedTable | None) -> float:
    """How likely a column is the user or the item of an event; `SURE` and more is likely by itself."""
    look = log.looks[column]
    strong, weak = (names.USER, names.SESSION) if key == "user" else (names.ITEM, names.MAYBE_ITEM)
    other = names.ITEM if key == "user" else names.USER
    named = names.says(column, strong)
    score = 3.0 if named else 1.5 * names.says(column, weak)
    score -= 1.0 * (named and key == "user" and names.says(column, names.SESSION))
    score -= 2.0 * (names.says(column, other) and not named)
    score += 0.5 * names.says(column, names.IDENTIFIER) + 0.5 * (look.repeats > 1.1)
    score -= 1.0 * (look.distinct < 10 <= look.count / 10)
    score -= 2.0 * (look.time is not None and not named and not names.says(column, names.IDENTIFIER))
    for table, sign in ((users, 1.0 if key == "user" else -1.0), (items, 1.0 if key == "item" else -1.0)):
        # Whole numbers of users may be among those of items by chance, which says nothing against a name.
        if table is not None and (sign > 0 or not named):
            keys = [k.name for k in table.looks.values() if k.is_unique and k.may_be_id]
            score += sign * 3.0 * max((found_in(log, column, table, k) for k in keys), default=0.0)
    return score


def _doubts_of_id(
    log: LookedTable,
    key: str,
    column: str | None,
    items: LookedTable | None,
    users: LookedTable | None,
    *,
    taken: tuple[str | None, str | None],
) -> list[str]:
    if column is None:
        return [f"no column of {log.name} looks like the id of the {key}; name one"]
    score = _score(log, key, column, items, users)
    rivals = {
        look.name: _score(log, key, look.name, items, users)
        for look in log.looks.values()
        if look.may_be_id and look.name not in taken
    }
    rival = max(rivals, key=lambda name: rivals[name], default=None)
    if rival is not None and rivals[rival] > score - _MARGIN:
        return [f"{column} is taken for the {key}; {rival} is possible too"]
    return (
        [f"{column} is taken for the {key}, though neither its name nor another table says so"] if score < SURE else []
    )


def _quality_of_id(log: LookedTable, column: str, *, in_table: bool) -> list[str]:
    look, doubts = log.looks[column], []
    if look.missing >= 0.01:
        doubts.append(f"{column} is missing in {look.missing:.1%} of the events; these rows are rejected")
    if look.kind == "text" and 0.5 < look.numeric < 0.95 and look.words > 1.05 and not in_table:
        doubts.append(
            f"{column} holds numbers and words: {1 - look.numeric:.0%} of the values are no number. It may name several "
            "kinds of things; keep the rows of items alone"
        )
    return doubts


def _time(log: LookedTable, taken: set[str | None], given: str | None) -> tuple[str | None, bool, list[str]]:
    """The column of times, whether it has no clock, and what is not sure."""
    scores = {}
    for look in log.looks.values():
        named = names.says(look.name, names.TIME)
        if look.name in taken:
            continue
        if look.time is not None:
            scores[look.name] = 3.0 + named if look.kind == "time" else 1.0 + 2.5 * named
        elif named and look.kind == "number" and look.low >= 0:
            scores[look.name] = 2.0
        elif look.other_dates or look.kind == "time" or (named and look.kind == "text"):
            scores[look.name] = 1.0 + named
    if given is not None:
        scores = {given: SURE}
    if not scores:
        return None, False, [f"no column of {log.name} looks like a time; name one"]
    best = max(scores, key=lambda name: scores[name])
    look, doubts = log.looks[best], []
    rivals = [name for name in scores if name != best and scores[name] > scores[best] - _MARGIN]
    if rivals:
        doubts.append(f"{best} is taken for the time; {', '.join(rivals)} is possible too")
    if look.time is None and look.kind == "number" and look.high < 1e8:
        doubts += [
            f'{best}: {text}. The split is "last", which needs the order alone'
            for text in doubts_of_times(look.low, look.high, clock=look.high >= POSITIONS_BELOW_US / 1e6)
        ]
        return best, True, doubts
    if look.time is None:
        doubts.append(f"{best} {_why_unreadable(log, best)}")
    elif scores[best] < SURE and given is None:
        doubts.append(f"{best} is taken for the time by its numbers alone")
    doubts += _clock_apart(log, best)
    if look.time is not None and look.time.unit in ("iso8601", "timestamp", "format") and not look.has_zone:
        doubts.append(f"{best} names no time zone; it is read as UTC. Name the zone of its clock under timezone")
    return best, False, doubts


def _why_unreadable(log: LookedTable, column: str) -> str:
    """Why many values of a column are no time of an event, with the first such value."""
    texts = log.texts(column).drop_null().unique()[:_LOOKED_AT]
    _, status = time_columns.to_times(texts, "iso8601")
    bad = np.flatnonzero(status != time_columns.TIME_OK)
    value = str(texts[int(bad[0])].as_py()) if len(bad) else ""
    if len(bad) and (status[bad] == time_columns.TIME_OUT_OF_RANGE).mean() > 0.5:
        return (
            f"has times before 1970 or after 2199, such as {value!r}, and the events with such times are rejected; an event "
            "is somebody's use of an item, so this may be another date, such as the item's own"
        )
    return (
        f"looks like a time, but values such as {value!r} cannot be read as one, and no format reads nearly all. Where all "
        f"have one form, name it as time_format, such as {EXAMPLE}; else write ISO-8601 (2024-01-31T08:00:00Z) or epoch "
        "numbers"
    )


def _clock_apart(log: LookedTable, time: str) -> list[str]:
    """Whether dates without a time of day stand beside a column of times of day."""
    found = log.looks[time].format
    if found is None or {"H", "I"} & set(directives(found.format)):
        return []
    for look in log.looks.values():
        if look.kind == "text" and look.examples and all(_CLOCK.match(text) for text in look.examples):
            return [
                f"{time} has days alone, and the time of day stands in {look.name}; the events of a day keep the order of the "
                "file. Join both into one column for their own order, and for the hour"
            ]
    return []


def _action(log: LookedTable, taken: set[str | None], given: str | None) -> tuple[str | None, list[str]]:
    if given is not None:
        return given, _open_weights(log, given)
    scores = {}
    for look in log.looks.values():
        if look.name in taken or look.kind != "text" or not 1 <= look.distinct <= _MOST_ACTIONS or look.separator:
            continue
        values = log.texts(look.name).drop_null().unique().to_pylist()
        known = float(np.mean([names.action_weight(value) is not None for value in values]))
        scores[look.name] = 2.0 * names.says(look.name, names.ACTION) + 2.0 * known
        scores[look.name] += 0.5 * ("type" in names.words(look.name) or "kind" in names.words(look.name))
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is None or scores[best] < 1.5:
        return None, []
    doubts = _open_weights(log, best)
    if doubts and scores[best] < 2:
        doubts.insert(0, f"{best} is taken for the action by its values; leave the line out if it is something else")
    return best, doubts


def _open_weights(log: LookedTable, action: str) -> list[str]:
    """What is not sure of the weights of several actions."""
    if action not in log.looks or log.looks[action].distinct < 2:
        return []
    return [f"{action}: every action counts alike as a target until [events.actions] gives weights"]


def _value(
    log: LookedTable, taken: set[str | None], item: str | None, given: str | None
) -> tuple[str | None, list[str]]:
    if given is not None:
        return given, []
    numbers = [look for look in log.looks.values() if look.kind == "number" and look.name not in taken]
    for known in (names.RATING, names.QUANTITY, names.DWELL, names.MONEY):
        fitting = [look for look in numbers if names.says(look.name, known) and look.distinct > 1]
        if known is names.MONEY and item is not None:  # the price of an item is no value of an event
            fitting = [look for look in fitting if not _depends(log, look.name, item)]
        if not fitting:
            continue
        best, doubts = fitting[0], []
        if len(fitting) > 1:
            doubts.append(f"{best.name} is taken for the value; {fitting[1].name} is possible too")
        if known is names.MONEY:
            doubts.append(f"{best.name} is taken for the value of an event; it may belong to the item")
        if best.low < 0:
            doubts.append(f"{best.name} goes down to {best.low:.7g}; rows below 0 may be returns, which are no targets")
        return best.name, doubts
    return None, []


def _context(
    log: LookedTable, columns: list[str], user: str | None, item: str | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Columns that are known when a recommendation is asked for, by kind; and what is not sure."""
    chosen: dict[str, list[str]] = {"categorical": [], "numeric": [], "text": []}
    doubts, open_ = [], []
    for column in columns:
        look = log.looks[column]
        if look.kind == "empty" or (look.kind in ("number", "text", "truth") and look.distinct < 2):
            doubts.append(f"{column} is left out: it has {'no' if look.kind == 'empty' else 'one'} value")
            continue
        if column in (*TIME_CONTEXT, REQUEST_TIME):
            doubts.append(
                f"{column} is left out: the name is taken, as a request has the time and what derives from it"
            )
            continue
        if item is not None and _depends(log, column, item) and not names.says(column, names.CONTEXT):
            doubts.append(f"{column} is the same in all events of an item: it belongs to a table of items")
            continue
        single = look.kind in ("number", "text", "truth") and not (look.separator or look.media or look.time)
        if not single or look.is_unique:
            open_.append(column)
            continue
        kind = context_kind(look)
        if names.says(column, names.CONTEXT) and kind is not None:
            chosen[kind].append(column)
            if kind == "text" or look.missing > 0.5:
                doubts.append(f"{column} is taken for context; check that it is known before the user sees a list")
        elif kind == "categorical" and user is not None and look.distinct <= 500 and _depends(log, column, user):
            chosen[kind].append(column)
            doubts.append(f"{column} is the same in all events of a user; it is taken for context")
        else:
            open_.append(column)
    if any(TIMEZONE in columns for columns in chosen.values()):
        doubts.append(
            f"{TIMEZONE} is a feature here, so a request cannot name a time zone of its own. Give the column another name if it should"
        )
    if open_:
        doubts.append(
            f"{', '.join(open_)}: left out, as it is not sure that a request knows them before the user acts; "
            "name those in [events.context] that it does"
        )
    return chosen, doubts


def context_kind(look: ColumnLook) -> str | None:
    """What kind of feature a column of the context is: "categorical", "numeric" or "text"; None where it is none."""
    if look.kind == "number":
        return "numeric" if not look.whole or look.distinct > 100 else "categorical"
    if look.kind in ("text", "truth"):
        if names.says(look.name, names.QUERY) or look.words > 4 or look.distinct > _MOST_CONTEXT_VALUES:
            return "text" if look.letters > 0.5 else None
        return "categorical"
    return None


def _depends(log: LookedTable, column: str, key: str) -> bool:
    """Whether nearly all values of `key` that come again always stand with one value of `column`."""
    frame = pd.DataFrame({"key": _codes(log, key), "value": _codes(log, column)})
    frame = frame[(frame["key"] >= 0) & (frame["value"] >= 0)]
    grouped = frame.groupby("key")["value"]
    several = grouped.size() > 1
    if several.sum() < 3:
        return False
    # The most frequent value of a key stands for it: a few slips do not matter.
    pairs = frame.value_counts(["key", "value"]).groupby("key").max()
    sizes = grouped.size()
    return bool((pairs[several] / sizes[several]).mean() >= _DEPENDS)


def _codes(log: LookedTable, column: str) -> np.ndarray:
    coded = log.texts(column).dictionary_encode()
    codes: np.ndarray = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes


def _repeats(log: LookedTable, user: str | None, item: str | None) -> list[str]:
    if user is None or item is None:
        return []
    pairs = pd.DataFrame({"user": _codes(log, user), "item": _codes(log, item)})
    pairs = pairs[(pairs["user"] >= 0) & (pairs["item"] >= 0)]
    share = float(pairs.duplicated().mean()) if len(pairs) else 0.0
    if share < 0.1:
        return []
    return [f"in {share:.0%} of the events the user had the item before; true recommends such items again"]


def _counts(log: LookedTable, action: str | None) -> dict[str, int]:
    if action is None:
        return {}
    counted = pc.value_counts(log.texts(action).drop_null()).to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: -c["counts"])}
