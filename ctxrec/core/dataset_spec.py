"""The dataset spec (`dataset.toml`): which files hold the log and which column means what."""

from __future__ import annotations

import codecs
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.schema import TIME_CONTEXT
from ctxrec.core.time_formats import check_time_format
from ctxrec.core.time_zones import UTC, check_zone
from ctxrec.core.toml import build_dataclass, read_toml

REQUEST_TIME = "timestamp"  # in the context of a request


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _each_once(section: str, columns: tuple[str, ...]) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise UserError(f"[{section}] names column {name!r} twice; expected each once, as one kind of feature")


def _check_separators(
    section: str, separators: dict[str, str], categorical: tuple[str, ...], single: tuple[str, ...]
) -> None:
    for name, separator in separators.items():
        if name in single:
            raise UserError(
                f"[{section}.separators] names column {name!r}, which is the id or a number too, and has one value a "
                f"row; leave it out there, or out of {section}.numeric"
            )
        if name not in categorical:
            raise UserError(
                f"[{section}.separators] names column {name!r}; expected one of {section}.categorical: "
                f"{', '.join(categorical) or 'which is empty'}"
            )
        if not separator.strip():
            raise UserError(
                f'{section}.separators.{name} is {separator!r}; expected what divides the values, such as "|", or '
                '"[]" for lists in brackets'
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSpec:
    """Where a table lies and how its text is written.

    `path` is a file, folder, glob or URI. `delimiter` divides the columns of a csv or tsv file; without it that is a comma
    or a tab. `encoding` is that of a text file, as Python names it; without it that is UTF-8. `decimal` is the decimal sign
    of numbers that are texts, "," or "."; the other of the two may group their thousands. Without it the sign is a point,
    and nothing is grouped.
    """

    path: str
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None

    def _check_form(self, section: str) -> None:
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n'
        ):
            raise UserError(
                f'{section}.delimiter is {self.delimiter!r}; expected one ASCII character, such as ";" or "\\t"'
            )
        if self.decimal not in (None, ",", "."):
            raise UserError(
                f'{section}.decimal is {self.decimal!r}; expected the decimal sign of numbers in texts, "," or "."'
            )
        if self.encoding is not None:
            try:  # some codecs of Python are not of text, such as hex; others need all of it at once, such as punycode
                codecs.getincrementaldecoder(self.encoding)().decode(pa.py_buffer(b"a")).encode()
            except Exception as error:
                raise UserError(
                    f'{section}.encoding is {self.encoding!r}, which is none that a text file can be read with; expected one such as "utf-8", "cp1252", '
                    '"gb18030" or "utf-16"'
                ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSpec:
    """Columns of the event log whose values are known at the time of a request."""

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _each_once("events.context", self.columns)
        for name in self.columns:
            if name in (*TIME_CONTEXT, REQUEST_TIME):
                raise UserError(
                    f"[events.context] names a column {name!r}; a request's context has the time under timestamp, and "
                    f"{', '.join(TIME_CONTEXT)} are derived from it. Give the column another name in the log"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        return self.categorical + self.numeric + self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackSpec:
    """What the value of an event means, in the unit of the log's column (`ctxrec.data.feedback`).

    kind: what the value is; it gives the kinds of event their names, such as "rating negative".
    positive: from this value on an event is a success, which is a training target.
    negative: up to this value an event is negative feedback; None: none is. Between the two, an event is history alone.
    weight: "log": a success weighs log(1 + value) / log(1 + positive) as a target; "none": all alike.
    """

    kind: Literal["rating", "quantity", "dwell", "money"]
    positive: float
    negative: float | None = None
    weight: Literal["none", "log"] = "none"

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            bound = getattr(self, name)
            if bound is not None and not math.isfinite(bound):
                raise UserError(f"events.feedback.{name} is {bound}; expected a finite number")
        if self.negative is not None and self.negative >= self.positive:
            raise UserError(
                f"events.feedback.negative is {self.negative:g} and positive is {self.positive:g}; expected negative below "
                "positive: values up to the one are negative feedback, values from the other on are successes"
            )
        if self.weight == "log" and self.positive <= 0:
            raise UserError(
                f'events.feedback.weight is "log" and positive is {self.positive:g}; expected positive above 0, because a '
                "success weighs log(1 + value) / log(1 + positive)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsSpec(FileSpec):
    """The behaviour log: where it lies, which column is what, and in which time zone hour, weekday and month are told.

    `timezone` is an IANA name. Times of the log that name no offset are times of that zone. `time_format` is the format of
    times that are texts, in the directives of `strptime`; without it they are epoch numbers or ISO-8601.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_format: str | None = None
    timezone: str = UTC
    action: str | None = None
    value: str | None = None
    context: ContextSpec = field(default_factory=ContextSpec)
    actions: dict[str, float] = field(default_factory=dict)
    feedback: FeedbackSpec | None = None

    def __post_init__(self) -> None:
        self._check_form("events")
        check_zone(self.timezone, "events.timezone")
        if self.time_format is not None:
            check_time_format(self.time_format, "events.time_format")
        keys = {"user": self.user, "item": self.item, "time": self.time}
        for key, other in (("item", "user"), ("time", "user"), ("time", "item")):
            if keys[key] and keys[key] == keys[other]:
                raise UserError(
                    f"events.{key} and events.{other} are both {keys[key]!r}; expected columns of their own for the user, "
                    "the item and the time"
                )
        for action, weight in self.actions.items():
            if not (_is_number(weight) and math.isfinite(weight)):
                raise UserError(f"events.actions.{action} is {weight!r}; expected a finite number")
        if self.actions and self.action is None:
            raise UserError(
                "[events.actions] has weights of actions, and [events] names no column of actions; expected "
                'action = "COLUMN" in [events]'
            )
        if self.feedback is not None and self.value is None:
            raise UserError(
                "[events.feedback] says what values mean, and [events] names no column of values; expected "
                'value = "COLUMN" in [events]'
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemsSpec(FileSpec):
    """The item table: where it lies, and which column is what.

    `separators` says what divides the values of a text in a categorical column (`ctxrec.data.list_texts`).
    """

    id: str = "item_id"
    text: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    image: str | None = None
    audio: str | None = None
    separators: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_form("items")
        for kind in ("text", "categorical", "numeric"):
            _each_once(f"items.{kind}", getattr(self, kind))
        _check_separators("items", self.separators, self.categorical, (self.id, *self.numeric))

    @property
    def media(self) -> dict[str, str]:
        """Columns of images and sounds, by kind: "image" and "audio"."""
        return {kind: name for kind in ("image", "audio") if (name := getattr(self, kind)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class UsersSpec(FileSpec):
    """The table of user attributes; `separators` is as in `ItemsSpec`. `text` are columns of free texts."""

    id: str = "user_id"
    text: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    separators: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_form("users")
        _each_once("users", self.text + self.categorical + self.numeric)
        _check_separators("users", self.separators, self.categorical, (self.id, *self.numeric))

    @property
    def columns(self) -> tuple[str, ...]:
        """All attributes."""
        return self.text + self.categorical + self.numeric

    @property
    def media(self) -> dict[str, str]:
        """Columns of images and sounds, which users have none of."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec(FileSpec):
    """Knowledge-graph triples. Those whose head is an item become a category of that item (`ctxrec.ingest.triples`)."""

    head: str = "head"
    relation: str = "relation"
    tail: str = "tail"

    def __post_init__(self) -> None:
        self._check_form("graph")
        if self.decimal is not None:
            raise UserError(f"graph.decimal is {self.decimal!r}, but triples have no numbers; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSpec:
    """How events are divided into train, valid and test.

    temporal: one global cut, `valid` and `test` are shares of events by time.
    last: the last event of each user with at least three events is the test event, and the one
    before it the validation event (each where its share is above 0).
    """

    strategy: Literal["temporal", "last"] = "temporal"
    valid: float = 0.1
    test: float = 0.1
    repeats: bool = False

    def __post_init__(self) -> None:
        for name in ("valid", "test"):
            share = getattr(self, name)
            if not 0 <= share < 1 and not (self.strategy == "last" and share == 1):
                raise UserError(f"split.{name} is {share}; expected a share from 0 to below 1")
        if self.strategy == "temporal" and self.valid + self.test >= 1:
            raise UserError(
                f"split.valid + split.test is {self.valid + self.test:g}; expected below 1, "
                "so that events are left to train on"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """A whole `dataset.toml`."""

    name: str
    events: EventsSpec
    items: ItemsSpec | None = None
    users: UsersSpec | None = None
    graph: GraphSpec | None = None
    split: SplitSpec = field(default_factory=SplitSpec)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain dictionaries and lists, which TOML and JSON can hold."""
        made = dataclasses.asdict(self)
        if self.events.feedback is None:  # as versions without this section wrote it, so that fingerprints stay
            del made["events"]["feedback"]
        return made

    @staticmethod
    def from_dict(raw: dict[str, Any], *, source: str = "dataset spec") -> DatasetSpec:
        return build_dataclass(DatasetSpec, raw, source=source)


def load_spec(path: str) -> DatasetSpec:
    """Read a dataset spec and make its paths absolute (relative ones start at the spec's folder).

    Raises:
        UserError: the file is missing, is no TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        raw = read_toml(path)
    except UserError as error:
        if path.endswith(".toml"):
            raise
        raise UserError(f"{path} is no dataset spec; expected the dataset.toml that `ctxrec init` writes") from error
    spec = DatasetSpec.from_dict(raw, source=path)
    base = storage.parent(path)

    def absolute(part: Any) -> Any:
        return None if part is None else dataclasses.replace(part, path=storage.join(base, part.path))

    return dataclasses.replace(
        spec,
        events=absolute(spec.events),
        items=absolute(spec.items),
        users=absolute(spec.users),
        graph=absolute(spec.graph),
    )
