"""Rows of users that are posted to a replica: checked, stored, and told again. Every request reads them from the store."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import Counter

from ctxrec.core.errors import UserError
from ctxrec.data.posted_rows import USER_ID, BadRow, check_rows
from ctxrec.live.store import HistoryStore
from ctxrec.retrieval.no_effect import MAX_NOTES, unknown_attributes, unread_texts, why_unread
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever


class UserRows:
    """Takes posted rows of users, and tells what is known of one.

    Args:
        store: where they go, and what all replicas read.
        changes: counts users whose row changed.
    """

    def __init__(self, store: HistoryStore, changes: Counter) -> None:
        self._store, self._changes = store, changes

    def put(self, rows: Sequence[Mapping[str, Any]], retriever: Retriever[Recommender]) -> list[dict[str, Any]]:
        """Store rows; returns what of them has no effect, as `FieldWarning` of the API.

        Raises:
            BadRow: a row does not fit the user file.
            StoreError: they may not be stored.
        """
        self._check(rows, retriever.recommender)
        self._store.change_rows("users", {row[USER_ID]: _attributes(row) for row in rows})
        self._changes.inc(len(rows))
        return _warnings(rows, retriever)

    def remove(self, user_id: str, retriever: Retriever[Recommender]) -> bool:
        """Let nothing be known of a user any more, neither what was posted nor what the user file says; False where nothing
        is known already."""
        model, posted = retriever.recommender, self._store.posted_rows("users", [user_id])
        known = posted[user_id] is not None if user_id in posted else bool(self._told(user_id, model))
        if known:
            self._store.change_rows("users", {user_id: None})
            self._changes.inc()
        return known

    def known(self, user_id: str, retriever: Retriever[Recommender]) -> dict[str, Any] | None:
        """What is known of a user, in the form of the API; None for a user of whom neither the log nor a post tells.

        Raises:
            StoreError: the store does not answer.
        """
        model, posted = retriever.recommender, self._store.posted_rows("users", [user_id])
        if user_id in posted:
            row = posted[user_id]
            return None if row is None else {"user_id": user_id, "attributes": row, "posted": True}
        told = self._told(user_id, model)
        return None if told is None else {"user_id": user_id, "attributes": told, "posted": False}

    @staticmethod
    def _told(user_id: str, model: Recommender) -> dict[str, Any] | None:
        """What the user file says of a user; None for one of whom the log does not tell."""
        row = model.user_row.get(user_id)
        return None if row is None else model.attributes.told(model.histories.users, row)

    def _check(self, rows: Sequence[Mapping[str, Any]], model: Recommender) -> None:
        if model.spec.users is None:
            raise BadRow(
                "the data set has no table of users ([users] in its spec), so nothing can be stored", 0, USER_ID
            )
        check_rows(rows, model.spec, "users")
        for place, row in enumerate(rows):
            try:
                model.attributes.check(_attributes(row))
            except UserError as error:
                raise BadRow(str(error), place, str(error.field[0])) from error


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != USER_ID}


def _warnings(rows: Sequence[Mapping[str, Any]], retriever: Retriever[Recommender]) -> list[dict[str, Any]]:
    """The first notes of stored rows; that no attribute is read is said once."""
    model, reranked = retriever.recommender, retriever.reranker is not None
    if (reason := why_unread(model, reranked=reranked)) is not None:
        text = f"attributes have no effect until a model is trained that reads them, because {reason}"
        return [{"loc": ["body", "users"], "msg": text, "type": "attributes_not_read"}]
    notes = (
        {"loc": ["body", "users", place, *note.place[1:]], "msg": note.text, "type": note.kind}
        for place, row in enumerate(rows)
        for note in (*(() if reranked else unread_texts(model, row)), *unknown_attributes(model, _attributes(row)))
    )
    return list(itertools.islice(notes, MAX_NOTES))
