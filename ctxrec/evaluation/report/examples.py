"""Example users of the report: what they saw, what they got and what they then took."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa

from ctxrec.core import schema
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.report.page import Example, Taken
from ctxrec.evaluation.summary import RankedLists

_DRAWN = 3  # users with a hit, and users without


def example_users(
    prepared: PreparedData,
    lists: RankedLists,
    ndcg: np.ndarray,
    table: pa.Table,
    *,
    system: str,
    other: str | None,
    seed: int,
) -> list[Example]:
    """Three users drawn among those with a hit in the first ten, and three among the others.

    Args:
        prepared: the data, for titles.
        lists: the lists of every system.
        ndcg: float [N] of `system`.
        table: what `rank_requests` returned, for times and latest events.
        system: the system whose lists are shown.
        other: the best baseline, whose lists are shown beside them; None without one.
        seed: makes the draw repeatable.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(mask))[:_DRAWN] for mask in (ndcg > 0, ndcg == 0)]
    titles = prepared.items.column(schema.ITEM_TITLE).combine_chunks()
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()

    def names(positions: np.ndarray) -> list[str]:
        return [titles[int(p)].as_py() or item_ids[int(p)].as_py() for p in positions]

    def listed(top: np.ndarray, targets: np.ndarray) -> list[tuple[str, bool]]:
        got = top[:10][top[:10] >= 0]
        return list(zip(names(got), np.isin(got, targets).tolist(), strict=True))

    recent, asked = table.column("recent").combine_chunks(), table.column("time")
    examples = []
    for n in np.concatenate(drawn):
        top, targets = lists.tops[system][n], lists.targets(n)
        place = {int(item): rank for rank, item in enumerate(top, 1) if item >= 0}
        taken = [Taken(t, place.get(int(i))) for t, i in zip(names(targets), targets, strict=True)]
        examples.append(
            Example(
                user_id=lists.user_ids[n],
                about=[_asked_at(asked[int(n)].as_py()), *_facts_of(lists, n)],
                saw=names(recent[int(n)].values.to_numpy()),
                got=listed(top, targets),
                took=sorted(taken, key=lambda item: item.rank or len(top) + 1),
                others=listed(lists.tops[other][n], targets) if other is not None and other != system else [],
            )
        )
    return examples


def _asked_at(micros: int) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=micros)
    return f"{moment:%A} {moment.day} {moment:%B %Y, %H:%M} UTC"


def _facts_of(lists: RankedLists, n: int) -> list[str]:
    """The known attributes of the user and of the context, without the time, which stands before them."""
    facts = []
    for name, values in lists.attributes.items():
        value = values[n]
        if name not in schema.TIME_CONTEXT and value is not None and value == value:
            facts.append(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}")
    return facts
