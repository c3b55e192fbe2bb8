"""From samples of tables to a dataset spec: which table and which column is what, and what is not sure.

A guess weighs what the name of a column says, what its values are, and whether its values are the keys of another
table. The rules are in `event_roles` (the log) and `feature_roles` (content of items, attributes of users, context).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ctxrec.core.dataset_spec import DatasetSpec, GraphSpec, ItemsSpec, SplitSpec, UsersSpec
from ctxrec.core.errors import UserError
from ctxrec.ingest.guess import event_roles, feature_roles, names
from ctxrec.ingest.guess.column_look import ColumnLook
from ctxrec.ingest.guess.looked_table import LookedTable, found_in, look_at_table
from ctxrec.ingest.guess.table_sample import TableSample

SURE = 3.0  # of the score of a table as one of items or users
ROLES = ("events", "items", "users", "graph")


@dataclass(frozen=True)
class Unsure:
    """A point of the guess that a person should check."""

    key: str  # of the spec, such as "events.item"
    text: str


@dataclass(frozen=True)
class Guess:
    """A spec with its reasons.

    Attributes:
        spec: the dataset spec; its paths are the names of the tables as they were given.
        tables: the tables by role ("events", "items", "users", "graph").
        uses: what each column of a table is used for, by role and column; "" is a column that is left out.
        left_out: tables that the spec does not use.
        unsure: what a person should check.
        actions: events of the sample by action, the most frequent first.
    """

    spec: DatasetSpec
    tables: dict[str, LookedTable]
    uses: dict[str, dict[str, str]]
    left_out: list[LookedTable] = field(default_factory=list)
    unsure: list[Unsure] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)


def guess(
    tables: Sequence[TableSample],
    *,
    roles: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    name: str = "my-log",
) -> Guess:
    """Guess the dataset spec of some tables.

    Args:
        tables: samples of the tables (`sample_files`, `sample_table`).
        roles: name of the table for each role that is known: "events", "items", "users" or "graph".
        columns: columns of the log that are known, by key of [events]: "user", "item", "time", "action" or "value".
        name: of the data set.

    Raises:
        UserError: there is no table, or a role or a column is given that is not there.
    """
    roles, columns = dict(roles or {}), dict(columns or {})
    if not tables:
        raise UserError("no table is given; expected the log of events at least")
    looked = [look_at_table(table) for table in tables]
    found, left_out, unsure = _assign(looked, roles)
    log = found["events"]
    for key, column in columns.items():
        if column not in log.looks:
            raise UserError(
                f"{key} = {column!r} is no column of {log.name}; found columns {', '.join(log.looks)}. Correct the name"
            )
    events = event_roles.choose(log, found.get("items"), found.get("users"), columns)
    unsure += [Unsure(f"events.{key}", text) for key, text in events.unsure]
    uses: dict[str, dict[str, str]] = {"events": events.uses}
    items = users = graph = None
    if "items" in found:
        chosen = feature_roles.choose(found["items"], key=_key_of(found["items"], log, events.spec.item, names.ITEM))
        uses["items"] = chosen.uses
        unsure += [Unsure(f"items.{key}", text) for key, text in chosen.unsure]
        items = ItemsSpec(
            **found["items"].form,
            id=chosen.key,
            text=chosen.of("text"),
            categorical=chosen.of("categorical"),
            numeric=chosen.of("numeric"),
            image=next(iter(chosen.of("image")), None),
            audio=next(iter(chosen.of("audio")), None),
            separators=chosen.separators,
        )
        unsure += _check_key("items", chosen.key, found["items"], log, events.spec.item)
    if "users" in found:
        key = _key_of(found["users"], log, events.spec.user, names.USER)
        chosen = feature_roles.choose(found["users"], key=key, with_media=False)
        uses["users"] = chosen.uses
        unsure += [Unsure(f"users.{key}", text) for key, text in chosen.unsure]
        users = UsersSpec(
            **found["users"].form,
            id=chosen.key,
            text=chosen.of("text"),
            categorical=chosen.of("categorical"),
            numeric=chosen.of("numeric"),
            separators=chosen.separators,
        )
        unsure += _check_key("users", chosen.key, found["users"], log, events.spec.user)
    if "graph" in found:
        head, relation, tail = _triple(found["graph"]) or tuple(found["graph"].looks)[:3]
        graph = GraphSpec(**{**found["graph"].form, "decimal": None}, head=head, relation=relation, tail=tail)
        uses["graph"] = {head: "head", relation: "relation", tail: "tail"}
    for role, table in found.items():
        unsure += [Unsure(role, text) for text in table.doubts]
    for table in left_out:
        unsure.append(Unsure("files", f"{table.name} is not used: no section of the spec fits it"))
    split = SplitSpec(strategy="last") if events.has_no_clock else SplitSpec()
    return Guess(
        spec=DatasetSpec(name=name, events=events.spec, items=items, users=users, graph=graph, split=split),
        tables=found,
        uses=uses,
        left_out=left_out,
        unsure=unsure,
        actions=events.actions,
    )


def _assign(
    tables: Sequence[LookedTable], roles: Mapping[str, str]
) -> tuple[dict[str, LookedTable], list[LookedTable], list[Unsure]]:
    """The table of each role, the tables without one, and what is not sure."""
    by_name = {table.name: table for table in tables}
    for role, name in roles.items():
        if role not in ROLES or name not in by_name:
            raise UserError(f"{role} = {name!r} is given; expected one of {', '.join(ROLES)}, and one of the tables")
    found = {role: by_name[name] for role, name in roles.items()}
    free = [table for table in tables if table.name not in roles.values()]
    unsure = []
    if "events" not in found:
        if not free:
            raise UserError("no table is left for the events; expected the log of what users did")
        free.sort(key=_like_events, reverse=True)
        found["events"] = free.pop(0)
        others = [table for table in free if _like_events(table) > 3]
        if others:
            also = ", ".join(table.name for table in others)
            unsure.append(Unsure("events", f"{found['events'].name} is taken for the log; {also} looks like a log too"))
    log = found["events"]
    user, item = event_roles.user_and_item(log, found.get("items"), found.get("users"), {})
    candidates = []
    for table in free:
        if "graph" not in found and _triple(table) is not None:
            found["graph"] = table
        elif len(table.looks) > 1:
            # A table is of items or of users, whichever its key says more clearly.
            candidates.append((*max(_like_entities(table, log, user, item)), table))
    for score, role, table in sorted(candidates, key=lambda entry: -entry[0]):
        if role not in found and score > 0:
            found[role] = table
            if score < SURE:
                text = f"{table.name} is taken for the {role}, though few of its keys are in the log"
                unsure.append(Unsure(role, text))
    used = {id(table) for table in found.values()}
    return {r: found[r] for r in ROLES if r in found}, [t for t in free if id(t) not in used], unsure


def _like_events(table: LookedTable) -> float:
    """How much a table is like a log: it has times, and users and items that come again."""
    looks = table.looks.values()
    score = 2.0 * any(look.time is not None and names.says(look.name, names.TIME) for look in looks)
    score += any(look.time is not None for look in looks)
    for known in (names.USER | names.SESSION, names.ITEM | names.MAYBE_ITEM):
        ids = [look for look in looks if look.may_be_id and names.says(look.name, known)]
        score += 1.5 * bool(ids) + any(look.repeats > 1.2 for look in ids)
    keys = [look for look in looks if look.is_unique and look.may_be_id and names.says(look.name, names.IDENTIFIER)]
    score -= 2.0 * bool(keys)
    score += 1.5 * names.says(table.stem, names.EVENTS_FILE)
    score -= 1.5 * names.says(table.stem, names.ITEMS_FILE | names.USERS_FILE)
    return score + 0.1 * len(str(table.sample.num_rows))


def _like_entities(table: LookedTable, log: LookedTable, user: str | None, item: str | None) -> list[tuple[float, str]]:
    """How much a table is like one of items, and like one of users; 0 where no column can be its key."""
    content = sum(look.kind in ("text", "list") and not look.may_be_id for look in table.looks.values())
    found = []
    for role, column, known, files in (
        ("items", item, names.ITEM, names.ITEMS_FILE),
        ("users", user, names.USER, names.USERS_FILE),
    ):
        score = max(_key_score(table, look, log, column, known) for look in table.looks.values())
        found.append((score + names.says(table.stem, files) + 0.3 * content if score else 0.0, role))
    return found


def _triple(table: LookedTable) -> tuple[str, ...] | None:
    """The columns of head, relation and tail, where a table has such."""
    lower = {column.lower(): column for column in table.looks}
    for triple in names.GRAPH:
        if set(triple) <= lower.keys():
            return tuple(lower[part] for part in triple)
    return None


def _key_score(
    table: LookedTable, look: ColumnLook, log: LookedTable, column: str | None, known: frozenset[str]
) -> float:
    """How likely a column is the key of a table of items or users; 0 where it is not."""
    if not look.may_be_id or look.distinct < 0.9 * look.count:
        return 0.0
    other = names.USER if known is names.ITEM else names.ITEM
    if names.says(look.name, other) and not names.says(look.name, known):
        return 0.0
    score = 1.0 * look.is_unique + names.says(look.name, known) + 0.5 * names.says(look.name, names.IDENTIFIER)
    if column is not None:
        same = names.words(look.name)[-1].replace("_", "") == names.words(column)[-1].replace("_", "")
        score += 1.5 * same + 2.5 * found_in(log, column, table, look.name)
    return score if score >= 2 else 0.0


def _key_of(table: LookedTable, log: LookedTable, column: str, known: frozenset[str]) -> str:
    scores = {look.name: _key_score(table, look, log, column, known) for look in table.looks.values()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else next(iter(table.looks))


def _check_key(role: str, key: str, table: LookedTable, log: LookedTable, column: str) -> list[Unsure]:
    look, part = table.looks[key], found_in(log, column, table, key)
    unsure = []
    if not look.is_unique:
        unsure.append(Unsure(f"{role}.id", f"{key} is not unique in {table.name}; later rows of an id are rejected"))
    if part < 0.5:
        text = f"only about {part:.0%} of the values of {column} in the log are in {key} of {table.name}"
        unsure.append(Unsure(f"{role}.id", text))
    return unsure
