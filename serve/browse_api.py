"""Answers of the calls behind the page: the catalogue, rows of items, users and their histories."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ItemColumns(BaseModel):
    """Columns of the item file: values of the categorical ones by frequency, the range of the numeric ones."""

    categorical: dict[str, list[str]]
    numeric: dict[str, dict[str, float | None]]


class ContextFeatures(BaseModel):
    """What a request's context may hold besides its time."""

    categorical: dict[str, list[str]]
    numeric: list[str]
    text: list[str]


class CatalogueResponse(BaseModel):
    """What is served.

    `latest_event`: time of the last event of the log, epoch seconds. `timezone`: IANA name of the zone in which hour, weekday
    and month are told. `clock`: false where the times of the log are positions, which have no hour.
    """

    name: str
    model_version: str
    num_items: int
    num_users: int
    latest_event: float | None
    timezone: str
    clock: bool
    repeats: bool
    actions: list[str]
    item_columns: ItemColumns
    context: ContextFeatures


class ItemRows(BaseModel):
    """Items with `item_id`, `title` and the columns of the item file."""

    items: list[dict[str, Any]]


class UserRow(BaseModel):
    """A user of the log, and how many events it has of them."""

    user_id: str
    events: int


class UsersResponse(BaseModel):
    """Users in the order of their ids."""

    users: list[UserRow]


class ToldEvent(BaseModel):
    """One event of a user."""

    item_id: str
    title: str
    action: str | None
    timestamp: float
    context: dict[str, Any]


class HistoryResponse(BaseModel):
    """The events of a user, the latest first. `known` is whether there are any."""

    user_id: str
    known: bool
    events: list[ToldEvent]
    degraded: str | None = None
