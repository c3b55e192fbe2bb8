"""Requests of new data, said in the codes of a version that was trained on other data.

An item is a position in a catalogue, and a category a position in a vocabulary. Both differ between two versions, so
the same request has other numbers in each. What a version does not know is left out, as the service leaves it out.

Legend: N requests, I items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ctxrec.core import schema
from ctxrec.data.events import Context, Users
from ctxrec.data.prepared import FeatureMeta
from ctxrec.data.requests import Requests
from ctxrec.retrieval.recommender import Recommender


def item_map(item_ids: Sequence[str], version: Recommender) -> np.ndarray:
    """Positions of items in a version's catalogue, -1 for those that it lacks: int64 [I]."""
    known = version.item_position
    return np.array([known.get(item, -1) for item in item_ids], np.int64)


def in_codes_of(version: Recommender, requests: Requests, features: FeatureMeta, items_I: np.ndarray) -> Requests:
    """The requests as a version would read them, without targets.

    Args:
        version: a model that was trained on other data.
        requests: in the codes of the data that they come from.
        features: vocabularies of that data.
        items_I: what `item_map` says of its items.
    """
    theirs = version.features
    known = items_I[requests.history.items] >= 0
    history = requests.history.keep(known)
    actions = _actions(features.actions, theirs.actions)
    history = dataclasses.replace(
        history,
        items=items_I[history.items].astype(np.int32),
        actions=actions[history.actions].astype(np.int16),
        context=_context(history.context, features, theirs, len(history.items)),
    )
    return Requests(
        users=_users(requests.users, features, theirs),
        history=history,
        times=requests.times,
        context=_context(requests.context, features, theirs, len(requests)),
        query=requests.query,
    )


def code_map(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """Codes of a vocabulary in another one, by code: int32 [values + FIRST_CODE].

    >>> code_map(["a", "b"], ["b"]).tolist()
    [0, 1, 1, 2]
    """
    place = {value: code for code, value in enumerate(theirs, schema.FIRST_CODE)}
    return np.array([schema.MISSING, schema.OTHER, *(place.get(value, schema.OTHER) for value in ours)], np.int32)


def _actions(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    place = {value: code for code, value in enumerate(theirs, 1)}
    return np.array([0, *(place.get(value, 0) for value in ours)], np.int64)


def _categories(
    codes: dict[str, np.ndarray], ours: dict[str, list[str]], theirs: dict[str, list[str]], num: int
) -> dict[str, np.ndarray]:
    """Codes of the features that the version knows; a feature that the data lacks is missing everywhere."""
    return {
        name: code_map(ours[name], values)[codes[name]] if name in ours else np.full(num, schema.MISSING, np.int32)
        for name, values in theirs.items()
    }


def _numbers(values: dict[str, np.ndarray], names: Sequence[str], num: int) -> dict[str, np.ndarray]:
    return {name: values[name] if name in values else np.full(num, np.nan, np.float32) for name in names}


def _context(context: Context, ours: FeatureMeta, theirs: FeatureMeta, num: int) -> Context:
    time = {name: context.cat[name] for name in schema.TIME_CONTEXT}
    nothing = np.full(num, None, object)
    return Context(
        cat=time | _categories(context.cat, ours.context_categories, theirs.context_categories, num),
        num=_numbers(context.num, list(theirs.context_numbers), num),
        text={name: context.text.get(name, nothing) for name in theirs.context_texts},
    )


def _users(users: Users, ours: FeatureMeta, theirs: FeatureMeta) -> Users:
    num, nothing = len(users.ids), np.full(len(users.ids), None, object)
    # An attribute that has several values in one version and one in the other is that list, or its first value.
    codes = {**users.cat, **{name: found[:, 0] for name, found in users.lists.items()}}
    lists = {**{name: found[:, None] for name, found in users.cat.items()}, **users.lists}
    single = {name: values for name, values in theirs.user_categories.items() if name not in theirs.user_lists}
    several = {name: values for name, values in theirs.user_categories.items() if name in theirs.user_lists}
    made = _categories(lists, ours.user_categories, several, num)
    return Users(
        ids=users.ids,
        cat=_categories(codes, ours.user_categories, single, num),
        num=_numbers(users.num, list(theirs.user_numbers), num),
        lists={name: found if found.ndim == 2 else found[:, None] for name, found in made.items()},
        text={name: users.text.get(name, nothing) for name in theirs.user_texts},
    )
