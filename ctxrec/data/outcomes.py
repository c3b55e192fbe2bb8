"""What came of the moments of a split: requests at their own times, with what the user took, and whether it was a success.

Legend: N requests, T targets of all requests.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ctxrec.data.events import Histories, histories_from_table
from ctxrec.data.feedback import EventKinds
from ctxrec.data.prepared import PreparedData
from ctxrec.data.replay import event_requests, in_order
from ctxrec.data.requests import Requests, concat_requests

_BUCKETS = 16  # of users that are asked, at most


def outcome_requests(data: PreparedData, split: int, limit: int) -> Requests | None:
    """Requests at the moments of a split's events, at most `limit`, in the order of time; None where there are none.

    Where the log judges items, the targets are the items that a user meets first in this split and judges there;
    `target_weights` is 1 for a success and -1 otherwise (`judged_requests`). Where it does not, the targets are what the
    user took, without events of weight 0.

    Args:
        data: the prepared log.
        split: `schema.VALID` or `schema.TEST`.
        limit: number of requests at most, at even distances.
    """
    num, parts = len(data.bucket_paths), []
    buckets = np.unique(np.linspace(0, num - 1, min(num, _BUCKETS)).astype(int)).tolist()
    for bucket in buckets:
        histories = histories_from_table(data.read_bucket(bucket), data.features, data.kinds)
        found = event_requests(histories, split, repeats=data.spec.split.repeats)
        if data.kinds.are_judged:
            found = judged_requests(found, histories, split, data.kinds)
        elif found.target_weights is not None:
            found = found.with_targets(found.target_weights > 0)
        if len(found):
            parts.append(in_order(found).evenly(-(-limit // len(buckets))))
    return in_order(concat_requests(parts)) if parts else None


def judged_requests(requests: Requests, histories: Histories, split: int, kinds: EventKinds) -> Requests:
    """The requests with the targets that their users judge in the split, each at the user's first moment with it.

    A success is an item with at least one event of a weight above 0 there, such as a click after the row that says that the
    item was shown. An item is none if its value or its action says so (`EventKinds.grades_A` of 0 or less), and no event
    is a success. Items that no event judges are left out.

    Args:
        requests: of `ctxrec.data.replay.event_requests`.
        histories: that they were made of.
        split: of the events.
        kinds: what the events say.

    Returns:
        The requests that have such a target, with `target_weights` of 1 and -1: float32 [T].
    """
    assert requests.target_offsets is not None and requests.target_items is not None
    row_of = {user: row for row, user in enumerate(histories.users.ids.tolist())}
    events, span = histories.events, int(histories.events.items.max(initial=0)) + 1
    inside = histories.split == split
    pairs = (np.repeat(np.arange(len(histories)), events.lengths) * span + events.items)[inside]
    codes = events.actions[inside]
    judged = np.unique(pairs[kinds.is_success(codes) | kinds.is_no_success(codes)])
    succeeded = np.unique(pairs[kinds.is_success(codes)])
    rows = np.array([row_of[user] for user in requests.users.ids.tolist()], np.int64)
    asked = np.repeat(rows, np.diff(requests.target_offsets)) * span + requests.target_items
    moment = np.repeat(requests.times, np.diff(requests.target_offsets))
    order = np.lexsort((moment, asked))
    first = np.zeros(len(asked), bool)
    first[order[np.append(True, np.diff(asked[order]) != 0)[: len(order)]]] = True
    weights = np.where(np.isin(asked, succeeded), 1, -1).astype(np.float32)
    labelled = dataclasses.replace(requests, target_weights=weights)
    return labelled.with_targets(first & np.isin(asked, judged))
