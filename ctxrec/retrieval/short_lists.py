"""Why a list has fewer items than were asked for: what each part of the request leaves of the catalogue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.retrieval.filters import ColumnRule
from ctxrec.retrieval.no_effect import Note
from ctxrec.retrieval.recommender import Recommender
from ctxrec.retrieval.retriever import Retriever


def is_expected(num: int, notes: Iterable[Note], allow: Collection[str] | None) -> bool:
    """Whether nothing is to be said of a list of `num` items, fewer than were asked for: it has all items of `allow`, which
    were to be ranked, or it is empty and other notes of the request say why."""
    if num == 0:
        return any(note.place[0] in ("filter", "allow") for note in notes)
    return allow is not None and num == len(set(allow))


def why_short(
    retriever: Retriever[Recommender],
    request: Requests,
    num: int,
    k: int,
    *,
    rules: Mapping[str, ColumnRule],
    allow: Iterable[str] | None,
    exclude: np.ndarray,
) -> Note:
    """The note on a list that is shorter than it was asked to be.

    Args:
        retriever: that made the list, with the catalogue that it was made from (`catalogue.reading`).
        request: the one request of the list.
        num: items of the list.
        k: items that were asked for.
        rules: the filter, by item column.
        allow: ids of the items that alone are wanted; None: all.
        exclude: positions of the items that are not wanted.
    """
    left = retriever.catalogue.alive.copy()
    total = int(left.sum())
    told: list[str] = []
    for part, mask in _parts(retriever, request, rules, allow, exclude):
        before = int(left.sum())
        left &= mask
        if (now := int(left.sum())) < before:
            told.append(f"{part} {'leaves ' * (not told)}{now:,}")
    found = "is empty" if num == 0 else f"has {num} of {k} items"
    reason = f"the catalogue has {total:,} items" if not told else f"of {total:,} items, {', '.join(told)}"
    return Note(("k",), "short_list", f"the list {found}: {reason}")


def _parts(
    retriever: Retriever[Recommender],
    request: Requests,
    rules: Mapping[str, ColumnRule],
    allow: Iterable[str] | None,
    exclude: np.ndarray,
) -> Iterator[tuple[str, Any]]:
    """Each part of a request that leaves items out, with those that it lets pass: bool [I]."""

    def without(positions: np.ndarray) -> np.ndarray:
        others = np.ones(len(retriever.catalogue), bool)
        others[positions] = False
        return others

    if rules:
        yield "filter", retriever.compile_filter(rules)
    if allow is not None:
        yield "allow", retriever.compile_filter(None, allow=allow)
    yield "exclude", without(exclude)
    if request.disliked is not None:
        yield "dislike", without(request.disliked[0])
    if not retriever.recommender.repeats:
        yield "what the user has not had yet", without(request.seen()[0])
    blocked = retriever.slate_builder.open_items(request, None)
    if blocked is not None and blocked[0] is not None:
        yield "the rules", blocked[0]
