"""Probabilities of the items of a list, by the calibration of the bundle (`ctxrec.memory.calibration`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctxrec.data.requests import Requests
from ctxrec.memory.scoring import Scored
from ctxrec.retrieval.recommender import Recommender

NO_CALIBRATION = (
    "the model tells no probabilities, because none were fitted when it was trained: an earlier version of ctxrec trained it, or "
    "its validation events have fewer than 20 successes or fewer than 20 others. Train it again, with more validation events"
)


def list_probabilities(
    recommender: Recommender,
    requests: Requests,
    lists: Sequence[np.ndarray],
    asked: Sequence[bool],
    *,
    scored: Scored | None = None,
) -> list[np.ndarray | None]:
    """Probabilities of the items of lists: for each request float64 [items], None where none are asked for or told.

    They are those of the items' own scores, whatever diversity, rules or a second stage made of the list.

    Args:
        recommender: the model.
        requests: N requests.
        lists: int64 positions of the items of each.
        asked: whether each wants probabilities.
        scored: what the model makes of the requests, as `Retriever.scored` gives it; None: it is computed.
    """
    made: list[np.ndarray | None] = [None] * len(lists)
    rows = np.flatnonzero(asked)
    if recommender.calibration is None or not len(rows):
        return made
    wanted = [positions for positions, wants in zip(lists, asked, strict=True) if wants]
    with recommender.catalogue.reading():
        part, live = requests.take(rows), None if recommender.live_weights is None else recommender.live
        current = np.zeros(len(part), bool) if live is None else live.are_current(part.times)
        some = None if scored is None else scored.take(rows)
        found = recommender.calibration.probabilities(
            recommender, part, recommender.kinds, wanted, current, scored=some
        )
    for n, values in zip(rows.tolist(), found, strict=True):
        made[n] = values
    return made
