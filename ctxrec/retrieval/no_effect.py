"""What a request asks for that can have no effect, or leaves nothing: values that nothing has, and impossible ranges."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core.dataset_spec import REQUEST_TIME
from ctxrec.data.parsing import value_text
from ctxrec.memory.request_words import CONTEXT_TEXT
from ctxrec.model.two_tower import NoTowers
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.heard_words import why_unheard
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.request_reader import ContextReader
from ctxrec.retrieval.retriever import Retriever

NO_SECOND_STAGE = (
    "the model has no second stage; none was trained for it (ctxrec rerank), or it gained nothing on requests "
    "that it had not seen"
)
NO_FEEDBACK = "the dataset spec of the model has no [events.feedback], which says what values mean"
MAX_NOTES = 20  # of one request
_MAX_LOOKED_AT = 1000  # values of one request
_MAX_QUOTED = 100  # characters of a value
_MAX_NAMED = 3  # values of a list that a text names


class HasValue(Protocol):
    """An event of a history."""

    @property
    def value(self) -> float | None:
        """In the unit of the log."""


@dataclass(frozen=True)
class Note:
    """A part of a request, and what is to be said of it; `kind` is a type of `serve.api_answers.FieldWarning`."""

    place: tuple[str | int, ...]
    kind: str
    text: str


def notes_of(
    retriever: Retriever[Recommender],
    rules: Mapping[str, ColumnRule],
    context: Mapping[str, Any],
    user: Mapping[str, Any] | None = None,
    *,
    query: str | None = None,
    rerank: bool | None = None,
) -> list[Note]:
    """The first notes of a request that the model can read; a few dictionary lookups.

    Args:
        retriever: that is asked.
        rules: the filter, by item column.
        context: features of the context by name.
        user: attributes of the user by name.
        query: free text.
        rerank: what the request says of the second stage.
    """
    if not rules and not context and not user and query is None:
        return []
    model, reranked = retriever.recommender, retriever.is_reranked(rerank)
    notes = itertools.chain(
        () if query is None else notes_of_nothing({"query": query}),
        _filter_notes(retriever, rules),
        _context_notes(model, context, reranked=reranked),
        _user_notes(model, user or {}, reranked=reranked),
    )
    return list(itertools.islice(notes, MAX_NOTES))


def _context_notes(model: Recommender, context: Mapping[str, Any], *, reranked: bool) -> Iterator[Note]:
    unread, reason = unread_context(model, [name for name, value in context.items() if value not in (None, "")])
    if unread and not reranked:
        have = "has" if len(unread) == 1 else "have"
        text = f"context: {', '.join(unread)} {have} no effect, because {reason}"
        yield Note(("context",), "context_not_read", text)
        context = {name: value for name, value in context.items() if name not in unread}
    yield from notes_of_nothing(context, "context")
    yield from unknown_in_context(model.contexts, context)


def notes_of_nothing(values: Mapping[str, Any], *place: str) -> Iterator[Note]:
    """Values by name that say nothing: None, a number that is none, and a blank text. `place` they lie in the request."""
    for name, value in values.items():
        if says_nothing(value):
            found = "a blank text" if isinstance(value, str) else "null" if value is None else repr(value)
            text = f"{' '.join((*place, name))}: {found} says nothing; it counts as if it were left out"
            yield Note((*place, name), "says_nothing", text)


def says_nothing(value: Any) -> bool:
    """Whether a value of a context, an action or a query is as if it were left out.

    >>> [says_nothing(value) for value in (None, " ", float("nan"), -float("inf"), 0, False, "tv", "inf")]
    [True, True, True, True, False, False, False, False]
    """
    if isinstance(value, (float, np.floating)):
        return not math.isfinite(value)
    return value_text(value) is None


def unknown_in_context(contexts: ContextReader, context: Mapping[str, Any]) -> Iterator[Note]:
    """Values of categorical features of a context that the model does not know; the context can be read."""
    for name in contexts.unknown_values(context):
        text = f"context {name}: {_quoted(context[name])} is no value that the model knows; it counts as any other such value"
        yield Note(("context", name), "unknown_value", text)


def _user_notes(model: Recommender, user: Mapping[str, Any], *, reranked: bool) -> Iterator[Note]:
    if user and (reason := why_unread(model, reranked=reranked)) is not None:
        yield Note(("user",), "attributes_not_read", f"user: attributes have no effect, because {reason}")
        return
    if not reranked:
        yield from unread_texts(model, user)
    yield from unknown_attributes(model, user)


def unread_texts(model: Recommender, user: Mapping[str, Any]) -> Iterator[Note]:
    """Free texts of a user that the model does not read."""
    reason = "the model has no text encoder" if model.texts is None else model.texts.users_unread
    for name in model.features.user_texts if reason is not None else ():
        if user.get(name):
            yield Note(("user", name), "words_not_read", f"user {name}: it has no effect, because {reason}")


def unknown_attributes(model: Recommender, user: Mapping[str, Any]) -> Iterator[Note]:
    """Attributes whose values the model does not know."""
    for name in model.attributes.unknown_values(user):
        text = f"user {name}: {_quoted(user[name])} is no value that the model knows; it counts as any other such value"
        yield Note(("user", name), "unknown_value", text)


class _Event(Protocol):
    """An event of a history that a request brings along."""

    @property
    def item_id(self) -> str: ...

    @property
    def action(self) -> str | None: ...

    @property
    def context(self) -> Mapping[str, Any]: ...


def notes_of_ids(
    retriever: Retriever[Recommender],
    *,
    history: Sequence[_Event] | None = None,
    allow: Sequence[str] | None = None,
    **others: Sequence[str],
) -> Iterator[Note]:
    """Notes of a request's items that the model does not know, one a field; a few dictionary lookups.

    Args:
        retriever: that is asked.
        history: events that the request brings along.
        allow: ids of the items that alone are wanted; None: all.
        others: ids by field, such as "exclude" and "dislike".
    """
    ids = {"history": [event.item_id for event in history or ()], **others, "allow": allow or ()}
    for field, given in ids.items():
        unknown = unknown_of(given, retriever.has_item)
        if unknown is None:
            continue
        nothing_left = field == "allow" and unknown.count == len(given)
        effect = "the list is empty" if nothing_left else "these have no effect"
        yield Note((field,), "unknown_item", f"{field}: {unknown.told('items of the catalogue')}, so {effect}")


@dataclass(frozen=True)
class UnknownValues:
    """How many values of a list are unknown, of how many that were looked at, and the first few of them."""

    count: int
    of: int
    first: tuple[str, ...]

    def told(self, what: str) -> str:
        """The start of a sentence: how many are none of `what`."""
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} of {self.of} are no {what} ({', '.join(map(_quoted, self.first))}{more})"


def not_calibrated(retriever: Retriever[Recommender], query: str | None, dislike: Iterable[str]) -> list[Note]:
    """The note on the probabilities of a request with words or dislikes that change its scores: the events to which
    probabilities are fitted have neither. Empty where there are none, or where the model tells no probabilities."""
    model = retriever.recommender
    if model.calibration is None:
        return []
    is_heard = not says_nothing(query) and why_unheard(model) is None
    has_dislikes = any(map(retriever.has_item, dislike))
    parts = [name for name, counts in (("a query", is_heard), ("dislikes", has_dislikes)) if counts]
    text = (
        f"probability: it was fitted to requests without {' and '.join(parts)}, which change the scores; take it as an order "
        "within this list, and not as a rate"
    )
    return [Note(("probability",), "not_calibrated", text)] if parts else []


def unknown_users(users: Sequence[str | None], is_known: Callable[[str], bool]) -> str | None:
    """What is to be said of those who ask without a history of their own and whom the model does not know; None: it knows all.

    Args:
        users: ids of those who ask; None is somebody without a name.
        is_known: whether the model knows a user.
    """
    unknown = unknown_of([user for user in users if user is not None], is_known)
    if unknown is None:
        return None
    return (
        f"user: {unknown.told('users that the model knows')}; without a history a list goes by context and popularity"
    )


def unknown_of(values: Sequence[str], is_known: Callable[[str], bool]) -> UnknownValues | None:
    """The unknown ones of the first values of a list; None where all are known."""
    looked_at = values[:_MAX_LOOKED_AT]
    unknown = [value for value in looked_at if not is_known(value)]
    if not unknown:
        return None
    return UnknownValues(len(unknown), len(looked_at), tuple(dict.fromkeys(unknown))[:_MAX_NAMED])


def why_unread(model: Recommender, *, reranked: bool = False) -> str | None:
    """Why a model does not read attributes of users; None: it does, or the second stage does, which reads them as words."""
    if reranked:
        return None
    return _not_in_towers(model, "user")


def unread_context(model: Recommender, names: Iterable[str]) -> tuple[list[str], str]:
    """Parts of a context that a model does not read, and why not. The time is always read, and a second stage reads all.

    Args:
        model: that is asked.
        names: of features of the context; `timezone` may be one.
    """
    if (reason := _not_in_towers(model, "context")) is None:
        return [], ""
    is_heard = model.blend is not None and CONTEXT_TEXT in model.blend.heard
    heard = model.features.context_texts if is_heard else ()  # words may count beside the towers
    return [name for name in names if name != REQUEST_TIME and name not in heard], reason


def _not_in_towers(model: Recommender, source: str) -> str | None:
    """Why the towers of a model do not read a source that only they read, "context" or "user"; None: they do."""
    what = {"context": "contexts", "user": "attributes of users"}[source]
    if source not in model.config.model.sources:
        return f"the model was trained without {what} (model.sources)"
    if isinstance(model.towers, NoTowers):
        return f'a model of train.preset = "quick" has no towers, and only towers read {what}'
    return None


def unread_values(model: Recommender, history: Sequence[HasValue]) -> list[Note]:
    """The note on values of a request's history that have no effect, at the first event with one."""
    if model.kinds.are_graded:
        return []
    first = next((n for n, event in enumerate(history) if event.value is not None), None)
    if first is None:
        return []
    text = f"history: the value of an event has no effect, because {NO_FEEDBACK}"
    return [Note(("history", first, "value"), "value_not_read", text)]


def notes_of_events(model: Recommender, history: Sequence[_Event]) -> list[Note]:
    """The first notes on actions and contexts of a request's history: what the model does not know, what says nothing, and
    that no contexts are read; each once, at its first event."""
    reason, found = _not_in_towers(model, "context"), dict[str, Note]()
    actions = [e.action for e in history if e.action is not None and not says_nothing(e.action)]
    if odd := unknown_of(actions, model.kinds.actions.__contains__):  # those that values make are none
        text = f"history: {odd.told('actions that the model knows')}; such an event counts as one without an action"
        found[text] = Note(("history",), "unknown_action", text)
    for n, event in enumerate(history):
        own = list(notes_of_nothing({} if event.action is None else {"action": event.action}))
        own += _event_context_notes(model, event.context, reason) if event.context else []
        for note in own:
            told = dataclasses.replace(note, place=("history", n, *note.place), text=f"history: {note.text}")
            found.setdefault(told.text, told)
        if len(found) >= MAX_NOTES:
            break
    return list(found.values())


def _event_context_notes(model: Recommender, context: Mapping[str, Any], reason: str | None) -> Iterator[Note]:
    """Notes on the context of an event; `reason`: why the model reads none."""
    if reason is not None:
        yield Note(("context",), "context_not_read", f"contexts of events have no effect, because {reason}")
        return
    yield from notes_of_nothing(context, "context")
    yield from unknown_in_context(model.contexts, context)


def _filter_notes(retriever: Retriever[Recommender], rules: Mapping[str, ColumnRule]) -> Iterator[Note]:
    filters = retriever.item_filter
    given = ((c, part, v) for c, r in rules.items() for part in ("any", "none") for v in getattr(r, part) or ())
    for column, part, value in itertools.islice(given, _MAX_LOOKED_AT):
        if not filters.has_value(column, value):
            text = f"filter {column}: {_quoted(value)} is no value of any item"
            yield Note(("filter", column, part), "unknown_value", text)
    for column, rule in rules.items():
        if rule.min is None and rule.max is None:
            continue
        if rule.min is not None and rule.max is not None and rule.min > rule.max:
            text = f"filter {column}: min {rule.min:g} is above max {rule.max:g}, so no item passes"
            yield Note(("filter", column), "empty_range", text)
        elif (found := filters.range_of(column)) is None or not _meet(rule, found):
            known = "no item has a number" if found is None else f"the items go from {found[0]:g} to {found[1]:g}"
            yield Note(("filter", column), "empty_range", f"filter {column}: {known}, so no item passes")


def unknown_in_columns(contexts: ContextReader, requests: pa.Table) -> list[str]:
    """What is to be said of columns of context whose values the model does not know, one text a column.

    Args:
        contexts: of the model.
        requests: some requests; columns that are no categorical features are passed over.
    """
    told = []
    for name in requests.column_names:
        values = requests.column(name).unique().to_pylist()
        unknown = [value for value in values if contexts.unknown_values({name: value})]
        if unknown:
            shown = ", ".join(map(_quoted, unknown[:3]))
            told.append(
                f"context {name}: {len(unknown)} of {len(values)} values are none that the model knows, such as {shown}; "
                "each counts as any other such value"
            )
    return told


def unknown_in_lists(name: str, ids: pa.Array, known: pa.ChunkedArray) -> str | None:
    """What is to be said of a column of lists of items that the catalogue lacks; None where it has all.

    Args:
        name: of the column.
        ids: the ids of all lists, strings.
        known: the ids of the catalogue.
    """
    given = ids.drop_null()
    missing = given.filter(pc.invert(pc.is_in(given, value_set=known.combine_chunks().cast(given.type))))
    if not len(missing):
        return None
    shown = ", ".join(map(_quoted, missing.unique()[:_MAX_NAMED].to_pylist()))
    share = f"{len(missing)} of {len(given)} ids"
    return f"the column {name}: {share} are no items of the catalogue, such as {shown}; these have no effect"


def _meet(rule: ColumnRule, found: tuple[float, float]) -> bool:
    """Whether a range and that of the items have a number in common."""
    return (rule.min is None or rule.min <= found[1]) and (rule.max is None or rule.max >= found[0])


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
