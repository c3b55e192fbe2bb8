"""The HTTP API's bodies: what a request may hold, with its limits. Answers are in `serve/api_answers.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from ctxrec.data.calendar_times import MAX_TIME_US
from ctxrec.data.events import EARLIEST_S, LATEST_S, MAX_NUMBER, US
from ctxrec.retrieval.request_reader import MAX_DISLIKE, MAX_QUERY

MAX_BODY_BYTES = 1 << 20
MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 8192
MAX_K = 1000
MAX_HISTORY = 1000
MAX_EXCLUDE = 10_000
MAX_ALLOW = 10_000
MAX_FILTER_VALUES = 1000
MAX_FILTER_COLUMNS = 100
MAX_ATTRIBUTES = 100
MAX_REQUESTS = 256
MAX_WORK = 256_000  # the sum of k over the requests of a call
MAX_EVENTS = 1000
MAX_ITEMS = 256
MAX_USERS = 1000
MAX_VALUES = 100  # of a column of an item or a user
MAX_WHOLE = 2**64  # of a whole number, which may be an id or a code


def _at_most(num_bytes: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text.encode()) > num_bytes:
            raise ValueError(f"found {len(text.encode())} bytes; expected at most {num_bytes}")
        return text

    return check


def _one_mistake(message: str) -> GetPydanticSchema:
    """Lets a wrong value of a union be one mistake with this message, instead of one for each type of the union.

    A body of 1 MiB may have 100,000 wrong values.
    """

    def schema(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made: Any = handler(source)
        union = made["schema"] if made["type"] == "nullable" else made
        union |= {"custom_error_type": "value_type", "custom_error_message": message}
        return made

    return GetPydanticSchema(schema)


Id = Annotated[str, Field(min_length=1), AfterValidator(_at_most(MAX_ID_BYTES))]
Text = Annotated[str, AfterValidator(_at_most(MAX_TEXT_BYTES))]
Finite = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
Strict = Annotated[Finite, Field(strict=True)]  # a number as text is none, here and in timestamps
Whole = Annotated[int, Field(gt=-MAX_WHOLE, lt=MAX_WHOLE)]
Timestamp = Annotated[
    float,
    Field(
        strict=True,
        ge=EARLIEST_S,
        le=LATEST_S,
        allow_inf_nan=False,
        description="Epoch seconds, UTC; without it, the moment of the request.",
    ),
]
LogTime = Annotated[
    float,
    Field(
        strict=True,
        ge=0,
        lt=MAX_TIME_US // US,  # what `ctxrec.prepare` takes for a time of a log
        allow_inf_nan=False,
        description="Epoch seconds, UTC, from 1970 to 2199; without it, the moment of the request.",
    ),
]
_VALUE = (
    f"a text (expected at most {MAX_TEXT_BYTES} bytes), a number within {MAX_NUMBER:g} (a whole one of at most 64 bits), "
    "true, false or null"
)
ContextValue = Annotated[Text | bool | Whole | Finite | None, _one_mistake(f"expected {_VALUE}")]
ColumnValue = Annotated[
    ContextValue | Annotated[list[ContextValue], Field(max_length=MAX_VALUES, fail_fast=True)],
    _one_mistake(f"expected {_VALUE}, or a list of at most {MAX_VALUES} of these"),
]
NumItems = Annotated[int, Field(ge=1, le=MAX_K, description="How many items to return.")]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("found only blanks; expected an id")
    return text


EventId = Annotated[Id, AfterValidator(_not_blank)]


class Body(BaseModel):
    """An object of the API. null leaves an optional field out, so that clients may send all the fields they know."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict) or all(part is not None for part in value.values()):
            return value
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: part for name, part in value.items() if part is not None or name not in optional}


class Context(BaseModel):
    """The context of a request: its `timestamp`, and the context features of the data set by their names.

    `timezone`, an IANA name such as "America/New_York", is the zone in which hour, weekday and month of the request are
    told; without it, that of the log.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ContextValue]

    timestamp: Timestamp | None = None

    def features(self) -> dict[str, Any]:
        return self.__pydantic_extra__


class HistoryEvent(Body):
    """One event of the user; its item id alone is short for it."""

    item_id: Id
    action: Text | None = None
    timestamp: Timestamp | None = None
    value: Strict | None = Field(
        default=None,
        description="Rating, quantity, dwell time or money, as in the log; it counts where the dataset spec has [events.feedback].",
    )
    context: dict[str, ContextValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _id_is_event(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"item_id": value}
        if not isinstance(value, (dict, cls)):
            raise ValueError("expected an event with item_id, or an item id as a text")
        return value


class ColumnRule(Body):
    """What a column of the catalogue must hold: one of these values, none of those, a number in a range."""

    any: Annotated[list[Text], Field(max_length=MAX_FILTER_VALUES, fail_fast=True)] | None = None
    none: Annotated[list[Text], Field(max_length=MAX_FILTER_VALUES, fail_fast=True)] | None = None
    min: Strict | None = Field(default=None, description="The least number that passes.")
    max: Strict | None = Field(default=None, description="The greatest number that passes.")

    @model_validator(mode="before")
    @classmethod
    def _list_is_any(cls, value: Any) -> Any:
        if isinstance(value, list):
            if any(isinstance(one, int | float) for one in value):
                raise ValueError("expected texts, the values of a categorical column; a numeric one takes min and max")
            return {"any": value}
        if not isinstance(value, (dict, cls)):
            raise ValueError("expected a list of values, or an object with some of any, none, min and max")
        if isinstance(value, dict) and all(part is None for part in value.values()):
            raise ValueError("found an empty rule; expected any, none, min or max")
        return value


class RecommendRequest(Body):
    """One request for recommendations. Either `user_id` or `history` is required; everything else is optional, and null
    leaves it out."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "196", "k": 10, "context": {"timestamp": 893286638}, "query": "quiet sci-fi for tonight"},
                {"history": [{"item_id": "242"}, {"item_id": "50"}], "exclude": ["302"]},
            ]
        },
    )

    user_id: Id | None = None
    k: Annotated[NumItems, Field(strict=True)] = 10
    context: Context = Field(default_factory=Context)
    history: Annotated[list[HistoryEvent], Field(max_length=MAX_HISTORY)] | None = Field(
        default=None, description="Events or item ids, oldest first; replaces the stored history of the user."
    )
    exclude: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDE, description="Items not to return.")
    dislike: list[Id] = Field(
        default_factory=list,
        max_length=MAX_DISLIKE,
        description="Items the like of which is not wanted: what is like them falls, and they themselves are not returned.",
        examples=[["172"]],
    )
    allow: list[Id] | None = Field(
        default=None,
        max_length=MAX_ALLOW,
        description="Only these items may be returned; unknown ids match nothing.",
    )
    filter: dict[Text, ColumnRule] = Field(
        default_factory=dict,
        max_length=MAX_FILTER_COLUMNS,
        description="Rules by item column; every one must hold. A list is short for `any`: any of the values of a "
        "categorical column. `min` and `max` are for numeric columns; an item without the number does not pass.",
        examples=[{"genres": ["Comedy"]}, {"genres": {"none": ["Horror"]}, "year": {"min": 1980, "max": 1998}}],
    )
    user: dict[Text, ColumnValue] = Field(
        default_factory=dict,
        max_length=MAX_ATTRIBUTES,
        description="Attributes of the user by the columns of the user file, in the place of the stored ones; those that are "
        "left out stay. null says that one is not known. A column that holds several values takes a list.",
        examples=[{"age": 30, "occupation": "artist"}, {"interests": ["films", "chess"], "about": "reads at night"}],
    )
    query: Annotated[str, Field(max_length=MAX_QUERY)] | None = Field(
        default=None,
        description="Free text that the list should fit besides the taste.",
        examples=["quiet sci-fi for tonight"],
    )
    diversity: Annotated[Finite, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None,
        description="Strength of MMR. 0 keeps the order of the scores, 1 looks only at how items differ; the default is the service's.",
    )
    rerank: Annotated[bool, Field(strict=True)] | None = Field(
        default=None,
        description="Whether the second stage (`ctxrec rerank`, a cross-encoder) puts the best candidates in a new order, "
        "before diversity and rules; the default is the service's (`rerank.use`). Where the model has none, the answer has "
        "a warning.",
    )
    explain: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="Explain the score of each item; only in a single request, not in a list of requests.",
    )
    probability: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="Add a calibrated probability to each item: of a success if the user meets the item now, where the log "
        "judges items, otherwise that it is the user's next event (`probability_of` of the answer).",
    )

    @field_validator("user", mode="before")
    @classmethod
    def _attributes(cls, user: Any) -> Any:
        if not isinstance(user, dict):
            raise ValueError('expected attributes such as {"age": 30}; the id of a user is user_id')
        return user

    @model_validator(mode="after")
    def _somebody_asks(self) -> RecommendRequest:
        if self.user_id is None and self.history is None:
            raise ValueError("user_id or history is required")
        return self


class RecommendBatch(Body):
    """Many requests in one call, answered by one version of the model (in an A/B test, by one of each arm)."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=MAX_REQUESTS)]

    @field_validator("requests")
    @classmethod
    def _explained_alone(cls, requests: list[RecommendRequest]) -> list[RecommendRequest]:
        for place, request in enumerate(requests):
            if request.explain:
                raise ValueError(f"request {place} has explain, which only a single request may have")
        return requests


class NewEvent(Body):
    """One event of a user, which the service stores."""

    user_id: EventId
    item_id: EventId
    action: Text | None = None
    timestamp: LogTime | None = None
    value: Strict | None = None
    context: dict[str, ContextValue] = Field(default_factory=dict)


class EventsRequest(Body):
    """Events of any users. Each call is atomic and idempotent: duplicates are ignored."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"events": [{"user_id": "196", "item_id": "242", "timestamp": 893286638}]}]},
    )

    events: Annotated[list[NewEvent], Field(min_length=1, max_length=MAX_EVENTS)]


class NewItem(BaseModel):
    """A row of the item file: `item_id`, and the file's columns by their names; what is left out is missing."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ColumnValue]

    item_id: EventId

    def row(self) -> dict[str, Any]:
        return {"item_id": self.item_id, **self.__pydantic_extra__}


class NewItems(Body):
    """Items to add to the catalogue; an item of the same id is replaced. Each call is atomic."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"items": [{"item_id": "new", "title": "A new comedy", "genres": ["Comedy"]}]}]
        },
    )

    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_ITEMS)]


class NewUser(BaseModel):
    """A row of the user file: `user_id`, and the file's columns by their names; what is left out is not known."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ColumnValue]

    user_id: EventId

    def row(self) -> dict[str, Any]:
        return {"user_id": self.user_id, **self.__pydantic_extra__}


class NewUsers(Body):
    """Attributes of new or known users; the row of a known user is replaced. Each call is atomic."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"users": [{"user_id": "196", "age": 49, "occupation": "writer"}]}]},
    )

    users: Annotated[list[NewUser], Field(min_length=1, max_length=MAX_USERS)]
