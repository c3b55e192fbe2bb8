"""What agents may call over MCP: each tool is one call of the HTTP API, with its checks, limits and scopes.

A tool's arguments become the request that a program would send, so there is nothing here that HTTP does not answer. They are
fields of `RecommendRequest` with its types, limits and descriptions: `recommend` has all of them, `explain` all of those that
make a score, so that a new field is there by itself, and `search` a few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, Field, create_model

from ctxrec.retrieval.request_reader import MAX_QUERY
from serve.api import (
    MAX_FILTER_COLUMNS,
    MAX_ITEMS,
    Body,
    ColumnRule,
    ContextValue,
    Id,
    NumItems,
    RecommendRequest,
    Text,
)


@dataclass(frozen=True)
class HttpCall:
    """A request of the HTTP API: method, path (percent-encoded), query string, and the JSON body where it has one."""

    method: str
    path: str
    query: str = ""
    body: dict[str, Any] | None = None


# What an explanation sets itself, as it is of one item; all other fields of a request make a score.
OF_THE_LIST = ("k", "exclude", "allow", "filter", "diversity", "rerank", "explain")
# What a search leaves to recommend, so that agents find the few fields that it needs.
BEYOND_SEARCH = ("history", "dislike", "user", "rerank", "explain", "probability")


def _of_request(name: str, *, without: Sequence[str], **more: Any) -> type[BaseModel]:
    """Arguments with the fields of a request by their names, but those left out, and `more` fields before them."""
    fields: dict[str, Any] = {
        field: (info.rebuild_annotation(), copy(info))
        for field, info in RecommendRequest.model_fields.items()
        if field not in without and field not in more
    }
    return create_model(name, __base__=Body, **more, **fields)


ExplainArguments = _of_request(
    "ExplainArguments",
    without=OF_THE_LIST,
    item_id=(Id, Field(description="The item whose score is explained.")),
)
SearchArguments = _of_request(
    "SearchArguments",
    without=BEYOND_SEARCH,
    query=(
        Annotated[str, Field(min_length=1, max_length=MAX_QUERY)],
        Field(description="Free text, such as 'quiet science fiction for tonight'."),
    ),
    user_id=(Id | None, Field(default=None, description="Whose taste counts besides the words; none: nobody's.")),
)


class SimilarArguments(Body):
    """To which item others are similar."""

    item_id: Id
    k: NumItems = 10


class ItemArguments(Body):
    """Which items."""

    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)]


class TrendingArguments(Body):
    """How many items, and of which kind."""

    k: NumItems = 10
    filter: dict[Text, ColumnRule] = Field(
        default_factory=dict, max_length=MAX_FILTER_COLUMNS, description="Rules by item column, as in recommend."
    )
    context: dict[Text, ContextValue] = Field(
        default_factory=dict,
        max_length=MAX_FILTER_COLUMNS,
        description="Users in this context alone count: values of categorical features of a context.",
    )


class NoArguments(Body):
    """Nothing."""


@dataclass(frozen=True)
class Tool:
    """A tool: its name, what it is for, what it takes, and the call that it makes of it.

    `checked` is whether the arguments are checked here; those that are a whole body are checked by the route. `refusal` says
    of an answer that the tool has none, and why.
    """

    name: str
    title: str
    description: str
    arguments: type[BaseModel]
    call: Callable[[dict[str, Any]], HttpCall]
    checked: bool = True
    refusal: Callable[[dict[str, Any], dict[str, Any]], str | None] = lambda arguments, answer: None


def _recommend(arguments: dict[str, Any]) -> HttpCall:
    return HttpCall("POST", "/v1/recommend", body=arguments)


def _search(arguments: dict[str, Any]) -> HttpCall:
    who: dict[str, Any] = {} if arguments.get("user_id") is not None else {"history": []}
    return _recommend({name: value for name, value in arguments.items() if value is not None} | who)


def _explain(arguments: dict[str, Any]) -> HttpCall:
    rest = {name: value for name, value in arguments.items() if name != "item_id"}
    return _recommend(
        {**rest, "allow": [arguments["item_id"]], "k": 1, "explain": True, "rerank": False, "diversity": 0}
    )


def _no_item(arguments: dict[str, Any], answer: dict[str, Any]) -> str | None:
    """That an explanation is of an item which the catalogue lacks."""
    places = [warning["loc"] for warning in answer.get("warnings", ()) if warning["type"] == "unknown_item"]
    return (
        f"item_id: the catalogue has no item {arguments['item_id'][:100]!r}"
        if ["arguments", "allow"] in places
        else None
    )


def _similar(arguments: dict[str, Any]) -> HttpCall:
    return HttpCall(
        "GET", f"/v1/items/{quote(arguments['item_id'], safe='')}/similar", urlencode({"k": arguments.get("k", 10)})
    )


def _items(arguments: dict[str, Any]) -> HttpCall:
    return HttpCall("GET", "/v1/items", urlencode([("id", item) for item in arguments["item_ids"]]))


def _trending(arguments: dict[str, Any]) -> HttpCall:
    parts = {name: json.dumps(arguments[name]) for name in ("filter", "context") if arguments.get(name)}
    return HttpCall("GET", "/v1/trending", urlencode({"k": arguments.get("k", 10), **parts}))


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "recommend",
            "Recommend items",
            "The best items for a user or for a history of items, by taste, context and time; with filters, words, items not "
            "wanted, probabilities and reasons. Answers hold ids and scores; item_details has titles. The tool catalogue says "
            "which columns a filter and which features a context may have.",
            RecommendRequest,
            _recommend,
            checked=False,
        ),
        Tool(
            "search",
            "Search items by words",
            "The items whose texts are most like some words, of those that pass a filter. With user_id the user's taste counts "
            "too. Popularity counts a little. A warning says where the model reads no words.",
            SearchArguments,
            _search,
        ),
        Tool(
            "similar",
            "Similar items",
            "The items that are most similar to one item.",
            SimilarArguments,
            _similar,
        ),
        Tool(
            "explain",
            "Explain a recommendation",
            "Why an item has its score for a user: the effect of each of the latest items of the history, of each part of the "
            "context and of each attribute of the user, and the parts of the score by source. An unknown item is an error. The "
            "list is empty where the item cannot be recommended, such as one that the user had already.",
            ExplainArguments,
            _explain,
            refusal=_no_item,
        ),
        Tool(
            "item_details",
            "Item details",
            "Title and columns of items by their ids; unknown ids are left out.",
            ItemArguments,
            _items,
        ),
        Tool(
            "trending",
            "Trending items",
            "The items with the most users now, of all users or of those in a context. The score is the number of users.",
            TrendingArguments,
            _trending,
        ),
        Tool(
            "catalogue",
            "About the catalogue",
            "What is served: number of items and users, columns of items with their values, context features, actions.",
            NoArguments,
            lambda _: HttpCall("GET", "/v1/catalogue"),
        ),
    )
}
