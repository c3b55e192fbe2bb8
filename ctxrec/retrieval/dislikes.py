"""Less like this: a request may name items that it does not want the like of (`RawRequest.dislike`).

From its scores is taken a share of what somebody would get who had these items alone: the difference that these items
make to the query, which stays an inner product, and what the item memory says of them, where the sum stays 0 or more.
What somebody without any history gets is no part of it, so popular items do not fall for being popular.

Legend: N requests, I items, D width of the search vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctxrec.data.events import Events
from ctxrec.data.requests import Requests


@dataclass(frozen=True)
class DislikeParams:
    """Tuned number. The lab book is `tests/bench/RESULTS.md` ("Less like this").

    Attributes:
        share: of what the disliked items alone would add. On MovieLens-100K .25 lets disliked targets fall by a tenth and
            costs no liked ones that can be told; .5 does cost them.
    """

    share: float = 0.25


DISLIKES = DislikeParams()


def asked_without(requests: Requests) -> np.ndarray:
    """Rows of the requests that dislike some item: int64 [rows]."""
    if requests.disliked is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero([len(items) > 0 for items in requests.disliked])


def lowered_queries(
    ask: Callable[[Requests], np.ndarray], requests: Requests, *, fixed: int, params: DislikeParams = DISLIKES
) -> np.ndarray:
    """Queries of requests, from which their dislikes are taken: float32 [N, D].

    Args:
        ask: queries of requests by their histories alone, float32 [N, D].
        requests: N requests.
        fixed: last columns of a query that do not compare items, such as the weight of popularity; they stay.
        params: the share.
    """
    found, rows = ask(requests), asked_without(requests)
    if len(rows):
        part = requests.take(rows)
        change = ask(with_history_of(part, part.disliked)) - ask(with_history_of(part, None))
        change[:, change.shape[1] - fixed :] = 0
        found[rows] -= np.float32(params.share) * change
    return found


def lowered_memory(
    remember: Callable[[Requests], sp.csr_array], requests: Requests, params: DislikeParams = DISLIKES
) -> sp.csr_array:
    """What the item memory says of requests, from which it is taken what it says of their dislikes: 0 or more, [N, I]."""
    found, rows = remember(requests), asked_without(requests)
    if not len(rows):
        return found
    part = requests.take(rows)
    said = remember(with_history_of(part, part.disliked))
    place = sp.csr_array((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (len(requests), len(rows)))
    left = sp.csr_array(found - np.float32(params.share) * (place @ said)).maximum(0)
    left.eliminate_zeros()
    return sp.csr_array(left, dtype=np.float32)


def with_history_of(requests: Requests, items: np.ndarray | None) -> Requests:
    """The requests as if their users had had these items alone, just before (object [N] of int32 arrays), or nothing.

    The events have no action, and the context of the request.
    """
    lists = [np.zeros(0, np.int32)] * len(requests) if items is None else list(items)
    lengths = np.array([len(one) for one in lists], np.int64)
    of_row = np.repeat(np.arange(len(requests)), lengths)
    events = Events(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([np.zeros(0, np.int32), *lists]).astype(np.int32),
        times=requests.times[of_row] - 1,
        actions=np.zeros(len(of_row), np.int16),
        context=requests.context.take(of_row),
    )
    return dataclasses.replace(requests, history=events, disliked=None)
